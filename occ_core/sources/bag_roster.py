"""Decides which cameras of a bag are used, with their lenses in time and the log entries of their images, and why
others are not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from occ_core.camera import Camera
from occ_core.errors import MissingTransform
from occ_core.limits import shown
from occ_core.problems import Problem, Tally, Unusable
from occ_core.sensor_messages import camera_from_info, frames_problem, is_rectified, require_size, stamp_of
from occ_core.sources.bag_cameras import BagCamera, Device, infrared, same_views
from occ_core.sources.bag_sets import AHEAD_S, BEHIND_S, clocks, wild_stamps
from occ_core.sources.bag_survey import LogEntry, Survey
from occ_core.sources.bag_transforms import motion_entries, namespaces, robot_of
from occ_core.transforms import TransformTree

LATE_S = 1.0
"""Images that reach the recorder so much later than the others' make a camera look unusable."""
TOLD_S = 0.1
"""Stamps that are off by more are worth a word: at 10 Hz an image then joins its neighbour's set."""
FEW = 0.5
"""Share of what most cameras have of images; with fewer a camera is worth a word, and is no key camera."""


class Lens(NamedTuple):
    """The calibration of a camera from a stamp on, in the frame that its CameraInfo names."""

    stamp_ns: int
    frame: str
    frame_from_cam: Camera


class Usable(NamedTuple):
    """A camera that is used: its topics, its lenses in time and the log entries of its images."""

    camera: BagCamera
    lenses: list[Lens]
    entries: list[LogEntry]

    def lens_at(self, stamp_ns: int) -> Lens:
        after = bisect_right(self.lenses, stamp_ns, key=lambda lens: lens.stamp_ns)
        return self.lenses[max(0, after - 1)]


class Roster:
    """Judges each device of a bag.

    Args:
        devices: those to look at.
        image_topics: device -> the topic that is its camera's.
        robot: the namespace whose transforms are in `tree`.
        moves: the vehicle's motion is known; then its clock counts, too.
        tally: takes what is left out.
        described: device -> its camera in the base frame, where a rig file has it; its CameraInfo is not looked at.

    Attributes:
        usable: by name.
        refused: name of each other camera -> why it is not used.
        views: name of a camera that shows what another one does -> that one's name.
        offsets_s: by how much each camera's stamps are ahead of the other cameras' at the same log times.
    """

    def __init__(
        self,
        devices: list[Device],
        image_topics: dict[str, str],
        survey: Survey,
        tree: TransformTree,
        base_frame: str,
        robot: str,
        moves: bool,
        tally: Tally,
        described: Mapping[str, Camera],
    ) -> None:
        self.devices, self.image_topics, self.survey = devices, image_topics, survey
        self.tree, self.base_frame, self.robot, self.tally = tree, base_frame, robot, tally
        self._moves, self._described = moves, described
        self.refused: dict[str, Problem] = {}
        self.views: dict[str, str] = {}
        self.offsets_s: dict[str, float] = {}
        found = [usable for device in devices if (usable := self._judged(device)) is not None]
        self.usable = {each.camera.name: each for each in self._in_time(self._without_views(found))}
        self._note_frames()

    def _refuse(self, device: Device, problem: Problem) -> None:
        self.refused[device.name] = problem
        self.tally.add(problem)

    def _judged(self, device: Device) -> Usable | None:
        """The camera with what can be used of it; None if that is nothing, and the reason is noted."""
        topic = self.image_topics[device.name]
        found, own = self.survey.images[topic], robot_of(topic, namespaces(self.survey))
        if not found.entries:
            said = self.tally.of(topic)
            first = said[0][0] if said else Problem("damaged image", topic, "no image can be read")
            self.refused[device.name] = first
        elif problem := infrared(device, topic, found):
            self._refuse(device, problem)
        elif device.name in self._described:
            lens = Lens(0, self.base_frame, self._described[device.name])
            return self._of_its_size(Usable(BagCamera(device.name, topic, ""), [lens], []))
        elif not device.info_topic:
            self._refuse(device, Problem("no CameraInfo", topic, f"no CameraInfo on '{device.beside}'"))
        elif own not in ("", self.robot):
            text = f"its transforms are those of '{own}', the others' those of '{self.robot or '/'}'"
            self._refuse(device, Problem("another robot", topic, text))
        else:
            return self._calibrated(device, topic)
        return None

    def _calibrated(self, device: Device, topic: str) -> Usable | None:
        """Add the camera's lenses, keep the images that have their size, and check that it has a mount on the
        vehicle."""
        found = self.survey.images[topic]
        header = found.header
        assert header is not None
        lenses: list[Lens] = []
        problem = None
        for info in self.survey.infos[device.info_topic]:
            try:
                lens = self._lens(device, topic, info, header.size)
            except Unusable as error:
                problem = error.problem
                self.tally.add(problem)
                continue
            if not lenses or not _same(lenses[-1], lens):
                lenses.append(lens)
        if not lenses:
            problem = problem or Problem("no CameraInfo", device.info_topic, "no message of it can be read")
            self.refused[device.name] = problem
            return None
        lenses = sorted(lenses, key=lambda lens: lens.stamp_ns)
        return self._of_its_size(Usable(BagCamera(device.name, topic, device.info_topic), lenses, []))

    def _of_its_size(self, camera: Usable) -> Usable | None:
        """Keep the images that have the calibrated size."""
        topic, problem = camera.camera.image_topic, None
        found = self.survey.images[topic]
        for entry, size in zip(found.entries, found.sizes, strict=True):
            try:
                require_size(size, camera.lens_at(entry.stamp_ns).frame_from_cam.size, topic)
                camera.entries.append(entry)
            except Unusable as error:
                problem = error.problem
                self.tally.add(problem)
        if not camera.entries and problem:
            self.refused[camera.camera.name] = problem
            return None
        return camera

    def _lens(self, device: Device, topic: str, info: Any, size: tuple[int, int]) -> Lens:
        frame, where = info.header.frame_id.lstrip("/"), device.info_topic
        if not frame:
            raise Unusable(Problem("camera frame", where, "empty frame_id, so the camera cannot be placed"))
        camera = camera_from_info(device.name, info, np.eye(4), is_rectified(topic), where, size)
        if camera.size != size:
            text = (
                f"images on '{topic}' are {size[0]} x {size[1]} px, CameraInfo says {camera.size[0]} x {camera.size[1]}"
            )
            raise Unusable(Problem("size", where, text))
        try:
            self.tree.require_connected(self.base_frame, frame)
        except MissingTransform as error:
            raise Unusable(Problem("place", where, str(error))) from None
        return Lens(stamp_of(info), frame, camera)

    def _without_views(self, usable: list[Usable]) -> list[Usable]:
        """Keep one camera of each device, unless others were asked for by name."""
        if any(device.asked for device in self.devices) or self._described:
            return usable
        frames = {each.camera.name: each.lenses[0].frame for each in usable}
        infos = {each.camera.name: self.survey.infos[each.camera.info_topic][-1] for each in usable}
        self.views = same_views([each.camera for each in usable], self.survey, frames, infos)
        return [each for each in usable if each.camera.name not in self.views]

    def _note_frames(self) -> None:
        """Say where a camera's CameraInfo names another frame than its images do, or the frame of another camera."""
        placed = [each for each in self.usable.values() if each.camera.info_topic]
        for each in placed:
            topic, frame = each.camera.image_topic, each.lenses[-1].frame
            if problem := frames_problem(frame, self.survey.images[topic].frame):
                self.tally.note(replace(problem, where=topic))
            alike = [other.camera.name for other in placed if other is not each and self._in_one_place(each, other)]
            if alike:
                found = f"its CameraInfo names '{shown(frame)}', as that of '{alike[0]}' does"
                self.tally.note(Problem("one frame", topic, found))

    def _in_one_place(self, a: Usable, b: Usable) -> bool:
        """In one frame, and not a stereo pair, of which P says how far one is from the other."""
        apart_px = [self.survey.infos[each.camera.info_topic][-1].p[3] for each in (a, b)]
        return a.lenses[-1].frame == b.lenses[-1].frame and abs(float(apart_px[0] - apart_px[1])) < 1e-6

    def _in_time(self, usable: list[Usable]) -> Iterator[Usable]:
        """Keep the cameras whose clock agrees with the others', without stamps that are wild or repeated."""
        good = []
        for each in usable:
            topic, wild = each.camera.image_topic, wild_stamps(each.entries)
            entries = [entry for entry, is_wild in zip(each.entries, wild, strict=True) if not is_wild]
            if wild.any():
                text = "stamps far from those before and after"
                self.tally.add(Problem("wild stamp", topic, text), int(wild.sum()))
            once = list({entry.stamp_ns: entry for entry in reversed(entries)}.values())[::-1]
            if len(once) < len(entries):
                self.tally.add(Problem("repeated stamp", topic, "stamps of images before"), len(entries) - len(once))
            good.append(each._replace(entries=once))
        moving = motion_entries(self.tree, self.survey, self.base_frame) if self._moves else []
        self.offsets_s, wander_s, common_s = clocks({each.camera.name: each.entries for each in good}, moving)
        most = max((len(each.entries) for each in good), default=0)
        for each in good:
            own, topic = self.offsets_s[each.camera.name], each.camera.image_topic
            if not -BEHIND_S <= own <= AHEAD_S:
                side = "ahead of" if own > 0 else "behind"
                problem = Problem("clock", topic, f"stamps are {abs(own):.1f} s {side} the other cameras'")
            elif abs(common_s) > BEHIND_S:
                side = "ahead of" if common_s > 0 else "behind"
                problem = Problem("clock", topic, f"stamps are {abs(common_s):.1f} s {side} those of TF and odometry")
            else:
                if own < -TOLD_S:
                    found = f"images are logged {-own:.1f} s later after their stamps than the other cameras'"
                    self.tally.note(Problem("late" if own < -LATE_S else "offset", topic, found))
                elif own > TOLD_S:
                    found = f"stamps are {own:.1f} s ahead of the other cameras'"
                    self.tally.note(Problem("offset", topic, found))
                elif (by_s := wander_s[each.camera.name]) > TOLD_S:
                    found = f"stamps wander by {by_s:.1f} s against the other cameras'"
                    self.tally.note(Problem("offset", topic, found))
                if len(each.entries) < FEW * most:
                    found = f"{len(each.entries)} images, where another camera has {most}"
                    self.tally.note(Problem("few images", topic, found))
                yield each
                continue
            self.refused[each.camera.name] = problem
            self.tally.add(problem)


def alike(camera: Camera, lens: Lens) -> bool:
    other = lens.frame_from_cam
    return (
        camera.size == other.size
        and camera.distortion == other.distortion
        and np.array_equal(camera.intrinsics, other.intrinsics)
    )


def _same(a: Lens, b: Lens) -> bool:
    return a.frame == b.frame and alike(a.frame_from_cam, b) and np.array_equal(
        a.frame_from_cam.ego_from_cam, b.frame_from_cam.ego_from_cam
    )  # fmt: skip
