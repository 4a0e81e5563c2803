"""Finds the same camera's images before and after a frame at useful distances, each with the pose of its own time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from occ_core.camera import Camera
from occ_core.errors import OccError
from occ_core.files import is_there
from occ_core.frame import Frame
from occ_core.network_input.pinhole import NOT_FISHEYE, pinhole_frame
from occ_core.sources.nuscenes import NuScenesSource, camera_of, read_image
from occ_core.sources.nuscenes_tables import SensorRecord
from occ_core.sources.open import FrameSource, open_source

LEAST_M, BETTER_M, MOST_M = 0.5, 2.0, 6.0
"""How far the camera has moved: what is looked for first, what is taken as well, and the end of the latter's search."""
MOST_NS = 3_000_000_000
MOST_FRAMES = 30  # that are looked through on either side
FRAMES_KEPT = 8


@dataclass(frozen=True, eq=False)
class NearbyImage:
    """One image of a camera. `read` gives it, uint8 (h, w, 3)."""

    camera: Camera
    world_from_cam: np.ndarray
    read: Callable[[], np.ndarray]


class NearbyImages:
    """Finds nearby images in one data set, which is opened on first use.

    Args:
        dataroot: what `open_source` opens. version: table folder of nuScenes layout.
    """

    def __init__(self, dataroot: Path, version: str | None = None) -> None:
        self.dataroot, self.version = Path(dataroot), version

    def around(self, frame: Frame, name: str) -> tuple[list[NearbyImage], list[NearbyImage]]:
        """At most two images before, and two after, that of camera `name`; the nearer one first.

        One that cannot be read is passed over.
        """
        place_m = (frame.camera_world_from_ego[name] @ frame.rig[name].ego_from_cam)[:3, 3]
        before, after = self._in_time(frame, name)
        return _chosen(before, place_m), _chosen(after, place_m)

    def _in_time(self, frame: Frame, name: str) -> tuple[Iterator[NearbyImage], Iterator[NearbyImage]]:
        stamp_ns, source = frame.camera_stamp_ns[name], _open(self.dataroot, self.version)
        if isinstance(source, NuScenesSource) and (records := _records(self.dataroot, self.version, frame.scene, name)):
            near = [r for r in records if abs(r.stamp_ns - stamp_ns) <= MOST_NS]
            before = [r for r in reversed(near) if r.stamp_ns < stamp_ns]
            after = [r for r in near if r.stamp_ns > stamp_ns]
            return _of_records(before), _of_records(after)
        numbers = _numbers(self.dataroot, self.version)
        own = numbers.get((frame.scene, frame.token))
        if own is None:
            return iter(()), iter(())
        last = len(source)
        return (
            self._of_frames(range(own - 1, max(own - MOST_FRAMES, 0) - 1, -1), frame, name),
            self._of_frames(range(own + 1, min(own + MOST_FRAMES, last)), frame, name),
        )

    def _of_frames(self, numbers: Iterable[int], frame: Frame, name: str) -> Iterator[NearbyImage]:
        for number in numbers:
            try:
                near = _frame(self.dataroot, self.version, number)
            except OccError:
                continue
            if near.scene != frame.scene:
                return
            if name not in near.images or near.camera_stamp_ns[name] == frame.camera_stamp_ns[name]:
                continue
            if abs(near.camera_stamp_ns[name] - frame.camera_stamp_ns[name]) > MOST_NS:
                return
            camera = near.rig[name]
            pose = near.camera_world_from_ego[name] @ camera.ego_from_cam
            yield NearbyImage(camera, pose, partial(near.images.__getitem__, name))


def _of_records(records: Iterable[SensorRecord]) -> Iterator[NearbyImage]:
    for record in records:
        if is_there(record.path):
            pose = record.world_from_ego @ record.ego_from_sensor
            yield NearbyImage(camera_of(record), pose, partial(read_image, record))


def _chosen(shots: Iterator[NearbyImage], place_m: np.ndarray) -> list[NearbyImage]:
    """The first that is LEAST_M away, and the first that is BETTER_M away if that is another, not beyond MOST_M."""
    chosen: list[NearbyImage] = []
    for shot in shots:
        moved_m = float(np.linalg.norm(shot.world_from_cam[:3, 3] - place_m))
        if chosen and moved_m > MOST_M:
            break
        if moved_m >= (BETTER_M if chosen else LEAST_M):
            chosen.append(shot)
        if len(chosen) == 2:
            break
    return chosen


@lru_cache(maxsize=4)
def _open(dataroot: Path, version: str | None) -> FrameSource:
    return open_source(dataroot, version=version)


@lru_cache(maxsize=64)
def _records(dataroot: Path, version: str | None, scene: str, channel: str) -> list[SensorRecord]:
    source = _open(dataroot, version)
    assert isinstance(source, NuScenesSource)
    if scene not in source.scenes:
        return []
    return [r for r in source.tables.records(scene) if r.modality == "camera" and r.channel == channel]


@lru_cache(maxsize=4)
def _numbers(dataroot: Path, version: str | None) -> dict[tuple[str, str], int]:
    return {sample: number for number, sample in enumerate(_open(dataroot, version).samples)}


@lru_cache(maxsize=FRAMES_KEPT)
def _frame(dataroot: Path, version: str | None, number: int) -> Frame:
    frame = _open(dataroot, version)[number]
    return pinhole_frame(frame, kept=NOT_FISHEYE)  # labels, too, are made from views of a fisheye, called like these
