"""Finds which of a bag's topics are cameras, by what their messages hold and by the last part of their names.

Transports of one image are one camera (`image_raw`, `image_raw/compressed`), and so are several images of one device
(colour and grey, as it is and rectified).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from occ_core.camera import Camera
from occ_core.errors import InvalidInput, MissingInput
from occ_core.problems import Problem
from occ_core.rig_file import RigFileCamera, load_rig_file
from occ_core.sensor_messages import base_topic, is_rectified, words_of
from occ_core.sources.bag_reader import BagReader
from occ_core.sources.bag_survey import CAMERA_INFO, COMPRESSED, IMAGE, ImageTopic, Survey

RIG_FILE = "rig.yaml"
"""Beside a recording: cameras whose calibration and place it does not hold (see `occ_core.rig_file`)."""
INFRARED = {"infra", "ir", "infrared", "thermal", "nir", "lwir"}
VIDEO = (
    "foxglove_msgs/msg/CompressedVideo",
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket",
    "theora_image_transport/msg/Packet",
)
SAME_STAMPS = 0.5  # share of the images of two topics of one device that have one stamp


@dataclass(frozen=True)
class BagCamera:
    """The topics of one camera; `name` is their common namespace, such as `cam_front`."""

    name: str
    image_topic: str
    info_topic: str


@dataclass(frozen=True)
class Device:
    """Image topics that share one CameraInfo topic.

    Attributes:
        info_topic: empty where there is none.
        asked: somebody named it.
    """

    name: str
    topics: tuple[str, ...]
    info_topic: str
    asked: bool = False
    beside: str = field(default="", compare=False)  # where the CameraInfo topic is looked for

    def is_called(self, name: str) -> bool:
        return name in (self.name, f"/{self.name}", *self.topics, *map(base_topic, self.topics))


def described_cameras(reader: BagReader) -> tuple[RigFileCamera, ...]:
    """Read the cameras of the rig file beside the recording; none without that file."""
    file = (reader.path if reader.path.is_dir() else reader.path.parent) / RIG_FILE
    return load_rig_file(file) if file.is_file() else ()


def described_by(rig_file: Iterable[RigFileCamera], reader: BagReader, devices: Iterable[Device]) -> dict[str, Camera]:
    """Assign cameras of the rig file to devices, by image topic, or by name where the file gives no topic.

    Raises:
        InvalidInput: the recording has no images of a camera of the file.
    """
    found: dict[str, Camera] = {}
    everything = find_devices(reader, None, described=True)
    for entry in rig_file:
        called = entry.image_topic or entry.camera.name
        if not any(device.is_called(called) for device in everything):
            known = ", ".join(topic for device in everything for topic in device.topics)
            text = f"{reader.path}: {RIG_FILE} has camera '{entry.camera.name}', and no images are on '{called}'"
            raise InvalidInput(f"{text}, only on: {known}")
        for device in devices:
            if device.is_called(called):
                found[device.name] = replace(entry.camera, name=device.name)
    return found


def find_devices(
    reader: BagReader, wanted: Iterable[str] | None, excluded: Iterable[str] = (), described: bool = False
) -> list[Device]:
    """Find devices by name; if some are wanted, those in their order.

    Args:
        described: a rig file describes cameras, so that there may be no CameraInfo.

    Raises:
        MissingInput: no images, no CameraInfo at all, or no such camera.
    """
    infos, topics = set(reader.of_type(CAMERA_INFO)), reader.of_type(IMAGE, COMPRESSED)
    if not topics:
        videos = ", ".join(reader.of_type(*VIDEO))
        beside = f"; videos are not read: {videos}" if videos else ""
        raise MissingInput(f"{reader.path}: no image topic ({IMAGE} or {COMPRESSED}) with messages{beside}")
    groups: dict[str, list[str]] = {}
    for topic in topics:
        base = base_topic(topic)
        beside = f"{base.rpartition('/')[0]}/camera_info"
        own = next((info for info in (f"{base}/camera_info", beside) if info in infos), beside)
        groups.setdefault(own, []).append(topic)
    devices = []
    for info, names in groups.items():
        name = info.removesuffix("/camera_info").strip("/") or base_topic(min(names, key=len)).strip("/")
        devices.append(Device(name, tuple(names), info if info in infos else "", beside=info))
    devices.sort(key=lambda device: device.name)
    for name in excluded:
        if not any(device.is_called(name) for device in devices):
            raise _unknown(reader, name, devices)
    devices = [device for device in devices if not any(device.is_called(name) for name in excluded)]
    if not devices:
        raise MissingInput(f"{reader.path}: no camera is left: all are excluded")
    if wanted is not None:
        devices = [_wanted(reader, name, devices) for name in wanted]
    elif not described and not any(device.info_topic for device in devices):
        raise MissingInput(
            f"{reader.path}: no CameraInfo for any of the image topics {', '.join(topics)} "
            f"(expected beside them, such as '{next(iter(groups))}', or a rig file {RIG_FILE} beside the recording)"
        )
    return devices


def without_images(reader: BagReader) -> dict[str, Problem]:
    """The names of cameras of which the bag has CameraInfo but no image, or a video that is not read."""
    bases = {base_topic(topic) for topic in reader.of_type(IMAGE, COMPRESSED)}
    videos = [topic for topic in reader.of_type(*VIDEO) if base_topic(topic) not in bases]
    found = {}
    for topic in videos:
        text = f"its images are a video ({reader.topics[topic]}); only images, JPEG and PNG are read"
        found[_namespace(base_topic(topic)).strip("/") or topic.strip("/")] = Problem("file", topic, text)
    used = {f"{parent}/camera_info" for base in bases for parent in (base, _namespace(base))}
    lonely = [topic for topic in reader.of_type(CAMERA_INFO) if topic not in used]
    text = "CameraInfo, but no image of this camera"
    return {_namespace(topic).strip("/"): Problem("no images", topic, text) for topic in lonely} | found


def _namespace(topic: str) -> str:
    return topic.rpartition("/")[0]


def _wanted(reader: BagReader, name: str, devices: list[Device]) -> Device:
    for device in devices:
        if device.is_called(name):
            exact = tuple(topic for topic in device.topics if topic == name) or device.topics
            return Device(device.name, exact, device.info_topic, True, device.beside)
    raise _unknown(reader, name, devices)


def _unknown(reader: BagReader, name: str, devices: list[Device]) -> MissingInput:
    known = ", ".join(sorted(device.name for device in devices)) or "none"
    return MissingInput(f"{reader.path}: no images of camera '{name}', only of: {known}")


def chosen_topic(device: Device, survey: Survey) -> str:
    """Choose one of a device's image topics: one with images, colour before grey, unrectified before rectified,
    compressed (which is less to read) before raw."""
    most = max(len(survey.images[topic].entries) for topic in device.topics)

    def rank(topic: str) -> tuple[bool, bool, bool, bool, str]:
        found = survey.images[topic]
        few = 2 * len(found.entries) < most or not found.entries
        return few, is_grey(found), is_rectified(topic), not topic.endswith("/compressed"), topic

    return min(device.topics, key=rank)


def is_grey(found: ImageTopic) -> bool:
    header = found.header
    return header is not None and header.channels == 1 and not header.mosaic


def infrared(device: Device, topic: str, found: ImageTopic) -> Problem | None:
    """Whether images are grey and their frame or topic says infrared."""
    said = [name for name in (base_topic(topic), found.frame, device.name) if words_of(name) & INFRARED]
    if device.asked or not said or not is_grey(found):
        return None
    return Problem("infrared", topic, f"grey images of '{said[0]}'")


def same_views(
    cameras: list[BagCamera], survey: Survey, frames: dict[str, str], infos: dict[str, Any]
) -> dict[str, str]:
    """Map a camera's name to the name of another camera that shows the same: images of one device in several namespaces
    have the same frame and stamps. In a stereo pair within one frame, the second camera's P says how far it is from the
    first."""
    same: dict[str, str] = {}

    def rank(camera: BagCamera) -> tuple[int, bool, bool, str]:
        found = survey.images[camera.image_topic]
        return -len(found.entries), is_grey(found), is_rectified(camera.image_topic), camera.name

    kept: list[BagCamera] = []
    for camera in sorted(cameras, key=lambda c: rank(c)[1:]):
        for other in kept:
            apart_px = abs(float(infos[camera.name].p[3]) - float(infos[other.name].p[3]))
            one_frame = frames[camera.name] == frames[other.name] and apart_px < 1e-6
            named = {survey.images[each.image_topic].frame.lstrip("/") for each in (camera, other)} - {""}
            if one_frame and len(named) < 2 and _share(camera, other, survey) > SAME_STAMPS:
                same[camera.name] = other.name
                break
        else:
            kept.append(camera)
    return same


def _share(a: BagCamera, b: BagCamera, survey: Survey) -> float:
    ours, theirs = ({p.stamp_ns for p in survey.images[camera.image_topic].entries} for camera in (a, b))
    return len(ours & theirs) / max(1, min(len(ours), len(theirs)))
