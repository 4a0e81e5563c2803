"""Finds the same camera's images before and after a frame, each with the pose of its own time, in any source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from occ_core.camera import Camera
from occ_core.files import is_there
from occ_core.frame import Frame
from occ_core.geometry import inverse
from occ_core.sources.nuscenes import NuScenesSource, camera_of, read_image
from occ_core.sources.nuscenes_tables import SensorRecord
from occ_core.sources.open import FrameSource

BEFORE_AND_AFTER = (-1, 1)


class Neighbour(NamedTuple):
    """An image of `camera` (its number in the rig) shortly before or after that of the frame.

    Attributes:
        side: 0 before, 1 after.
        image: uint8 (h, w, 3), of the camera's own size.
        stamp_ns, world_from_cam: its time, and the (4, 4) of that time.
    """

    camera: int
    side: int
    image: np.ndarray
    stamp_ns: int
    world_from_cam: np.ndarray

    def from_cam(self, frame: Frame) -> np.ndarray:
        """The transform (4, 4) from the camera at the time of its image in `frame` to the camera at the time of this
        image."""
        camera = frame.rig.cameras[self.camera]
        return inverse(self.world_from_cam) @ frame.camera_world_from_ego[camera.name] @ camera.ego_from_cam

    def gap_ns(self, frame: Frame) -> int:
        """The time between this image and the camera's image in `frame`."""
        return abs(self.stamp_ns - frame.camera_stamp_ns[frame.rig.cameras[self.camera].name])


class Neighbours(Protocol):
    """Finds the neighbours of the frames of one source."""

    def around(self, frame: Frame, frame_index: int) -> Iterator[Neighbour]:
        """The neighbours that exist of the frame that the source has at `frame_index`."""


def neighbours_of(frames: FrameSource, scenes: set[str]) -> Neighbours:
    """Choose how neighbours are found: nuScenes lists every camera's own files, other sources have their frames."""
    return SweepNeighbours(frames, scenes) if isinstance(frames, NuScenesSource) else FrameNeighbours(frames)


class SweepNeighbours:
    """Finds each camera's nearest files before and after, sweeps included; some of them may not be on the disk."""

    def __init__(self, frames: NuScenesSource, scenes: set[str]) -> None:
        self._records: dict[tuple[str, str], tuple[SensorRecord | None, SensorRecord | None]] = {}
        for scene in sorted(scenes):
            by_channel: dict[str, list[SensorRecord]] = {}
            for record in frames.tables.records(scene):
                if record.modality == "camera":
                    by_channel.setdefault(record.channel, []).append(record)
            for channel, records in by_channel.items():
                for frame_index, own in enumerate(records):
                    if own.is_keyframe:
                        before = _first_like(own, reversed(records[:frame_index]))
                        after = _first_like(own, islice(records, frame_index + 1, None))
                        self._records[own.sample_token, channel] = (before, after)

    def around(self, frame: Frame, frame_index: int) -> Iterator[Neighbour]:
        for i, camera in enumerate(frame.rig):
            for side, record in enumerate(self._records.get((frame.token, camera.name), ())):
                if record is not None and camera.name in frame.images:
                    pose = record.world_from_ego @ record.ego_from_sensor
                    yield Neighbour(i, side, read_image(record), record.stamp_ns, pose)


def _first_like(own: SensorRecord, records: Iterable[SensorRecord]) -> SensorRecord | None:
    """The first record whose file is there and has the same size and lens, since pixels are compared with pixels."""
    lens = camera_of(own)
    return next((r for r in records if _is_through(lens, r) and is_there(r.path)), None)


def _is_through(lens: Camera, record: SensorRecord) -> bool:
    return record.size == lens.size and np.array_equal(camera_of(record).intrinsics, lens.intrinsics)


class FrameNeighbours:
    """Finds each camera's images in the previous and the next frame of the same scene."""

    def __init__(self, frames: FrameSource) -> None:
        self._frames, self._scenes = frames, [scene for scene, _ in frames.samples]

    def around(self, frame: Frame, frame_index: int) -> Iterator[Neighbour]:
        for side, step in enumerate(BEFORE_AND_AFTER):
            there = frame_index + step
            if not 0 <= there < len(self._scenes) or self._scenes[there] != frame.scene:
                continue
            near = self._frames[there]
            for i, camera in enumerate(frame.rig):
                if camera.name in frame.images and _is_another(camera, frame, near):
                    pose = near.camera_world_from_ego[camera.name] @ near.rig[camera.name].ego_from_cam
                    yield Neighbour(i, side, near.images[camera.name], near.camera_stamp_ns[camera.name], pose)


def _is_another(camera: Camera, frame: Frame, near: Frame) -> bool:
    """Whether `near` has an image of the camera that `frame` does not have too (two frames may share that of a slow
    camera), taken through the same lens."""
    name = camera.name
    if name not in near.images or near.camera_stamp_ns[name] == frame.camera_stamp_ns[name]:
        return False
    there = near.rig[name]
    return there.size == camera.size and np.array_equal(there.intrinsics, camera.intrinsics)
