"""Reads a bag once: where each image and cloud is, every CameraInfo that differs, all transforms and odometry.

Nothing is decoded, and what cannot be used is left out and counted. All later reading goes by what is found here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from occ_core.errors import CorruptInput, OccError
from occ_core.problems import Problem, Tally, Unusable
from occ_core.sensor_messages import Header, Link, image_header, link_of, odometry_link, stamp_of
from occ_core.sources.bag_reader import BagReader

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, CLOUD = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/PointCloud2"
TF, ODOMETRY = "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"
STAMP_BYTES = 12  # of CDR: four that say how it is coded, then the stamp of a header
MAX_INFOS = 1000  # different CameraInfos of a topic


class LogEntry(NamedTuple):
    """Where a message is in the bag: the stamp of its header, and its log time."""

    stamp_ns: int
    log_ns: int


@dataclass
class ImageTopic:
    """The usable images of a topic, in the order of log time.

    Attributes:
        messages: all that there were.
        headers: how many there are of each kind.
        frame: that the images name.
    """

    messages: int = 0
    entries: list[LogEntry] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    headers: Counter[Header] = field(default_factory=Counter)
    frame: str = ""

    @property
    def header(self) -> Header | None:
        """The header of most of its images."""
        return self.headers.most_common(1)[0][0] if self.headers else None


class Logged(NamedTuple):
    """A sample of a transform, and its time in the bag."""

    link: Link
    log_ns: int


class Survey:
    """The content of a bag.

    Args:
        reader: the bag.
        lidar: its topic of clouds, if there is one.
        tally: takes what is left out.
        cameras: image and CameraInfo topics to look at.

    Attributes:
        images: by topic.
        infos: by topic, CameraInfos that differ from the one before, in the order of log time.
        links, odometry: by topic.
        clouds: those of the LiDAR.
    """

    def __init__(self, reader: BagReader, lidar: str | None, tally: Tally, cameras: set[str]) -> None:
        seen = {
            kind: [t for t in reader.of_type(*kind) if t in cameras] for kind in ((IMAGE, COMPRESSED), (CAMERA_INFO,))
        }
        self.images: dict[str, ImageTopic] = {topic: ImageTopic() for topic in seen[IMAGE, COMPRESSED]}
        self.infos: dict[str, list[Any]] = {topic: [] for topic in seen[CAMERA_INFO,]}
        self.links: dict[str, list[Logged]] = {topic: [] for topic in reader.of_type(TF)}
        self.odometry: dict[str, list[Logged]] = {topic: [] for topic in reader.of_type(ODOMETRY)}
        self.clouds: list[LogEntry] = []
        self._last_info: dict[str, bytes] = {}
        self._reader, self._tally = reader, tally
        steps = {IMAGE: self._image, COMPRESSED: self._image, CAMERA_INFO: self._info, TF: self._transforms,
                 ODOMETRY: self._odometry, CLOUD: self._cloud}  # fmt: skip
        topics = [*self.images, *self.infos, *self.links, *self.odometry, *([lidar] if lidar else [])]
        for topic, log_ns, kind, raw in reader.raw_messages(topics):
            if kind in steps:
                try:
                    steps[kind](topic, log_ns, kind, raw)
                except Unusable as error:
                    tally.add(error.problem)
                except CorruptInput as error:
                    tally.add(Problem("damaged message", topic, str(error)))

    def _image(self, topic: str, log_ns: int, kind: str, raw: bytes) -> None:
        found = self.images[topic]
        found.messages += 1
        message = self._reader.parsed(kind, raw)
        found.frame = found.frame or message.header.frame_id
        try:
            header = image_header(message, topic)
        except Unusable:
            raise
        except OccError as error:
            raise Unusable(Problem("damaged image", topic, str(error))) from None
        stamp_ns = stamp_of(message)
        if stamp_ns <= 0:
            raise Unusable(Problem("no stamp", topic, "images have no stamp (header.stamp is zero)"))
        found.headers[header] += 1
        found.entries.append(LogEntry(stamp_ns, log_ns))
        found.sizes.append(header.size)

    def _info(self, topic: str, log_ns: int, kind: str, raw: bytes) -> None:
        if raw[STAMP_BYTES:] == self._last_info.get(topic):
            return
        self._last_info[topic] = raw[STAMP_BYTES:]
        if len(self.infos[topic]) < MAX_INFOS:
            self.infos[topic].append(self._reader.parsed(kind, raw))

    def _transforms(self, topic: str, log_ns: int, kind: str, raw: bytes) -> None:
        for stamped in self._reader.parsed(kind, raw).transforms:
            try:
                self.links[topic].append(Logged(link_of(stamped, topic), log_ns))
            except Unusable as error:
                self._tally.add(error.problem)

    def _odometry(self, topic: str, log_ns: int, kind: str, raw: bytes) -> None:
        self.odometry[topic].append(Logged(odometry_link(self._reader.parsed(kind, raw), topic), log_ns))

    def _cloud(self, topic: str, log_ns: int, kind: str, raw: bytes) -> None:
        self.clouds.append(LogEntry(stamp_of(self._reader.parsed(kind, raw)), log_ns))


def frames_of(links: Iterable[Logged]) -> set[str]:
    """The names of all frames."""
    return {name for logged in links for name in (logged.link.parent, logged.link.child)}
