"""Reads frames of a nuScenes v1.0 data set: real, simulated, or anything in that layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.ego_mask import with_masks
from occ_core.errors import CorruptInput, MissingInput, OccError
from occ_core.files import is_there
from occ_core.frame import Frame, LidarSweep, Shot, file_in
from occ_core.images import decode_compressed
from occ_core.sources.clouds import rows_of_file
from occ_core.sources.nuscenes_tables import NuScenesTables, SensorRecord, pose_between

CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
MAX_SPREAD_NS = 100_000_000
"""Images of one set of sweeps lie within this of the key camera's; the six cameras fire over 50 ms."""
LIDAR_ROW = 5  # float32 x, y, z, intensity, ring


@dataclass(frozen=True, eq=False)
class _Set:
    """The records that make up one frame."""

    scene: str
    token: str
    stamp_ns: int
    world_from_ego: np.ndarray
    cameras: tuple[SensorRecord, ...]
    lidar: SensorRecord | None


class NuScenesSource:
    """The frames of a nuScenes v1.0 data set, scene by scene in time order: `len(source)`, `source[i]`, or iterate.

    A keyframe's reference is the LiDAR's stamp and ego pose; without LiDAR the sample's stamp and the pose between the
    cameras' ego poses. A LiDAR's file is read when `frame.lidar` is asked for: its row alone gives stamp and pose.
    With `sweeps`, each image of the key camera (CAM_FRONT) between two keyframes makes one more
    frame: the nearest image of every other camera, reference = the key camera's stamp and pose, no token.

    Args:
        dataroot: folder of the data set, or its tables where they are open already.
        version: table folder, as of NuScenesTables.
        scenes: names; None: all.
        sweeps: also yield what lies between keyframes.

    Raises:
        MissingInput, CorruptInput: at construction for tables, when a frame is read for its files.
    """

    def __init__(
        self,
        dataroot: Path | str | NuScenesTables,
        version: str | None = None,
        scenes: list[str] | None = None,
        sweeps: bool = False,
    ) -> None:
        self.tables = dataroot if isinstance(dataroot, NuScenesTables) else NuScenesTables(dataroot, version)
        self.scenes = self.tables.require_scenes(scenes)
        self._rigs: dict[tuple[str, tuple[tuple[str, tuple[int, int]], ...]], Rig] = {}
        self._lidars: dict[str, list[SensorRecord]] = {}  # scene -> in time order, sweeps included
        self._sets = [entry for scene in self.scenes for entry in self._sets_of(scene, sweeps)]

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> list[str]:
        """The sample token of each frame, empty for sweeps."""
        return [entry.token for entry in self._sets]

    @property
    def cameras(self) -> list[str]:
        """The names of all cameras of the chosen frames."""
        return sorted({record.channel for entry in self._sets for record in entry.cameras})

    @property
    def samples(self) -> list[tuple[str, str]]:
        """(scene, token) of each frame, the token empty for sweeps."""
        return [(entry.scene, entry.token) for entry in self._sets]

    @property
    def names(self) -> list[str]:
        """The name of each frame's prediction: its token, which no other sample has."""
        return self.tokens

    def files(self, index: int, lidar: bool = False) -> list[Path]:
        """The files of a frame's images, and with `lidar` that of its sweep if it has one."""
        entry = self._sets[index]
        records = [*entry.cameras, *([entry.lidar] if lidar and entry.lidar else [])]
        return [record.path for record in records]

    def shots(self, index: int) -> dict[str, Shot]:
        """The images of a frame, by camera name. Nothing is read."""
        root = self.tables.dataroot
        return {r.channel: Shot(r.stamp_ns, file_in(root, r.path)) for r in self._sets[index].cameras}

    def stamp_and_pose(self, index: int) -> tuple[int, np.ndarray]:
        """The frame's stamp_ns and the ego's pose then, world_from_ego (4, 4). No file is read."""
        return self._sets[index].stamp_ns, self._sets[index].world_from_ego

    def check(self, lidar: bool = True) -> list[Path]:
        """All sensor files of the chosen frames that are missing or empty."""
        return [path for index in range(len(self)) for path in self.files(index, lidar) if not is_there(path)]

    def __getitem__(self, index: int) -> Frame:
        entry = self._sets[index]
        rig = self._rig(entry.scene, entry.cameras)
        return Frame(
            stamp_ns=entry.stamp_ns,
            world_from_ego=entry.world_from_ego,
            rig=rig,
            images={record.channel: read_image(record) for record in entry.cameras},
            camera_stamp_ns={record.channel: record.stamp_ns for record in entry.cameras},
            camera_world_from_ego={record.channel: record.world_from_ego for record in entry.cameras},
            lidar=None if entry.lidar is None else partial(read_lidar, entry.lidar),
            token=entry.token,
            scene=entry.scene,
            is_keyframe=bool(entry.token),
            image_files={name: shot.file for name, shot in self.shots(index).items()},
        )

    def sweeps_before(self, index: int, count: int) -> list[LidarSweep]:
        """At most `count` sweeps of the frame's LiDAR, newest first, starting with the frame's own; none if the frame
        has none.

        Sweeps between keyframes count, too; earlier ones that were not downloaded are passed over.

        Raises:
            MissingInput, CorruptInput: naming the file.
        """
        own = self._sets[index].lidar
        if own is None:
            return []
        earlier = (
            record
            for record in reversed(self._lidars[self._sets[index].scene])
            if record.channel == own.channel and record.stamp_ns < own.stamp_ns and is_there(record.path)
        )
        return [read_lidar(record) for record in (own, *islice(earlier, count - 1))]

    def _rig(self, scene: str, records: tuple[SensorRecord, ...]) -> Rig:
        key = scene, tuple((record.calibration, record.size) for record in records)
        if key not in self._rigs:
            rig = Rig(tuple(camera_of(record) for record in records))
            self._rigs[key] = with_masks(rig, self.tables.dataroot, scene)
        return self._rigs[key]

    def _sets_of(self, scene: str, sweeps: bool) -> list[_Set]:
        records = self.tables.records(scene)
        self._lidars[scene] = [record for record in records if record.modality == "lidar"]
        by_sample: dict[str, list[SensorRecord]] = {}
        for record in records:
            if record.is_keyframe:
                by_sample.setdefault(record.sample_token, []).append(record)
        sets = []
        for token, stamp_ns in self.tables.samples(scene):
            members = by_sample.get(token, [])
            cameras = _ordered(members)
            if not cameras:
                raise CorruptInput(f"{self.tables.dataroot}: keyframe '{token}' of {scene} has no camera image")
            lidar = next((record for record in members if record.modality == "lidar"), None)
            reference = pose_between(records, stamp_ns) if lidar is None else lidar.world_from_ego
            stamp_ns = stamp_ns if lidar is None else lidar.stamp_ns
            sets.append(_Set(scene, token, stamp_ns, reference, cameras, lidar))
        if sweeps:
            sets += _sweep_sets(scene, records)
            sets.sort(key=lambda entry: entry.stamp_ns)
        return sets


def _sweep_sets(scene: str, records: list[SensorRecord]) -> list[_Set]:
    """Make a set for each image of the key camera that is not a keyframe."""
    by_channel: dict[str, list[SensorRecord]] = {}
    for record in records:
        if record.modality in ("camera", "lidar"):
            by_channel.setdefault(record.channel, []).append(record)
    key_channel = _ordered([rows[0] for rows in by_channel.values()])[0].channel
    sets = []
    for key in by_channel[key_channel]:
        if key.is_keyframe:
            continue
        near = [_nearest(rows, key.stamp_ns) for channel, rows in by_channel.items() if channel != key_channel]
        members = [record for record in near if record is not None]
        lidar = next((record for record in members if record.modality == "lidar"), None)
        sets.append(_Set(scene, "", key.stamp_ns, key.world_from_ego, _ordered([key, *members]), lidar))
    return sets


def _nearest(records: list[SensorRecord], stamp_ns: int) -> SensorRecord | None:
    at = int(np.searchsorted([record.stamp_ns for record in records], stamp_ns))
    near = min(records[max(at - 1, 0) : at + 1], key=lambda record: abs(record.stamp_ns - stamp_ns))
    return near if abs(near.stamp_ns - stamp_ns) <= MAX_SPREAD_NS else None


def _ordered(records: list[SensorRecord]) -> tuple[SensorRecord, ...]:
    """The cameras among records, in nuScenes' usual order, then others by name."""
    cameras = [record for record in records if record.modality == "camera"]
    order = {channel: number for number, channel in enumerate(CAMERA_ORDER)}
    return tuple(sorted(cameras, key=lambda record: (order.get(record.channel, len(order)), record.channel)))


def camera_of(record: SensorRecord) -> Camera:
    """The calibration of a camera's record. nuScenes images are undistorted, so it is a pinhole; a simulated city's may
    not be.

    Raises:
        CorruptInput: it has no intrinsics. InvalidInput: no camera has such.
    """
    if record.intrinsics is None:
        raise CorruptInput(f"calibrated_sensor '{record.calibration}' of camera {record.channel} has no intrinsics")
    lens = record.distortion_model, record.distortion
    return Camera(record.channel, record.intrinsics, record.size, record.ego_from_sensor, *lens)


def read_bytes(record: SensorRecord) -> bytes:
    """Read the file's content.

    Raises:
        MissingInput: absent or empty.
    """
    if not is_there(record.path):
        raise MissingInput(f"{record.path}: sensor file of {record.channel} is missing or empty")
    return record.path.read_bytes()


def read_image(record: SensorRecord) -> np.ndarray:
    """Read an image as RGB uint8 (height, width, 3).

    Raises:
        MissingInput, CorruptInput: naming the file.
    """
    data = read_bytes(record)
    try:
        return decode_compressed(data)
    except OccError as error:
        raise CorruptInput(f"{record.path}: {error}") from error


def read_lidar(record: SensorRecord) -> LidarSweep:
    """Read the sweep in the sensor's own frame (nuScenes' LIDAR_TOP: x right, y forward).

    Raises:
        MissingInput, CorruptInput: naming the file.
    """
    rows = rows_of_file(read_bytes(record), LIDAR_ROW, record.path)
    return LidarSweep(
        points_lidar_m=np.ascontiguousarray(rows[:, :3]),
        intensity=rows[:, 3].copy(),
        ring=rows[:, 4].astype(np.int32),
        ego_from_lidar=record.ego_from_sensor,
        stamp_ns=record.stamp_ns,
        world_from_ego=record.world_from_ego,
    )
