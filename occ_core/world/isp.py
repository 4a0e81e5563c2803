"""The image signal processor (ISP) model, from light to JPEG: lens, exposure, sensor noise, white balance, rain on the
lens."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from occ_core.world.city import Weather

JPEG_QUALITY = 90


@dataclass(frozen=True)
class IspModel:
    """How one camera of one car turns light into pixels.

    Attributes:
        balance: factor per channel. key: brightness that auto exposure aims at. vignette: light lost in the corners.
        blur_px: softness of lens and sensor. read_noise, shot_noise: at unit gain.
    """

    balance: tuple[float, float, float]
    key: float
    vignette: float
    blur_px: float
    read_noise: float
    shot_noise: float

    @staticmethod
    def of(seed: int, camera_index: int) -> IspModel:
        """The camera's own parameters, fixed by the seed of the scene."""
        rng = np.random.default_rng((seed, 105, camera_index))
        shared = np.random.default_rng((seed, 105))
        cast = shared.normal(0, 0.09)
        red, blue = 1 + cast + rng.normal(0, 0.02), 1 - cast + rng.normal(0, 0.03)
        return IspModel(
            (red, 1.0, blue),
            float(np.exp(shared.normal(np.log(0.17), 0.25))),
            float(rng.uniform(0.15, 0.4)),
            float(rng.uniform(0.35, 0.6)),
            0.004,
            0.012,
        )


def apply_isp(radiance: np.ndarray, isp: IspModel, weather: Weather, rng: np.random.Generator) -> np.ndarray:
    """Turn linear light, float32 (h, w, 3), into an RGB image, uint8 (h, w, 3)."""
    h, w = radiance.shape[:2]
    gain = _exposure(radiance, isp.key, weather.night)
    light = np.minimum(radiance, 60.0) * np.float32(gain)
    light = _bloom(light, 0.06 if weather.night else 0.02)
    light *= np.array(isp.balance, dtype=np.float32) * _vignette(h, w, isp.vignette)[:, :, None]
    if weather.wetness > 0.5:
        light = _rain(light, rng)
    light = np.asarray(cv2.GaussianBlur(light, (0, 0), isp.blur_px * w / 800), dtype=np.float32)
    strain = 1.0 + 0.6 * max(0.0, np.log2(gain / 4.0))  # a sensor that has to amplify is noisier
    sigma = np.sqrt((isp.read_noise * strain) ** 2 + light * isp.shot_noise**2 * strain)
    light += sigma * rng.standard_normal(light.shape, dtype=np.float32)
    light = np.maximum(light, 0.0)
    light = light * (1 + light / 6.25) / (1 + light)  # Reinhard's curve with white at 2.5
    light = np.minimum(light, 1.0)
    light = light + 0.35 * light * (1 - light) * (2 * light - 0.55)  # a touch of contrast, as cameras' curves have
    srgb = np.where(light < 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
    return (np.clip(srgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def _exposure(radiance: np.ndarray, key: float, night: bool) -> float:
    """Gain of the auto exposure; it meters the lower two thirds, and at night it reaches its limit."""
    metered = radiance[radiance.shape[0] // 3 :: 4, ::4] @ np.array([0.3, 0.6, 0.1], dtype=np.float32)
    level = float(np.exp(np.mean(np.log(metered + 0.01 * (0.2 if night else 1.0)))))
    gain = 1.6 * key / max(level, 1e-4)
    return min(gain * (0.4 if night else 1.0), 14.0)


def _vignette(h: int, w: int, strength: float) -> np.ndarray:
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    return 1 - np.float32(strength) * (x * x + y * y) * 0.5


def _bloom(light: np.ndarray, share: float) -> np.ndarray:
    """Light of very bright spots leaks around them."""
    h, w = light.shape[:2]
    bright = np.maximum(cv2.resize(light, (w // 4, h // 4), interpolation=cv2.INTER_AREA) - 1.6, 0.0)
    if bright.max() <= 0:
        return light
    near = cv2.GaussianBlur(bright, (0, 0), w / 400)
    wide = cv2.GaussianBlur(bright, (0, 0), w / 80)
    return light + np.float32(share) * cv2.resize(3 * near + 5 * wide, (w, h), interpolation=cv2.INTER_LINEAR)


def _rain(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Streaks in the air and drops on the lens."""
    h, w = light.shape[:2]
    streaks = np.zeros((h, w), dtype=np.float32)
    slope = rng.normal(0, 0.12)
    for _ in range(int(rng.integers(60, 200))):
        x, y, length = rng.uniform(0, w), rng.uniform(-0.1 * h, h), rng.uniform(0.02, 0.09) * h
        end = (int(x + slope * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, (float(rng.uniform(0.02, 0.10)),), 1, cv2.LINE_AA)
    light = light + cv2.GaussianBlur(streaks, (0, 0), 0.7)[:, :, None]
    soft = cv2.GaussianBlur(light, (0, 0), w / 90)
    drops = np.zeros((h, w), dtype=np.float32)
    for _ in range(int(rng.integers(3, 16))):
        centre = (int(rng.uniform(0, w)), int(rng.uniform(0, h)))
        axes = (int(w * rng.uniform(0.005, 0.022)) + 1, int(w * rng.uniform(0.005, 0.028)) + 1)
        cv2.ellipse(drops, centre, axes, float(rng.uniform(0, 30)), 0, 360, (float(rng.uniform(0.5, 0.95)),), -1)
    wet = cv2.GaussianBlur(drops, (0, 0), w / 400)[:, :, None]
    return light * (1 - wet) + soft * wet * 1.06


def encode(image: np.ndarray) -> bytes:
    """JPEG bytes of an RGB image."""
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()
