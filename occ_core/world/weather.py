"""Light and weather of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WEATHERS = {"clear": 0.47, "overcast": 0.2, "rain": 0.18, "night": 0.11, "night_rain": 0.04}


@dataclass(frozen=True, eq=False)
class Weather:
    """The state of sky and light that the renderer needs.

    Attributes:
        name: clear | overcast | rain | night | night_rain.
        sun_direction: (3,) unit vector towards the sun (at night: the moon).
        sun_strength: of direct light, 1 = clear noon.
        ambient: (3,) RGB of the sky's light.
        fog_per_m: extinction.
        wetness: 0..1.
        night: lamps are lit.
        lamps_m: float32 (M, 3), world positions of street lamps.
    """

    name: str
    sun_direction: np.ndarray
    sun_strength: float
    ambient: np.ndarray
    fog_per_m: float
    wetness: float
    night: bool
    lamps_m: np.ndarray


def make_weather(rng: np.random.Generator, lamps_m: np.ndarray) -> Weather:
    name = str(rng.choice(list(WEATHERS), p=list(WEATHERS.values())))
    night, rain = name.startswith("night"), name.endswith("rain")
    elevation, azimuth = np.radians(rng.uniform(12, 65)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    sun_strength = {"clear": rng.uniform(0.75, 1.1), "overcast": 0.12, "rain": 0.05, "night": 0.02, "night_rain": 0.0}
    ambient = {
        "clear": np.array([0.3, 0.36, 0.46]),
        "overcast": np.array([0.5, 0.53, 0.56]),
        "rain": np.array([0.34, 0.36, 0.38]),
        "night": np.array([0.012, 0.014, 0.022]),
        "night_rain": np.array([0.011, 0.012, 0.016]),
    }
    fog = {"clear": 0.0006, "overcast": 0.0015, "rain": 0.005, "night": 0.001, "night_rain": 0.006}[name]
    return Weather(
        name=name,
        sun_direction=sun,
        sun_strength=float(sun_strength[name]),
        ambient=ambient[name] * rng.uniform(0.85, 1.15),
        fog_per_m=float(fog * rng.uniform(0.6, 1.6)),
        wetness=float(rng.uniform(0.6, 1.0) if rain else rng.choice([0.0, 0.3], p=[0.85, 0.15])),
        night=night,
        lamps_m=lamps_m,
    )
