"""What `occ bag check` says of a bag: a row for each camera with verdict, cause and cure; places, motion, LiDAR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from occ_core.errors import MissingTransform
from occ_core.frame import Frame
from occ_core.problems import Problem
from occ_core.sensor_messages import lens_words, looks_like_a_mosaic, view_deg
from occ_core.sources.bag import BagSource
from occ_core.sources.bag_cameras import Device
from occ_core.sources.bag_transforms import namespaces
from occ_core.transforms import TransformTree

UNUSABLE = ("clock", "late", "few images", "mosaic", "body frame", "sky", "infrared", "depth")
"""What makes a camera look unusable that is used all the same."""
FLAT = 8  # between the brightest and the darkest sample of a picture that shows nothing
LOST_SHARE = 0.1  # of a camera's images that are left out


@dataclass
class CameraRow:
    """One camera; what is not known is empty.

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
        """`ok`, `used` where a part is left out or something looks wrong, else `left out`."""
        return "left out" if not self.used else ("used" if self.problems else "ok")


class BagReport:
    """Reads all images of a bag once.

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
        self.sets, self.sweeps, stamps = 0, 0, []
        for frame in source if frames is None else frames:
            self.sets += 1
            seen(self.sets, frame)
            stamps.append(frame.stamp_ns)
            self.sweeps += frame.lidar is not None
            for name, image in frame.images.items():
                self._decoded[name] += 1
                if np.ptp(few := image[::8, ::8]) >= FLAT:
                    self._colours.setdefault(name, Counter())[bool((few == few[..., :1]).all())] += 1
                self._mosaics[name] += self._decoded[name] <= 3 and looks_like_a_mosaic(image)
            for camera in frame.rig:
                self._placed.setdefault(camera.name, view_deg(camera))
        self.seconds = (max(stamps) - min(stamps)) / 1e9 if stamps else 0.0
        self.rows = [self._row(device) for device in source.devices if device.name not in source.roster.views]
        names = {device.name for device in source.devices}
        absent = {name: problem for name, problem in source.refused.items() if name not in names}
        self.rows += [CameraRow(name, p.where, "0", problems=((p, 1),)) for name, p in absent.items()]

    @property
    def well(self) -> bool:
        """Every camera can be used and looks as if it were right."""
        return all(
            row.used and not any(self._spoils(problem, count, row) for problem, count in row.problems)
            for row in self.rows
        )

    def _spoils(self, problem: Problem, count: int, row: CameraRow) -> bool:
        of_all = self.source.survey.images[row.topic].messages
        return problem.kind in UNUSABLE or (problem.where == row.topic and count > LOST_SHARE * of_all)

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
        if self._all and device.name not in source.refused and not self._decoded[device.name]:
            said.append((Problem("few images", topic, "no image in any set"), 1))
        return said

    def tf_lines(self) -> list[str]:
        """Trees, links with two parents, and whose transforms are used."""
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
        topics = set(source.survey.odometry)
        return lines + [_line(problem, count) for problem, count in source.tally if problem.where in topics]

    def view_lines(self) -> list[str]:
        """Of topics that show what another camera does."""
        return [f"{name}: shows what {other} does, not used" for name, other in self.source.roster.views.items()]


def tf_path(tree: TransformTree, base_frame: str, frame: str) -> str:
    """Frames from the vehicle to the camera."""
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
