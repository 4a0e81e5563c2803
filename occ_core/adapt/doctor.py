"""Will a recording do? What it holds, or in one line why not; before any long work."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from occ_core.errors import CannotWrite, InvalidInput, MissingInput
from occ_core.files import require_writable
from occ_core.labels.recipes import PRESETS, Recipe
from occ_core.sources.bag_frames import BagFrames
from occ_core.sources.open import frame_key, kind_of, left_out
from occ_core.sources.scenes import Recording, SceneFrames
from occ_core.teachers.files import file_maps
from occ_core.teachers.load import require_weights
from occ_core.teachers.map_files import kinds_in
from occ_core.teachers.names import parts_of

LEAST_S = 10.0
LEAST_M = 5.0
LEAST_KEYFRAMES = 12  # half a second apart, five seconds while the robot stands
SHORTEST = 2  # keyframes of a recording that is said to be short: one to learn from, one to judge by
TRUTH_TOPIC = "/ground_truth/occupancy"
NETWORKS = "grounded-sam+metric3d"
# What a keyframe takes on disk: label and training arrays, and of each camera pixels and targets; maps of networks.
KEYFRAME_BYTES, CAMERA_BYTES, MAP_BYTES = 1_500_000, 600_000, 400_000
RUN_BYTES = 200_000_000  # checkpoints and exports


@dataclass(frozen=True)
class Drive:
    """What a recording that will do holds.

    Attributes:
        scene: its name. key: hash of its files' sizes and times.
        keyframes_ns: stamps of the key camera's images of its keyframes, in time order.
        cameras: those that are used. left_out: one line for each thing that is not.
        truth: it has true voxels on TRUTH_TOPIC, which only judge.
    """

    bag: Path
    scene: str
    key: str
    keyframes_ns: tuple[int, ...]
    seconds: float
    metres: float
    cameras: tuple[str, ...]
    lidar: bool
    truth: bool
    left_out: tuple[str, ...]

    def line(self) -> str:
        """What there is, for people."""
        has = [f"{len(self.cameras)} cameras ({', '.join(self.cameras)})", "LiDAR" if self.lidar else "no LiDAR"]
        has += ["true voxels"] if self.truth else []
        drive = f"{self.seconds:.0f} s, {self.metres:.0f} m, {len(self.keyframes_ns)} keyframes"
        return f"{self.scene}: {drive}; {', '.join(has)}"


def examine(bag: Path, short: bool = False) -> Drive:
    """Look at a bag; of its images at a few.

    Args:
        short: take it however short it is, and whether or not the robot moves; SHORTEST keyframes are needed.

    Raises:
        InvalidInput, MissingInput: in one line, why it will not do. CorruptInput, MissingTransform: of the bag.
    """
    if kind_of(bag) != "bag":
        raise InvalidInput(f"{bag}: a data set; `occ adapt` takes ROS 2 bags, which `occ bag make` makes of it")
    recording = Recording(bag)
    frames = recording.scene(recording.scenes[0])
    source = cast(BagFrames, frames.source)
    if source.bag.world_frame is None:
        raise InvalidInput(
            f"{bag}: no poses: neither TF above '{source.bag.base_frame}' nor odometry says where the robot is; record "
            "/tf with odom or map in it, or a nav_msgs/Odometry topic"
        )
    stamped_poses = [source.stamp_and_pose(source_index) for source_index in frames.source_indices]
    places_m = np.array([pose[:3, 3] for _, pose in stamped_poses])
    metres = float(np.linalg.norm(np.diff(places_m, axis=0), axis=1).sum())
    first, last = source.stamp_and_pose(0)[0], source.stamp_and_pose(len(source) - 1)[0]
    seconds = (last - first) / 1e9
    if seconds < LEAST_S and not short:
        raise InvalidInput(f"{bag}: too short: {seconds:.1f} s of images that have poses, {LEAST_S:g} s are needed")
    if metres < LEAST_M and not short:
        raise InvalidInput(f"{bag}: the robot stands: it moves {metres:.1f} m in all, {LEAST_M:g} m are needed")
    if len(stamped_poses) < (least := SHORTEST if short else LEAST_KEYFRAMES):
        raise InvalidInput(f"{bag}: too little motion: {len(stamped_poses)} keyframes, {least} are needed")
    if not any(frames[i].images for i in (0, len(frames) // 2, len(frames) - 1)):
        raise InvalidInput(f"{bag}: images cannot be decoded: {'; '.join(left_out(source)[:3])}")
    return Drive(
        Path(bag).resolve(),
        source.scenes[0],
        frame_key(bag, source, 0),
        tuple(_key_stamp(source, frames, i) for i in range(len(frames))),
        seconds,
        metres,
        tuple(camera.name for camera in source.bag.cameras),
        source.bag.lidar_topic is not None,
        TRUTH_TOPIC in source.bag.reader.of_type("sensor_msgs/msg/PointCloud2"),
        tuple(left_out(source)),
    )


def _key_stamp(source: BagFrames, frames: SceneFrames, index: int) -> int:
    return source.shots(frames.source_indices[index])[source.bag.key.name].stamp_ns


def require_distinct(drives: list[Drive]) -> None:
    """Raise InvalidInput where two bags have one name: labels and predictions are filed by it."""
    names = [drive.scene for drive in drives]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"{names.count(twice[0])} bags are called '{twice[0]}': rename one")


def bytes_of(keyframes: int, cameras: int, network: bool = False) -> int:
    """About how much is written of so many keyframes; `network`: maps are kept, too."""
    return keyframes * (KEYFRAME_BYTES + cameras * (CAMERA_BYTES + (MAP_BYTES if network else 0)))


def require_room(out: Path, of_data: int) -> int:
    """Bytes that will be needed about, `of_data` as of `bytes_of`.

    Raises:
        CannotWrite: OUT cannot be written, or its disk has less.
    """
    there = next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())
    require_writable(there)
    needed = RUN_BYTES + of_data
    if (free := shutil.disk_usage(there).free) < needed:
        raise CannotWrite(f"{out}: the disk has {free / 1e9:.1f} GB left, about {needed / 1e9:.1f} GB are needed")
    return needed


def teacher_for(asked: str | None, lidar: bool) -> str:
    """The whole name of the teachers, as of `load_teachers`, for what there is; one with `+` is taken as it is.

    Raises:
        InvalidInput, MissingInput: maps without classes.
    """
    name = asked or NETWORKS
    if len(parts_of(name)) > 1 and asked is not None:
        return name
    if not name.startswith("files:"):
        return f"{name}+lidar" if lidar and name not in ("oracle", "lidar") else name
    kinds = kinds_in(name.removeprefix("files:"))
    if "classes" not in kinds:
        raise InvalidInput(f"{name}: holds no class maps; --teacher CLASSES+{name} takes classes from another teacher")
    if "depth" in kinds:
        return f"{name}+{name}+lidar" if lidar else name
    return f"{name}+lidar" if lidar else f"{name}+motion"


def recipe_for(teacher: str) -> tuple[str, Recipe]:
    """The label recipe for teachers: is depth measured, dense and set right by a LiDAR, or dense and a guess? The road
    that `best` sets depth right by, depth from motion measures itself."""
    parts = parts_of(teacher)
    by = parts[-1] if parts[-1] in ("lidar", "motion") else ""
    name = {"lidar": "completed" if len(parts) == 3 else "lidar", "motion": "easyocc"}.get(by, "best")
    name = "best" if by == "motion" and len(parts) == 3 else name
    return name, PRESETS[name]


def require_teacher(teacher: str, drives: list[Drive], weights: Path | None) -> None:
    """Raise MissingInput where weights of a network, or the map files of every image looked for, are not there."""
    require_weights(teacher, weights)
    for maps in file_maps(teacher):
        for drive in drives:
            frames = Recording(drive.bag).scene(drive.scene)
            chosen = range(0, len(frames), max(1, len(frames) // 8))
            found = [maps.files(drive.scene, frames.tokens[i], frames.shots(i)) for i in chosen]
            if not any(found):
                kind, where = maps.maps.kind, maps.maps.looked_for(drive.scene, frames.tokens[0], frames.shots(0))
                raise MissingInput(
                    f"{maps.maps.folder}: no {kind} map of '{drive.scene}' ({len(found)} keyframes tried): no {where}"
                )
