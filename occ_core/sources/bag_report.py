"""The report of `occ bag check`: a row for each camera with verdict, cause and cure, then mounts, motion and LiDAR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from zlib import crc32

import numpy as np

from occ_core.errors import MissingTransform
from occ_core.frame import Frame
from occ_core.problems import Problem
from occ_core.sensor_messages import lens_words, looks_like_a_mosaic, view_deg
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_cameras import Device
from occ_core.sources.bag_transforms import namespaces
from occ_core.transforms import TransformTree

UNUSABLE = (
    "clock", "late", "few images", "mosaic", "body frame", "sky", "infrared", "depth", "centre", "blank", "frozen",
    "twins", "one frame", "side", "far", "below",
)  # fmt: skip
"""What makes a camera look unusable that is used all the same."""
HARMLESS = ("offset", "gaps", "grey", "folds", "rolled", "frames")
"""What is told and costs no image by itself."""
FLAT = 8  # between the brightest and the darkest sample of a colour, of a picture that shows nothing
FROZEN_M = 0.5  # so far the robot has to move for one picture again and again to be told
MAX_SPEED_M_S = 80.0
JUMP_M, JUMP_M_S2 = 0.5, 15.0  # a pose is off by more than this and than what so much acceleration explains
LOST_SHARE = 0.1  # of a camera's images that are left out


@dataclass
class CameraRow:
    """A row about one camera; unknown fields are empty.

    Attributes:
        used: frames hold its images.
        problems: with counts, the worst first; none where it is well.
    """

    name: str
    topic: str
    images: str = ""
    rate_hz: str = ""
    offset_ms: str = ""
    size: str = ""
    encoding: str = ""
    lens: str = ""
    looks: str = ""
    path: str = ""
    used: bool = False
    problems: tuple[tuple[Problem, int], ...] = ()

    @property
    def verdict(self) -> str:
        """`ok`; `used` if a part is left out or something looks wrong; else `left out`."""
        return "left out" if not self.used else ("used" if self.problems else "ok")


class BagReport:
    """Reads all images of a bag once, and reports on them.

    Args:
        source: the bag.
        seen: is told how many sets are read, and given the last of them.
        frames: the bag's, to look at these alone; None: at all.

    Attributes:
        rows: one a camera, those that show what another one does left out.
        sets, seconds: image sets, and the time that they span.
        sweeps: sets with a LiDAR sweep.
    """

    def __init__(
        self,
        source: BagSource,
        seen: Callable[[int, Frame], None] = lambda sets, frame: None,
        frames: Iterable[Frame] | None = None,
    ) -> None:
        self.source, self._all = source, frames is None
        self._decoded: Counter[str] = Counter()
        self._mosaics: Counter[str] = Counter()
        self._colours: dict[str, Counter[bool]] = {}
        self._placed: dict[str, tuple[float, float]] = {}
        self._flat: Counter[str] = Counter()
        self._pictures: dict[str, list[int]] = {}  # of each image a checksum, by camera
        self._shared: dict[str, Counter[str]] = {}  # camera -> how often another one's image was the same
        self._ways: list[tuple[float, np.ndarray]] = []  # (time in s, place in m) of each set
        self.sets, self.sweeps, stamps = 0, 0, []
        for frame in source if frames is None else frames:
            self.sets += 1
            seen(self.sets, frame)
            stamps.append(frame.stamp_ns)
            self._ways.append(((frame.stamp_ns - stamps[0]) / 1e9, frame.world_from_ego[:3, 3]))
            self._look_at(frame)
            self.sweeps += frame.lidar is not None
            for camera in frame.rig:
                self._placed.setdefault(camera.name, view_deg(camera))
        self.seconds = (max(stamps) - min(stamps)) / 1e9 if stamps else 0.0
        self.rows = [self._row(device) for device in source.devices if device.name not in source.roster.views]
        names = {device.name for device in source.devices}
        absent = {name: problem for name, problem in source.refused.items() if name not in names}
        self.rows += [CameraRow(name, p.where, "0", problems=((p, 1),)) for name, p in absent.items()]

    def _look_at(self, frame: Frame) -> None:
        """Count what the pictures of a set tell."""
        seen: dict[int, str] = {}
        for name, image in frame.images.items():
            self._decoded[name] += 1
            few = image[::7, ::7]  # odd, so that both phases of a mosaic are among them
            if np.ptp(few, axis=(0, 1)).max() >= FLAT:
                self._colours.setdefault(name, Counter())[bool((few == few[..., :1]).all())] += 1
                picture = crc32(np.ascontiguousarray(image).data)
                self._pictures.setdefault(name, []).append(picture)
                other = seen.setdefault(picture, name)
                if other != name:
                    self._shared.setdefault(name, Counter())[other] += 1
            else:
                self._flat[name] += 1
            self._mosaics[name] += self._decoded[name] <= 3 and looks_like_a_mosaic(image)

    @property
    def well(self) -> bool:
        """Whether every camera can be used and looks right, and the poses are a vehicle's."""
        return self.speed_m_s <= MAX_SPEED_M_S and all(
            row.used and not any(self._spoils(problem, count, row) for problem, count in row.problems)
            for row in self.rows
        )

    def _spoils(self, problem: Problem, count: int, row: CameraRow) -> bool:
        of_all = self.source.survey.images[row.topic].messages
        loses = problem.where == row.topic and problem.kind not in HARMLESS and count > LOST_SHARE * of_all
        return problem.kind in UNUSABLE or loses

    def _row(self, device: Device) -> CameraRow:
        source, topic = self.source, self.source.image_topics[device.name]
        found = source.survey.images[topic]
        row = CameraRow(device.name, topic, f"{found.messages}", used=device.name not in source.refused)
        stamps = sorted(entry.stamp_ns for entry in found.entries)
        steps = [b - a for a, b in zip(stamps, stamps[1:], strict=False) if b > a]
        row.rate_hz = f"{1e9 / median(steps):.1f}" if steps else ""
        if (header := found.header) is not None:
            row.size, row.encoding = f"{header.size[0]} x {header.size[1]}", header.encoding
        if device.name in source.roster.offsets_s:
            row.offset_ms = f"{round(source.roster.offsets_s[device.name] * 1e3):+d}"
        if row.used:
            lens = source.lenses_of(device.name)[-1]
            row.lens, row.path = lens_words(lens.frame_from_cam), tf_path(source.tree, source.base_frame, lens.frame)
            if device.name in self._placed:
                azimuth_deg, elevation_deg = self._placed[device.name]
                row.looks = f"{round(azimuth_deg):+d} / {round(elevation_deg):+d}"
            row.images = f"{self._decoded[device.name]} of {found.messages}" if self._all else f"{found.messages}"
        row.problems = tuple(self._problems(device, topic))
        return row

    def _problems(self, device: Device, topic: str) -> list[tuple[Problem, int]]:
        source = self.source
        said = [*source.tally.of(topic), *(source.tally.of(device.info_topic) if device.info_topic else [])]
        refused = source.refused.get(device.name)
        if refused is not None:
            counts = {problem.kind: count for problem, count in said}
            said = [(problem, count) for problem, count in said if problem.kind != refused.kind]
            said.insert(0, (refused, counts.get(refused.kind, 1)))
        if self._mosaics[device.name]:
            said.append((Problem("mosaic", topic, "grey images with a Bayer pattern"), 1))
        grey, colour = (self._colours.get(device.name, Counter())[is_grey] for is_grey in (True, False))
        if grey and colour:
            text = f"{grey} of {grey + colour} images are grey, the others in colour"
            said.append((Problem("grey", topic, text), 1))
        said += ((problem, 1) for problem in self._of_the_pictures(device.name, topic))
        if self._all and device.name not in source.refused and not self._decoded[device.name]:
            said.append((Problem("few images", topic, "no image in any set"), 1))
        return said

    def _of_the_pictures(self, name: str, topic: str) -> Iterator[Problem]:
        flat, shown, count = self._flat[name], self._pictures.get(name, []), self._decoded[name]
        if 2 * flat > count:
            yield Problem("blank", topic, f"{flat} of {count} images show one colour alone")
        again = sum(a == b for a, b in zip(shown, shown[1:], strict=False))
        if 2 * again > len(shown) > 2 and self.way_m > FROZEN_M:
            found = f"{again} of {count} images are the one before again, while the robot moves {self.way_m:.1f} m"
            yield Problem("frozen", topic, found)
        other, times = max(self._shared.get(name, Counter()).items(), key=lambda item: item[1], default=("", 0))
        if 2 * times > count:
            yield Problem("twins", topic, f"{times} of {count} images are those of '{other}'")

    @property
    def way_m(self) -> float:
        """The length of the vehicle's way in metres."""
        return float(sum(np.linalg.norm(b - a) for (_, a), (_, b) in pairwise(self._ways)))

    @property
    def speed_m_s(self) -> float:
        """The median speed between sets."""
        steps = [(b[0] - a[0], float(np.linalg.norm(b[1] - a[1]))) for a, b in pairwise(self._ways)]
        return float(np.median([way_m / time_s for time_s, way_m in steps if time_s > 0] or [0.0]))

    def jumps_m(self) -> list[float]:
        """The distances of poses from where the steps before lead, where no vehicle could have got there."""
        off_m = []
        for (t0, a), (t1, b), (t2, c) in zip(self._ways, self._ways[1:], self._ways[2:], strict=False):
            if t0 < t1 < t2:
                by_m = float(np.linalg.norm((c - b) - (b - a) * (t2 - t1) / (t1 - t0)))
                before_m = max(float(np.linalg.norm(b - a)), float(np.linalg.norm(c - b)))
                if by_m > JUMP_M + JUMP_M_S2 * (t2 - t1) * (t2 - t0) / 2 and before_m > JUMP_M:
                    off_m.append(by_m)
        return off_m

    def tf_lines(self) -> list[str]:
        """Lines about trees, links with two parents, and whose transforms are used."""
        source = self.source
        spaces = namespaces(source.survey)
        lines = []
        if len(spaces) > 1:
            named = ", ".join(space or "/" for space in spaces)
            lines.append(f"transforms of several robots: {named}; used: {source.robot or '/'} (choose by --camera)")
        roots = sorted({source.tree.ancestors(frame)[-1] for frame in source.tree.frames})
        for root in roots:
            below = sorted(f for f in source.tree.frames if source.tree.ancestors(f)[-1] == root)
            shown = ", ".join(below[:12]) + (", ..." if len(below) > 12 else "")
            lines.append(f"tree below '{root}': {len(below)} frames ({shown})")
        topics = set(source.survey.links)
        lines += [_line(problem, count) for problem, count in source.tally if problem.where in topics]
        return lines

    def motion_lines(self) -> list[str]:
        source = self.source
        if source.world_frame is None:
            lines = ["standing still: neither TF nor odometry says how the vehicle moves"]
        else:
            origin = f" by {source.odometry_topic}" if source.odometry_topic else ""
            lines = [f"'{source.base_frame}' in '{source.world_frame}'{origin}"]
        if self.speed_m_s > MAX_SPEED_M_S:
            lines.append(_line(Problem("speed", "", f"the vehicle moves at {self.speed_m_s:.0f} m/s"), 1))
        elif jumps_m := self.jumps_m():
            # each lies in two steps: that to it and that from it
            found = f"the vehicle jumps by up to {max(jumps_m):.1f} m in {(len(jumps_m) + 1) // 2} places"
            lines.append(_line(Problem("jump", "", found), 1))
        topics = set(source.survey.odometry)
        return lines + [_line(problem, count) for problem, count in source.tally if problem.where in topics]

    def view_lines(self) -> list[str]:
        """Lines about topics that show what another camera does."""
        return [f"{name}: shows what {other} does, not used" for name, other in self.source.roster.views.items()]


def tf_path(tree: TransformTree, base_frame: str, frame: str) -> str:
    """The frames from the vehicle to the camera."""
    try:
        tree.require_connected(base_frame, frame)
    except MissingTransform:
        return ""
    up, down = tree.ancestors(base_frame), tree.ancestors(frame)
    common = next(name for name in down if name in up)
    return " > ".join([*up[: up.index(common)], *reversed(down[: down.index(common) + 1])])


def _line(problem: Problem, count: int) -> str:
    times = f"{count} x " if count > 1 else ""
    return f"{times}{problem}; cause: {problem.cause}; cure: {problem.cure}"
