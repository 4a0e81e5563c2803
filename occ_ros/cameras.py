"""The state of each camera input, and what is wrong with it in one sentence, the most specific cause first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from occ_core.errors import InvalidInput
from occ_core.network_input.pinhole import ViewImages
from occ_core.problems import Problem, Unusable
from occ_core.sensor_messages import (
    frames_problem,
    image_header,
    is_rectified,
    lens_problem,
    mount_problems,
    require_size,
)
from occ_ros.calibration import Calibration
from occ_ros.messages import image_of
from occ_ros.sensors import (
    ERROR,
    WARN,
    Found,
    SensorInput,
    Surroundings,
    connection_problems,
    lost_problems,
    rival_problems,
    stamp_problems,
)

NOUNS = "image", "camera"
SWITCHED_S = 5.0  # a change between grey and colour is worth a word for so long
CLOCK_S = 0.05
"""Stamps that are off by less do not keep images out of the sets."""


@dataclass
class CameraInput(SensorInput):
    """One camera as the node sees it.

    Attributes:
        problem: why the last image could not be used; None if it could.
        encoding, channels, frame: of the last image that was looked at.
        switched_s: when the images last changed between grey and colour (monotonic clock).
    """

    name: str
    image_topic: str
    info_topic: str
    compressed: bool
    problem: Problem | None = None
    encoding: str = ""
    channels: int = 0
    frame: str = ""
    switched_s: float | None = None

    @property
    def rectified(self) -> bool:
        return is_rectified(self.image_topic)


def problems(camera: CameraInput, calibration: Calibration, around: Surroundings) -> list[Found]:
    """Everything that is wrong: errors first, and among them the most specific first."""
    kind, hint = _type_of(camera), ": see 'transport'"
    found = [*connection_problems(camera, camera.image_topic, kind, NOUNS, around, hint)]
    found += [*rival_problems(around), *_calibration(camera, calibration, around)]
    found += [*_images(camera, around), *_place(camera, calibration)]
    return sorted(found, key=lambda problem: -problem[0])  # stable


def _calibration(camera: CameraInput, calibration: Calibration, around: Surroundings) -> Iterator[Found]:
    if problem := calibration.info_problem(camera.name):
        kept = ", the last good one stays in use" if calibration.has_info(camera.name) else ""
        yield Found(ERROR, f"CameraInfo rejected: {problem}{kept}", problem.kind)
    elif not calibration.has_info(camera.name):
        hint = "a publisher is there but nothing came" if around.info_publishers else "no publisher"
        yield Found(ERROR, f"no CameraInfo on {camera.info_topic}: {hint}", "no CameraInfo")


def _images(camera: CameraInput, around: Surroundings) -> Iterator[Found]:
    if camera.arrival_s is None:
        return
    if camera.problem:
        yield Found(ERROR, f"image rejected: {camera.problem.found}", camera.problem.kind)
    if camera.switched_s is not None and around.now_s - camera.switched_s < SWITCHED_S:
        to = "grey" if camera.channels == 1 else "colour"
        yield Found(WARN, f"images change between grey and colour, now {to}", "grey")
    if not camera.stamp_ns:
        yield Found(ERROR, "images carry no stamp (header.stamp is zero)", "no stamp")
    elif around.unused and abs(around.lag_s) > CLOCK_S:
        side = "behind" if around.lag_s > 0 else "ahead of"
        by = f"{abs(around.lag_s):.3f} s {side} the other cameras'"
        text = f"stamps are {by} when the images come: none gets into a set (see deadline_s, max_spread_s)"
        yield Found(ERROR, text, "clock")
    else:
        yield from stamp_problems(camera, NOUNS, around)
    yield from lost_problems(NOUNS, around)


def _place(camera: CameraInput, calibration: Calibration) -> Iterator[Found]:
    if refused := calibration.refused_transform(camera.name):
        yield Found(ERROR, f"transform refused: {refused}", "transform")
    if transform_error := calibration.transform_error(camera.name):
        yield Found(ERROR, transform_error, "place")
    frame = calibration.frame(camera.name)
    if placed := calibration.placed(camera.name):
        for problem in (lens_problem(placed), *mount_problems(placed, frame)):
            if problem is not None:
                yield Found(WARN, problem.found, problem.kind)
    if frame and (problem := frames_problem(frame, camera.frame)):
        yield Found(WARN, problem.found, problem.kind)
    times, within_s, farthest_m = calibration.moves(camera.name)
    if times:
        moved = f"its place on the vehicle changed {times} times in {within_s:.0f} s, by up to {farthest_m:.3f} m"
        yield Found(WARN, f"{moved}: do two nodes publish its transform? Each change costs a new table", "moves")


def _type_of(camera: CameraInput) -> str:
    return "CompressedImage" if camera.compressed else "Image"


def lags_s(cameras: Sequence[CameraInput], now_s: float, stale_s: float) -> dict[str, float]:
    """How much later than the other cameras' each camera's last image came after its stamp; at least three must be
    alive."""
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
    """An image on its way: first a message, then `array`, the network's input; one thread converts it, once."""

    def __init__(self, camera: CameraInput, message: Image | CompressedImage, arrival_s: float) -> None:
        self.camera = camera
        self.arrival_s = arrival_s
        self.array: np.ndarray | ViewImages | None = None
        self.size: tuple[int, int] | None = None  # of the image, once it was looked at
        self._message: Image | CompressedImage | None = message

    @property
    def waiting(self) -> bool:
        """Whether the image has not been decoded yet."""
        return self._message is not None

    @property
    def bytes(self) -> int:
        """That it holds of a message."""
        return 0 if self._message is None else len(self._message.data)

    def pixels(self, size: tuple[int, int], useful: tuple[int, int]) -> np.ndarray | None:
        """The image as RGB uint8 (h, w, 3) of the calibrated size, or a smaller version of it that is not below
        `useful`.

        None if the image cannot be used, which is then counted and its reason kept.
        """
        message, self._message = self._message, None
        if message is None:
            return None
        try:
            header = image_header(message, self.camera.image_topic)
            self.camera.encoding, self.size = header.encoding, header.size
            if self.camera.channels and (header.channels == 1) != (self.camera.channels == 1):
                self.camera.switched_s = self.arrival_s
            self.camera.channels, self.camera.frame = header.channels, message.header.frame_id
            require_size(header.size, size, self.camera.image_topic)
            image = image_of(message, useful, header)
        except Unusable as error:
            self.camera.rejected += 1
            self.camera.problem = error.problem
            return None
        self.camera.problem = None
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
    """Make the input; with transport auto the message type is first guessed from the topic's name."""
    compressed = transport == "compressed" or (transport == "auto" and image_topic.endswith("/compressed"))
    return CameraInput(name, image_topic, info_topic, compressed)


def offsets_ns(names: tuple[str, ...], offsets_s: list[float]) -> dict[str, int]:
    """How much later than the others each camera fires, by name; a single number holds for all."""
    if len(offsets_s) == 1:
        return {}
    if len(offsets_s) != len(names):
        raise InvalidInput(f"parameter 'offsets_s' must have one number per camera ({len(names)}), got {offsets_s}")
    return {name: round(offset * 1e9) for name, offset in zip(names, offsets_s, strict=True)}
