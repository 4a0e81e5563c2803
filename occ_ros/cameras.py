"""State of each camera input, and what is wrong with it in one sentence, the most specific cause first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from occ_core.errors import InvalidInput, OccError
from occ_ros.calibration import Calibration
from occ_ros.messages import image_of
from occ_ros.timings import StageTimes

OK, WARN, ERROR = 0, 1, 2


@dataclass
class CameraInput:
    """One camera as the node sees it.

    Attributes:
        received, rejected: images that came, and those that could not be used.
        wrong_type: type of the topic where it is not the one subscribed to.
        image_error: why the last image could not be used; empty if it could.
        arrival_s: when the last image came (monotonic clock).
    """

    name: str
    image_topic: str
    info_topic: str
    compressed: bool
    wrong_type: str = ""
    received: int = 0
    rejected: int = 0
    image_error: str = ""
    arrival_s: float | None = None

    @property
    def rectified(self) -> bool:
        """By the habit of image_proc's names: image_rect, image_rect_color."""
        return "rect" in self.image_topic.removesuffix("/compressed").rpartition("/")[2]

    def problem(
        self, calibration: Calibration, publishers: int, info_publishers: int, now_s: float, stale_s: float
    ) -> tuple[int, str]:
        """(diagnostic level, one sentence)."""
        if error := calibration.info_error(self.name):
            kept = ", the last good one stays in use" if calibration.has_info(self.name) else ""
            return ERROR, f"CameraInfo rejected: {error}{kept}"
        if self.arrival_s is not None and self.image_error:
            return ERROR, f"image rejected: {self.image_error}"
        if self.arrival_s is None and self.wrong_type:
            return ERROR, f"{self.image_topic} has type {self.wrong_type}: set parameter 'transport'"
        if not publishers and self.arrival_s is None:
            return ERROR, f"no publisher on {self.image_topic}"
        if self.arrival_s is None:
            return ERROR, f"{publishers} publisher(s) on {self.image_topic} but no image came (QoS or type?)"
        if not calibration.has_info(self.name):
            hint = "a publisher is there but nothing came" if info_publishers else "no publisher"
            return ERROR, f"no CameraInfo on {self.info_topic}: {hint}"
        if error := calibration.transform_error(self.name):
            return ERROR, error
        age_s = now_s - self.arrival_s
        if age_s > stale_s:
            why = "its publisher is gone" if not publishers else "its publisher is silent"
            return WARN, f"no image for {age_s:.1f} s (limit {stale_s} s): {why}"
        return OK, "ok"


class ImageSlot:
    """An image on its way: message, then pixels, then `array`, the network's input; each step once, in one thread."""

    def __init__(self, camera: CameraInput, message: Image | CompressedImage, arrival_s: float) -> None:
        self.camera = camera
        self.arrival_s = arrival_s
        self.array: np.ndarray | None = None
        self._message: Image | CompressedImage | None = message
        self._image: np.ndarray | None = None

    def pixels(self, calibration: Calibration, times: StageTimes) -> np.ndarray | None:
        """RGB uint8 (h, w, 3); None if the image cannot be used, which is then counted and its reason kept."""
        if self._message is not None:
            message, self._message = self._message, None
            try:
                with times.measure("decode"):
                    self._image = image_of(message)
            except OccError as error:
                self._reject(str(error))
                return None
        image, size = self._image, calibration.size(self.camera.name)
        if image is None:
            return None
        if size is not None and (image.shape[1], image.shape[0]) != size:
            why = f"image is {image.shape[1]} x {image.shape[0]} px, its CameraInfo says {size[0]} x {size[1]} px"
            self._reject(why)
            return None
        if size is not None:
            self.camera.image_error = ""
        return image

    def finish(self, array: np.ndarray) -> None:
        """Keep the network's input only."""
        self.array, self._image = array, None

    def _reject(self, why: str) -> None:
        self._image = None
        self.camera.rejected += 1
        self.camera.image_error = why


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
    inputs = []
    for camera in cameras:
        topic = image_template.replace("{camera}", camera)
        compressed = transport == "compressed" or (transport == "auto" and topic.endswith("/compressed"))
        inputs.append(CameraInput(camera, topic, info_template.replace("{camera}", camera), compressed))
    return tuple(inputs)


def offsets_ns(names: tuple[str, ...], offsets_s: list[float]) -> dict[str, int]:
    """Camera name -> how much later than the others it fires; one number means: the same for all."""
    if len(offsets_s) == 1:
        return {}
    if len(offsets_s) != len(names):
        raise InvalidInput(f"parameter 'offsets_s' must have one number per camera ({len(names)}), got {offsets_s}")
    return {name: round(offset * 1e9) for name, offset in zip(names, offsets_s, strict=True)}
