"""State of each camera input, and what is wrong with it in one sentence, the most specific cause first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from occ_core.errors import InvalidInput, OccError
from occ_ros.calibration import MANY_MOVES, RECENT_S, Calibration
from occ_ros.messages import image_of, image_size_of
from occ_ros.sensors import (
    ERROR,
    WARN,
    SensorInput,
    Surroundings,
    connection_problems,
    lost_problems,
    stamp_problems,
)

NOUNS = "image", "camera"


@dataclass
class CameraInput(SensorInput):
    """One camera as the node sees it.

    Attributes:
        image_error: why the last image could not be used; empty if it could.
    """

    name: str
    image_topic: str
    info_topic: str
    compressed: bool
    image_error: str = ""

    @property
    def rectified(self) -> bool:
        """By the habit of image_proc's names: image_rect, image_rect_color."""
        return "rect" in self.image_topic.removesuffix("/compressed").rpartition("/")[2]


def problems(camera: CameraInput, calibration: Calibration, around: Surroundings) -> list[tuple[int, str]]:
    """(diagnostic level, one sentence) of all that is wrong; errors first, among them the most specific first."""
    kind, hint = _type_of(camera), ": see 'transport'"
    found = [*connection_problems(camera, camera.image_topic, kind, NOUNS, around, hint)]
    found += [*_calibration(camera, calibration, around), *_images(camera, around), *_place(camera, calibration)]
    return sorted(found, key=lambda problem: -problem[0])  # stable


def _calibration(camera: CameraInput, calibration: Calibration, around: Surroundings) -> Iterator[tuple[int, str]]:
    if error := calibration.info_error(camera.name):
        kept = ", the last good one stays in use" if calibration.has_info(camera.name) else ""
        yield ERROR, f"CameraInfo rejected: {error}{kept}"
    elif not calibration.has_info(camera.name):
        hint = "a publisher is there but nothing came" if around.info_publishers else "no publisher"
        yield ERROR, f"no CameraInfo on {camera.info_topic}: {hint}"


def _images(camera: CameraInput, around: Surroundings) -> Iterator[tuple[int, str]]:
    if camera.arrival_s is None:
        return
    if camera.image_error:
        yield ERROR, f"image rejected: {camera.image_error}"
    if not camera.stamp_ns:
        yield ERROR, "images carry no stamp (header.stamp is zero)"
    elif around.unused and around.lag_s:
        side = "behind" if around.lag_s > 0 else "ahead of"
        by = f"{abs(around.lag_s):.3f} s {side} the other cameras'"
        yield ERROR, f"stamps are {by} when the images come: none gets into a set (see deadline_s, max_spread_s)"
    else:
        yield from stamp_problems(camera, NOUNS, around)
    yield from lost_problems(NOUNS, around)


def _place(camera: CameraInput, calibration: Calibration) -> Iterator[tuple[int, str]]:
    if refused := calibration.refused_transform(camera.name):
        yield ERROR, f"transform refused: {refused}"
    if transform_error := calibration.transform_error(camera.name):
        yield ERROR, transform_error
    times, farthest_m = calibration.moves(camera.name)
    if times >= MANY_MOVES:
        moved = f"its place on the vehicle changed {times} times in {RECENT_S:.0f} s, by up to {farthest_m:.3f} m"
        yield WARN, f"{moved}: do two nodes publish its transform? Each change costs a new table"


def _type_of(camera: CameraInput) -> str:
    return "CompressedImage" if camera.compressed else "Image"


def lags_s(cameras: Sequence[CameraInput], now_s: float, stale_s: float) -> dict[str, float]:
    """By how much later than the others' each camera's last image came after its stamp; needs three that are alive."""
    delays = {
        camera.name: camera.arrival_s - camera.stamp_ns / 1e9
        for camera in cameras
        if camera.arrival_s is not None and camera.stamp_ns and camera.silent_s(now_s) <= stale_s
    }
    if len(delays) < 3:
        return {}
    middle = median(delays.values())
    return {name: delay - middle for name, delay in delays.items()}


class ImageSlot:
    """An image on its way: a message, then `array`, the network's input; once, in one thread."""

    def __init__(self, camera: CameraInput, message: Image | CompressedImage, arrival_s: float) -> None:
        self.camera = camera
        self.arrival_s = arrival_s
        self.array: np.ndarray | None = None
        self._message: Image | CompressedImage | None = message

    @property
    def waiting(self) -> bool:
        """Not looked at yet."""
        return self._message is not None

    def pixels(self, size: tuple[int, int], useful: tuple[int, int]) -> np.ndarray | None:
        """RGB uint8 (h, w, 3) of the calibrated size, or a smaller version of it that is not below `useful`.

        None if the image cannot be used, which is then counted and its reason kept.
        """
        message, self._message = self._message, None
        if message is None:
            return None
        try:
            there = image_size_of(message)
            if there != size:
                raise InvalidInput(
                    f"image is {there[0]} x {there[1]} px, its calibration says {size[0]} x {size[1]} px"
                )
            image = image_of(message, useful)
        except OccError as error:
            self.camera.rejected += 1
            self.camera.image_error = str(error)
            return None
        self.camera.image_error = ""
        return image


def image_topics(
    cameras: list[str], image_template: str, info_template: str, transport: str
) -> tuple[CameraInput, ...]:
    """One input per camera; `{camera}` in the templates is replaced by its name.

    Raises:
        InvalidInput: no camera, one twice, or a template without `{camera}` for several cameras.
    """
    if not cameras or len(set(cameras)) != len(cameras) or not all(cameras):
        raise InvalidInput(f"parameter 'cameras' must be one or more different names, got {cameras}")
    for name, template in (("image_topic", image_template), ("info_topic", info_template)):
        if "{camera}" not in template and len(cameras) > 1:
            raise InvalidInput(f"parameter '{name}' must contain '{{camera}}' for {len(cameras)} cameras: '{template}'")
    return tuple(
        camera_input(
            camera, image_template.replace("{camera}", camera), info_template.replace("{camera}", camera), transport
        )
        for camera in cameras
    )


def camera_input(name: str, image_topic: str, info_topic: str, transport: str) -> CameraInput:
    """With transport auto the type is first guessed by the topic's name."""
    compressed = transport == "compressed" or (transport == "auto" and image_topic.endswith("/compressed"))
    return CameraInput(name, image_topic, info_topic, compressed)


def offsets_ns(names: tuple[str, ...], offsets_s: list[float]) -> dict[str, int]:
    """Camera name -> how much later than the others it fires; one number means: the same for all."""
    if len(offsets_s) == 1:
        return {}
    if len(offsets_s) != len(names):
        raise InvalidInput(f"parameter 'offsets_s' must have one number per camera ({len(names)}), got {offsets_s}")
    return {name: round(offset * 1e9) for name, offset in zip(names, offsets_s, strict=True)}
