"""Reads frames of any ROS 2 bag that has images, CameraInfo and TF (or odometry). It needs no ROS installation.

One pass (`bag_survey`) tells what is there; a camera, image, CameraInfo, transform, odometry message or stamp that
cannot be used is left out, counted and named, and the rest is used. Images are read when a frame is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.ego_mask import with_masks
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingTransform
from occ_core.frame import FULL_INTENSITY, Frame, LidarSweep
from occ_core.problems import Problem, Tally, Unusable
from occ_core.sensor_messages import image_of, lens_problem, mount_problems, stamp_of
from occ_core.sources.bag_cameras import (
    BagCamera,
    chosen_topic,
    described_by,
    described_cameras,
    find_devices,
    without_images,
)
from occ_core.sources.bag_reader import BagReader
from occ_core.sources.bag_roster import FEW, Lens, Roster, alike
from occ_core.sources.bag_sets import grouped
from occ_core.sources.bag_survey import CLOUD, TF, LogEntry, Survey
from occ_core.sources.bag_transforms import add_odometry, build_tree, namespaces, robot_of, world_of
from occ_core.sources.clouds import lidar_of
from occ_core.transforms import TransformTree

GAPS = 0.1  # share of the sets; so many without an image of a camera are worth a word


class BagSource:
    """The frames of a bag in time order. An image joins the set of the key camera's image that is nearest to it.

    The key camera is the first of `cameras`, else the one whose name ends in `front`, else the first by name; its
    stamps and poses are the frames' references. A set whose transforms are not in the bag is skipped and counted in
    `skipped`; if that befalls all of them, reading raises.

    Args:
        path: folder of the bag, or its .mcap or .db3 file. Cameras that a `rig.yaml` beside it describes (see
            `occ_core.rig_file`) need neither CameraInfo nor TF.
        cameras: names (namespaces such as `cam_front`) or image topics; None: every camera that can be used.
        base_frame: the ego frame.
        world_frame: None: `odom`, which never jumps (REP 105), else `map`, else the frame of odometry messages; if
            there is none, the vehicle counts as standing still (attribute `world_frame` is None).
        lidar: PointCloud2 topic; None: the one that has `lidar` or `points` in its name, if it is only one.
        max_spread_s: an image farther from the key image is left out of its set.
        intensity_max: of a LiDAR return, as the driver counts: 255 for most, 1 where it gives shares.
        exclude: cameras that are not looked at, by name or topic.
        strict: the first problem is raised, instead of leaving out what has it.
        masks_by: beside what ego masks are looked for; None: the bag.

    Attributes:
        cameras: those that are used.
        refused: name of each other camera -> why it is not used.
        tally: what was left out and how often, and what is used all the same but worth a word.
        roster: says more of both.

    Raises:
        MissingInput, CorruptInput, InvalidInput: naming the topic and what is missing, where no camera can be used.
    """

    def __init__(
        self,
        path: Path | str,
        cameras: list[str] | None = None,
        base_frame: str = "base_link",
        world_frame: str | None = None,
        lidar: str | None = None,
        max_spread_s: float = 0.1,
        intensity_max: float = FULL_INTENSITY,
        exclude: Sequence[str] = (),
        strict: bool = False,
        masks_by: Path | None = None,
    ) -> None:
        self.reader = BagReader(path)
        self.path = self.reader.path
        self._masks_by = masks_by or self.path
        self.base_frame = base_frame.lstrip("/")
        rig_file = described_cameras(self.reader)
        self.devices = find_devices(self.reader, cameras, exclude, described=bool(rig_file))
        described = described_by(rig_file, self.reader, self.devices)
        self.lidar_topic = find_lidar(self.reader, lidar)
        if not self.reader.of_type(TF) and not described:
            text = "no TF (/tf, /tf_static), so the cameras' places on the vehicle are unknown"
            raise MissingInput(f"{self.path}: {text}")
        self.tally = Tally(strict)
        topics = {topic for device in self.devices for topic in (*device.topics, device.info_topic)}
        self.survey = Survey(self.reader, self.lidar_topic, self.tally, topics)
        self.image_topics = {device.name: chosen_topic(device, self.survey) for device in self.devices}
        self.robot = self._robot()
        self.tree: TransformTree = build_tree(self.survey, self.robot, self.tally)
        self.odometry_topic = add_odometry(self.tree, self.survey, self.robot, self.base_frame, self.tally)
        placed = self.base_frame in self.tree.frames or not described
        self.world_frame = world_of(self.tree, self.base_frame, world_frame, self.path) if placed else None
        transforms = self.tree, self.base_frame, self.robot, self.world_frame is not None
        self.roster = Roster(self.devices, self.image_topics, self.survey, *transforms, self.tally, described)
        self._usable = self.roster.usable
        absent = {} if cameras is not None else without_images(self.reader)
        for problem in absent.values():
            self.tally.note(problem)
        self.refused = self.roster.refused | absent
        self.cameras = [each.camera for each in self._usable.values()]
        if not self.cameras:
            why = "; ".join(f"{p} (cause: {p.cause}; cure: {p.cure})" for p in dict.fromkeys(self.refused.values()))
            raise InvalidInput(f"{self.path}: no camera can be used: {why}")
        self.key = self._key_camera(asked=cameras is not None)
        self._spread_ns = int(max_spread_s * 1e9)
        self._intensity_max = intensity_max
        self._undecoded: set[tuple[str, int]] = set()
        self.skipped: Counter[str] = Counter()
        self._rig: Rig | None = None
        self._note_gaps()

    def _note_gaps(self) -> None:
        """Name the cameras that are missing in many of the key camera's sets, beyond the images that are named
        already."""
        sets = [entries for entries, _ in self.sets()]
        for name, each in self._usable.items():
            said = {problem.kind: count for problem, count in self.tally.of(each.camera.image_topic)}
            lost = sum(name not in entries for entries in sets)
            if "few images" not in said and lost - sum(said.values()) > max(1, GAPS * len(sets)):
                found = f"no image of it in {lost} of {len(sets)} sets"
                self.tally.note(Problem("gaps", each.camera.image_topic, found))

    def _robot(self) -> str:
        """The namespace of transforms to which most cameras belong."""
        spaces = namespaces(self.survey)
        robots = [robot_of(self.image_topics[device.name], spaces) for device in self.devices]
        if self.devices[0].asked:
            return robots[0]
        return min(robots, key=lambda robot: (-robots.count(robot), robot))

    def _key_camera(self, asked: bool) -> BagCamera:
        if asked:
            return self.cameras[0]
        most = max(len(each.entries) for each in self._usable.values())
        often = [each.camera for each in self._usable.values() if len(each.entries) >= FEW * most]
        return next((camera for camera in often if camera.name.endswith("front")), often[0])

    def lenses_of(self, name: str) -> list[Lens]:
        """The lenses of a used camera, in time order."""
        return self._usable[name].lenses

    # --- frames ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        answered, reason = 0, None
        for entries, cloud in self.sets():
            try:
                self.poses_at({name: entry.stamp_ns for name, entry in entries.items()})
            except MissingTransform as error:
                reason = error
                self.skipped["no transform at its stamp"] += 1
                continue
            answered += 1
            yield self.frame(*self.read(entries, cloud))
        if not answered and reason is not None:
            raise MissingTransform(f"{self.path}: none of {self.skipped.total()} image sets can be placed: {reason}")

    def stamps(self) -> Iterator[dict[str, int]]:
        """For each set, the stamps by camera name, in ns. No message is read."""
        return ({name: entry.stamp_ns for name, entry in entries.items()} for entries, _ in self.sets())

    def sets(self) -> list[tuple[dict[str, LogEntry], LogEntry | None]]:
        """For each set, the log entries of its images by camera name, and that of its cloud or None."""
        others = {name: each.entries for name, each in self._usable.items() if name != self.key.name}
        keys = sorted(self._usable[self.key.name].entries, key=lambda entry: entry.log_ns)
        found = grouped(keys, {**others, "": self.survey.clouds}, self._spread_ns)
        sets = []
        for key, near in zip(keys, found, strict=True):
            cloud = near.pop("", None)
            sets.append(({self.key.name: key, **near}, cloud))
        return sets

    def read(self, entries: dict[str, LogEntry], cloud: LogEntry | None) -> tuple[dict[str, Any], Any]:
        """Read the image messages by camera name, and the cloud message or None, of one of `sets`.

        Raises:
            CorruptInput: they are no longer there.
        """
        topics = {self._usable[name].camera.image_topic: name for name in entries}
        wanted: dict[str, LogEntry] = {topic: entries[name] for topic, name in topics.items()}
        if cloud is not None and self.lidar_topic is not None:
            wanted[self.lidar_topic] = cloud
        found = self.messages(wanted)
        return {name: found[topic] for topic, name in topics.items()}, found.get(self.lidar_topic)

    def messages(self, wanted: dict[str, LogEntry]) -> dict[str | None, Any]:
        """Read the messages of the wanted topics at their log entries.

        Raises:
            CorruptInput: one is no longer there.
        """
        first, last = (pick(entry.log_ns for entry in wanted.values()) for pick in (min, max))
        found: dict[str | None, Any] = {}
        logged = {topic: entry.log_ns for topic, entry in wanted.items()}
        for topic, log_ns, kind, raw in self.reader.raw_messages(list(wanted), first, last + 1):
            if log_ns == logged[topic]:
                message = self.reader.parsed(kind, raw)
                if stamp_of(message) == wanted[topic].stamp_ns:
                    found[topic] = message
        if lost := sorted(set(wanted) - set(found)):
            raise CorruptInput(f"{self.path}: changed since it was opened: no message of {', '.join(lost)} any more")
        return found

    def frame(self, images: dict[str, Any], cloud: Any) -> Frame:
        """Make the frame of the messages that `read` returned; images that cannot be decoded are left out."""
        stamps = {name: stamp_of(message) for name, message in images.items()}
        rig, poses = self.poses_at(stamps)
        for name in stamps.keys() - poses.keys():
            self.skipped[f"image of '{name}': no transform at its stamp"] += 1
        decoded = {name: self._decode(name, images[name]) for name in poses}
        return Frame(
            stamp_ns=stamps[self.key.name],
            world_from_ego=poses[self.key.name],
            rig=rig,
            images={name: image for name, image in decoded.items() if image is not None},
            camera_stamp_ns={name: stamps[name] for name, image in decoded.items() if image is not None},
            camera_world_from_ego={name: poses[name] for name, image in decoded.items() if image is not None},
            lidar=None if cloud is None else self._lidar(cloud),
            scene=self.path.stem,
            has_pose=self.world_frame is not None,
        )

    def poses_at(self, stamps: dict[str, int]) -> tuple[Rig, dict[str, np.ndarray]]:
        """The rig, and world_from_ego (4, 4) at the stamp of each image whose camera can be placed on the vehicle then.

        Raises:
            MissingTransform: TF does not cover them.
        """
        rig, placed = self._rig_at(stamps)
        poses = {}
        for name in [name for name in stamps if name in placed]:
            try:
                poses[name] = self._world_from_ego(stamps[name])
            except MissingTransform:
                if name == self.key.name:
                    raise
        return rig, poses

    def _decode(self, name: str, message: Any) -> np.ndarray | None:
        topic = self._usable[name].camera.image_topic
        try:
            return image_of(message, where=topic)
        except Unusable as error:
            key = topic, stamp_of(message)
            if key not in self._undecoded:
                self._undecoded.add(key)
                self.tally.add(error.problem)
            return None

    def _rig_at(self, stamps: dict[str, int]) -> tuple[Rig, set[str]]:
        """The rig, made anew only when a camera's mount or lens changed, and the cameras that can be placed."""
        cameras, placed = [], set()
        before = {camera.name: camera for camera in self._rig or ()}
        for name, each in self._usable.items():
            stamp_ns = stamps.get(name, stamps[self.key.name])
            lens, old = each.lens_at(stamp_ns), before.get(name)
            try:
                ego_from_frame = self.tree.lookup(self.base_frame, lens.frame, stamp_ns)
                placed.add(name)
            except MissingTransform:
                if name == self.key.name:
                    raise
                if old is not None:
                    cameras.append(old)
                continue
            ego_from_cam = ego_from_frame @ lens.frame_from_cam.ego_from_cam
            same = old is not None and np.allclose(old.ego_from_cam, ego_from_cam, atol=1e-9) and alike(old, lens)
            if old is not None and same:
                cameras.append(old)
                continue
            cameras.append(_moved(lens.frame_from_cam, ego_from_cam))
            self._note_camera(cameras[-1], lens.frame, each.camera.image_topic)
        if self._rig is None or any(camera is not before.get(camera.name) for camera in cameras):
            self._rig = with_masks(Rig(tuple(cameras)), self._masks_by, self.path.stem)
        return self._rig, placed

    def _note_camera(self, camera: Camera, frame: str, topic: str) -> None:
        """Say once what is odd about a camera's lens or place."""
        said = {problem.kind for problem, _ in self.tally.of(topic)}
        for problem in (lens_problem(camera), *mount_problems(camera, frame)):
            if problem is not None and problem.kind not in said:
                self.tally.note(replace(problem, where=topic))

    def _world_from_ego(self, stamp_ns: int) -> np.ndarray:
        return np.eye(4) if self.world_frame is None else self.tree.lookup(self.world_frame, self.base_frame, stamp_ns)

    # --- LiDAR ----------------------------------------------------------------------------------------------------

    def _lidar(self, cloud: Any) -> LidarSweep | None:
        try:
            return self.sweep(cloud)
        except MissingTransform:
            self.skipped[f"LiDAR sweep on '{self.lidar_topic}': no transform"] += 1
            return None

    def sweep(self, cloud: Any) -> LidarSweep:
        """The sweep of a PointCloud2 message, placed in the world at its own stamp.

        Raises:
            MissingTransform: TF does not place the LiDAR at its stamp. CorruptInput: the message is no cloud.
        """
        stamp_ns = stamp_of(cloud)
        where = f"{self.path}: '{self.lidar_topic}' at {stamp_ns} ns"
        try:
            ego_from_lidar = self.tree.lookup(self.base_frame, cloud.header.frame_id, stamp_ns)
            world_from_ego = self._world_from_ego(stamp_ns)
            points, intensity, ring = lidar_of(cloud, self._intensity_max)
        except MissingTransform as error:
            raise MissingTransform(f"{where}: no pose for the LiDAR sweep: {error}") from error
        except InvalidInput as error:
            raise CorruptInput(f"{where}: {error}") from error
        return LidarSweep(points, intensity, ring, ego_from_lidar, stamp_ns, world_from_ego)


def find_lidar(reader: BagReader, wanted: str | None = None) -> str | None:
    """The PointCloud2 topic `wanted`, or else the only one that has `lidar` or `points` in its name.

    Raises:
        MissingInput: the bag does not have the wanted one.
    """
    clouds = reader.of_type(CLOUD)
    if wanted is not None:
        if wanted not in clouds:
            raise MissingInput(f"{reader.path}: no point clouds on '{wanted}', only on: {', '.join(clouds) or 'none'}")
        return wanted
    likely = [topic for topic in clouds if "lidar" in topic.lower() or "points" in topic.lower()]
    return likely[0] if len(likely) == 1 else None


def _moved(camera: Camera, ego_from_cam: np.ndarray) -> Camera:
    return replace(camera, ego_from_cam=ego_from_cam)
