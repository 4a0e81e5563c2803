"""Scores labels of real drives against LiDAR that they were not made from: are cells that they call occupied or free
really so?

Two ways to hold LiDAR out. `stripes`: of every sweep, every other degree of elevation; labels of all frames, each
scored by its own held-out points. `frames`: every other sweep; labels of the frames between, each scored by the sweeps
before and after it, which moving things have left. The LiDAR is the teacher, so the figures judge lifting, poses,
rays and fusion on real geometry, not networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.geometry import apply, inverse
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_GRID, VoxelGrid
from occ_core.labels.lift import Lifter
from occ_core.labels.recipes import PRESETS, Recipe
from occ_core.labels.scene import label_scene
from occ_core.labels.score import PointScores
from occ_core.lidar_points import OWN_BODY_M
from occ_core.occupancy import Occupancy
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import SEMANTIC_KITTI, Taxonomy
from occ_core.teachers.base import ClassMap, ClassTeacher, Teachers
from occ_core.teachers.lidar import LidarDepth, project, read_kitti_labels
from occ_core.teachers.load import load_parts

SPLITS = ("stripes", "frames")
STRIPE_RAD = np.deg2rad(1.0)
GEOMETRY = Taxonomy("geometry", ("something", "free"), ((90, 90, 90), (255, 255, 255)), free_id=1)


class OneClass:
    """Class teacher that calls every pixel the first class: where nobody knows classes, geometry is judged alone."""

    version = "one-class-1"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        """Maps of the images' size."""
        shapes = {name: image.shape[:2] for name, image in frame.images.items()}
        return {name: ClassMap(np.zeros(at, np.uint8), np.ones(at, np.float32)) for name, at in shapes.items()}


@dataclass(frozen=True, eq=False)
class LidarDrive:
    """One scene with LiDAR, in memory but for the pixels, which a LiDAR teacher does not look at.

    Attributes:
        name: of the scene.
        frames: in time order.
        grid, taxonomy: of its labels.
        teacher: of classes.
        point_class: for each frame uint8 (N,), classes of its LiDAR points; None where nobody knows them.
    """

    name: str
    frames: Sequence[Frame]
    grid: VoxelGrid
    taxonomy: Taxonomy
    teacher: ClassTeacher
    point_class: Sequence[np.ndarray] | None


def open_drives(dataroot: Path, classes: str | None = None) -> list[LidarDrive]:
    """Every scene of a data set: SemanticKITTI where there is `sequences/`, else nuScenes' layout, geometry only.

    Args:
        classes: class teacher of SemanticKITTI, as of `load_parts`; None: the labels of its points.

    Raises:
        InvalidInput: a frame without LiDAR. MissingInput, CorruptInput: naming the file.
    """
    if (dataroot / "sequences").is_dir():
        return [_kitti_drive(dataroot, scene, classes) for scene in SemanticKittiSource(dataroot).scenes]
    source = NuScenesSource(dataroot)
    drives = []
    for scene in source.scenes:
        frames = _without_pixels(NuScenesSource(source.tables, scenes=[scene]))
        drives.append(LidarDrive(scene, frames, OCC3D_GRID, GEOMETRY, OneClass(), None))
    return drives


def _kitti_drive(dataroot: Path, scene: str, classes: str | None) -> LidarDrive:
    source = SemanticKittiSource(dataroot, [scene])
    frames, name = _without_pixels(source), f"sequence {scene}"
    if not source.labels_path(0).is_file():
        return LidarDrive(name, frames, SEMANTIC_KITTI_GRID, GEOMETRY, OneClass(), None)
    point_class = [read_kitti_labels(source.labels_path(index)) for index in range(len(source))]
    teacher, _ = load_parts(classes or "lidar", dataroot, SEMANTIC_KITTI)
    if teacher is None:
        raise InvalidInput(f"'{classes}' knows no classes")
    return LidarDrive(name, frames, SEMANTIC_KITTI_GRID, SEMANTIC_KITTI, teacher, point_class)


def _without_pixels(source: NuScenesSource | SemanticKittiSource) -> list[Frame]:
    frames = []
    for frame in source:
        if frame.lidar is None:
            raise InvalidInput(f"frame '{frame.token}' of {frame.scene} has no LiDAR sweep to hold out")
        images = {name: np.broadcast_to(np.uint8(0), image.shape) for name, image in frame.images.items()}
        frames.append(frame.with_fields(images=images))
    return frames


def score_drive(
    drive: LidarDrive,
    split: str,
    recipe: Recipe = PRESETS["lidar"],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Make labels from one part of the LiDAR and score them by the other.

    Points count that some camera of their frame shows, 3 m or more from the sensor and inside the label's grid.

    Returns:
        {scene, split, labels, held_out, given, occupied_cells_passed}: number of labels; for the points held out and,
        to compare, those that the labels were made from, what PointScores reports and `occupied_of_decided`; and of the
        occupied cells that held-out LiDAR hits or passes, the percentage that it passes only.

    Raises:
        InvalidInput: no such split, or `frames` of less than two frames.
    """
    if split not in SPLITS:
        raise InvalidInput(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    if split == "frames" and len(drive.frames) < 2:
        raise InvalidInput(f"holding out every other frame needs at least 2 frames, {drive.name} has 1")
    step = 2 if split == "frames" else 1
    keeps = [np.ones(_count(frame), bool) if step == 2 else ~odd_stripes(frame) for frame in drive.frames]
    numbers = range(0, len(drive.frames), step)
    given = [_only(drive.frames[n], keeps[n]) for n in numbers]
    teachers = Teachers(drive.teacher, LidarDepth())
    lifter = Lifter(recipe, drive.grid, drive.taxonomy)
    held_out, own, cells = PointScores(drive.taxonomy), PointScores(drive.taxonomy), np.zeros(2, dtype=np.int64)
    for n, label in zip(numbers, label_scene(given, teachers, recipe, None, drive.grid, drive.taxonomy), strict=True):
        judges = [n] if step == 1 else [m for m in (n - 1, n + 1) if 0 <= m < len(drive.frames)]
        for m in judges:
            which = np.ones(_count(drive.frames[m]), bool) if step == 2 else ~keeps[m]
            _add(held_out, drive, label.occupancy, n, m, which)
            cells += _passed(label.occupancy, drive.frames[n], _only(drive.frames[m], which), lifter, teachers)
        _add(own, drive, label.occupancy, n, n, keeps[n])
        progress(n // step + 1, len(numbers))
    return {
        "scene": drive.name,
        "split": split,
        "labels": len(numbers),
        "held_out": _report(held_out),
        "given": _report(own),
        "occupied_cells_passed": float(100 * cells[1] / cells[0]) if cells[0] else None,
    }


def _report(scores: PointScores) -> dict[str, Any]:
    occupied, free, _ = scores.points
    decided = int(occupied + free)
    return {**scores.report(), "occupied_of_decided": float(100 * occupied / decided) if decided else None}


def odd_stripes(frame: Frame) -> np.ndarray:
    """bool (N,): LiDAR points in every other degree of elevation, as seen from the middle of the cameras.

    Not every other beam, for merged sweeps have no beams; nor every other point, whose neighbours are millimetres away.
    """
    assert frame.lidar is not None
    middle_m = np.mean([camera.ego_from_cam[:3, 3] for camera in frame.rig], axis=0)
    x, y, z = (frame.lidar.points_ego_m - middle_m).T
    return np.floor(np.arctan2(z, np.hypot(x, y)) / STRIPE_RAD).astype(np.int64) % 2 == 1


def _only(frame: Frame, which: np.ndarray) -> Frame:
    """The frame with all other points moved to the sensor's origin, where the teacher drops them; their order stays."""
    assert frame.lidar is not None
    points_m = np.where(which[:, None], frame.lidar.points_lidar_m, np.float32(0))
    return frame.with_fields(lidar=replace(frame.lidar, points_lidar_m=points_m))


def _count(frame: Frame) -> int:
    assert frame.lidar is not None
    return len(frame.lidar.points_lidar_m)


def _add(scores: PointScores, drive: LidarDrive, label: Occupancy, n: int, m: int, which: np.ndarray) -> None:
    """Count those points of frame `m` against the label of frame `n` that an image shows."""
    frame = drive.frames[m]
    points_ego_m, shown = _shown(frame, drive.frames[n])
    counted = which & shown
    scores.add(label, points_ego_m[counted], None if drive.point_class is None else drive.point_class[m][counted])


def _shown(frame: Frame, of: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) of a frame's sweep in the ego frame of another; bool (N,), which of them its own images show."""
    assert frame.lidar is not None
    sweep = frame.lidar
    shown = np.zeros(len(sweep.points_lidar_m), dtype=bool)
    for name in frame.images:
        shown[project(frame, name)[3]] = True  # only there could a label know anything
    shown &= np.linalg.norm(sweep.points_lidar_m, axis=1) >= OWN_BODY_M
    ego_from_lidar = inverse(of.world_from_ego) @ sweep.world_from_ego @ sweep.ego_from_lidar
    return apply(ego_from_lidar, sweep.points_lidar_m.astype(np.float64)), shown


def _passed(label: Occupancy, of: Frame, judge: Frame, lifter: Lifter, teachers: Teachers) -> np.ndarray:
    """Occupied cells that the judge's LiDAR hits or passes, and those of them that it passes only.

    Calling everything occupied would please held-out points; it is the rays on their way to them that it contradicts.
    """
    # its evidence is then in the label's grid; its sensors stay where they are in the world
    moved = replace(judge, world_from_ego=of.world_from_ego)
    evidence = lifter.lift(moved, teachers.classes.classes(moved), teachers.depth.depth(moved))
    points_ego_m, shown = _shown(judge, of)
    index, inside = label.grid.index_of(points_ego_m[shown])
    hit = np.zeros(label.grid.shape, dtype=bool)
    hit[tuple(index[inside].T)] = True
    only_passed = (evidence.passes > 0) & ~hit
    return np.array([(label.occupied & (hit | only_passed)).sum(), (label.occupied & only_passed).sum()])


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of what `score_drive` returns; its last column is about the points that the labels were made from."""
    names = ("in_occupied", "in_free", "in_undecided", "occupied_of_decided", "free_cells_hit", "class_agreement")
    head = ["scene", "held out", "labels", "points", *names, "occupied_cells_passed", "in_occupied, given"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in rows:
        shares = [row["held_out"][name] for name in names]
        shares += [row["occupied_cells_passed"], row["given"]["in_occupied"]]
        texts = ["-" if share is None else f"{share:.2f}" for share in shares]
        lines.append([row["scene"], row["split"], str(row["labels"]), str(row["held_out"]["points"]), *texts])
    return "\n".join(f"| {' | '.join(line)} |".replace("_", " ") for line in lines)


def class_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Class agreement of held-out points, by their class; empty where no points have one."""
    named = [row for row in rows if row["held_out"]["per_class"]]
    lines = [["class", *(f"{row['scene']}, {row['split']}" for row in named)], ["---"] + ["---:"] * len(named)]
    for name in dict.fromkeys(name for row in named for name in row["held_out"]["per_class"]):
        shares = [row["held_out"]["per_class"].get(name) for row in named]
        lines.append([name, *("-" if share is None else f"{share:.1f}" for share in shares)])
    return "\n".join(f"| {' | '.join(line)} |".replace("_", " ") for line in lines) if named else ""
