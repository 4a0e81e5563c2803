"""Makes ground truth of SemanticKITTI scene completion from labelled scans, which are joined by their poses.

After Behley et al., "SemanticKITTI", ICCV 2019, section 5: past and future scans are added up, most points decide a
cell's class, and cells that are hidden from all of the LiDAR's places count for nothing. The data set's own voxel
files, where one has them, are the truth to publish by; these are for where one has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from occ_core.errors import CorruptInput, MissingInput
from occ_core.evaluation.first_hit import first_hits
from occ_core.files import write_atomically
from occ_core.geometry import apply, inverse
from occ_core.grid import SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.labels.visibility import add_passes
from occ_core.lidar_points import MIN_RANGE_M
from occ_core.sources.kitti import SemanticKittiSource
from occ_core.taxonomy import SEMANTIC_KITTI, UNLABELED
from occ_core.teachers.lidar import RAW_KITTI_IDS, class_of_raw_kitti, read_raw_kitti

REACH_M = 70.0  # scans from farther away add next to nothing to a grid of 51.2 m
STEP_M = 0.5  # least way between two scans that are added up; a waiting car sees the same again and again
VIEW_STEP_M = 5.0  # distance between places from which visibility is tested
KEPT_SCANS = 300  # scans kept in memory, 2 MB each
FIRST_MOVING = 252  # SemanticKITTI's labels from here on are things seen to move
NO_RETURN = (0, 1)  # SemanticKITTI's `unlabeled` and `outlier`


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """One scan with the classes of its points.

    Attributes:
        points_lidar_m: float32 (N, 3).
        classes: uint8 (N,), of SemanticKITTI's taxonomy, UNLABELED for what has no class.
        moving: bool (N,).
        world_from_lidar: (4, 4).
    """

    points_lidar_m: np.ndarray
    classes: np.ndarray
    moving: np.ndarray
    world_from_lidar: np.ndarray


def voxelise(
    dataroot: Path | str, out: Path | str, scenes: Sequence[str] | None = None, every: int = 1
) -> Iterator[Path]:
    """Write the truth of each `every`-th frame of some sequences (None: of all), and yield each file when it is
    written.

    Files: `out`/sequences/<scene>/voxels/<frame>.label and .invalid, as the data set's own. What is there is kept.

    Raises:
        MissingInput: data, or the labels of a scan. CorruptInput: naming the file. CannotWrite.
    """
    source = SemanticKittiSource(dataroot, None if scenes is None else list(scenes))
    scan_of = lru_cache(maxsize=KEPT_SCANS)(lambda index: read_scan(source, index))
    for scene in source.scenes:
        indices = [i for i, (name, _) in enumerate(source.samples) if name == scene]
        for index in indices[::every]:
            path = Path(out) / "sequences" / scene / "voxels" / f"{source.tokens[index]}.label"
            if not path.is_file():
                labels = voxelise_frame(scan_of(index), _around(source, indices, index, scan_of))
                _write(path, labels)
            yield path


def voxelise_frame(
    own: LabelledScan, others: Sequence[LabelledScan], grid: VoxelGrid = SEMANTIC_KITTI_VOXELS
) -> np.ndarray:
    """Make the truth at the time of a scan.

    A cell is of the class that most points in it have, `own`'s and those of `others` that do not move. One without
    points is free if a ray passes it on the way to its point, or if from a place of the LiDAR nothing stands before it.
    Points nearer than MIN_RANGE_M to their sensor do not count.

    Returns:
        uint8 (X, Y, Z) in the frame of `own`: class ids, 0 free; UNLABELED where nobody looked, or nothing has a class.
    """
    passes = np.zeros(grid.shape, dtype=np.uint32)
    cells, classes = [], []
    places: list[np.ndarray] = []
    for scan in (own, *others):
        own_from_lidar = inverse(own.world_from_lidar) @ scan.world_from_lidar
        far = np.linalg.norm(scan.points_lidar_m, axis=1) >= MIN_RANGE_M
        _pass(passes, scan.points_lidar_m[far], own_from_lidar, grid)
        counted = far if scan is own else far & ~scan.moving
        points_m = apply(own_from_lidar, scan.points_lidar_m[counted].astype(np.float64))
        index, inside = grid.index_of(points_m)
        cells.append(np.ravel_multi_index(tuple(index[inside].T), grid.shape))
        classes.append(scan.classes[counted][inside])
        if all(np.linalg.norm(own_from_lidar[:3, 3] - place) >= VIEW_STEP_M for place in places):
            places.append(own_from_lidar[:3, 3])
    labels = np.full(grid.shape, SEMANTIC_KITTI.free_id, dtype=np.uint8)
    held, winner = _majority(np.concatenate(cells), np.concatenate(classes), grid.cells)
    labels.reshape(-1)[held] = winner
    for place in places:
        _mark_visible(passes, labels, place, grid)
    labels[(labels == SEMANTIC_KITTI.free_id) & (passes == 0)] = UNLABELED
    return labels


def read_scan(source: SemanticKittiSource, index: int) -> LabelledScan:
    """Read a frame's scan with the labels of its points; unlabelled points, which are no surface, are left out.

    Raises:
        MissingInput, CorruptInput: naming the file.
    """
    path = source.labels_path(index)
    if not path.is_file():
        raise MissingInput(f"{path}: no labels of the scan's points")
    raw = read_raw_kitti(path)
    sweep = source.sweeps_before(index, 1)[0]
    if len(raw) != len(sweep.points_lidar_m):
        raise CorruptInput(f"{path}: {len(raw)} labels for {len(sweep.points_lidar_m)} points")
    known = ~np.isin(raw, NO_RETURN)
    raw = raw[known]
    return LabelledScan(
        sweep.points_lidar_m[known], class_of_raw_kitti()[raw], raw >= FIRST_MOVING, sweep.world_from_ego
    )


def _around(
    source: SemanticKittiSource, indices: Sequence[int], own: int, scan_of: Callable[[int], LabelledScan]
) -> list[LabelledScan]:
    """The other scans of the sequence that are near enough, STEP_M from each other."""
    places_m = source.places_m(source.samples[own][0])
    far_m = np.linalg.norm(places_m - places_m[indices.index(own)], axis=1)
    chosen: list[int] = []
    last_m = np.full(3, np.inf)
    for index, at_m, distance_m in zip(indices, places_m, far_m, strict=True):
        if index != own and distance_m <= REACH_M and np.linalg.norm(at_m - last_m) >= STEP_M:
            chosen.append(index)
            last_m = at_m
    return [scan_of(index) for index in chosen]


def _pass(passes: np.ndarray, points_lidar_m: np.ndarray, own_from_lidar: np.ndarray, grid: VoxelGrid) -> None:
    """Count the rays that pass each cell, cast as by four cameras at the LiDAR that look along its axes."""
    x, y, z = points_lidar_m.T
    quarter = np.argmax([x, y, -x, -y], axis=0)
    for number, forward in enumerate(((1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0))):
        right = np.cross(forward, (0, 0, 1))
        lidar_from_cam = np.eye(4)
        lidar_from_cam[:3, :3] = np.stack([right, (0, 0, -1), forward], axis=1)
        points_cam_m = points_lidar_m[quarter == number] @ lidar_from_cam[:3, :3].astype(np.float32)
        points_cam_m = points_cam_m[points_cam_m[:, 2] > 0]  # not those straight above or below
        depth_m = points_cam_m[:, 2]
        rays, casts = points_cam_m[:, :2] / depth_m[:, None], np.ones((1, len(depth_m)), dtype=bool)
        add_passes(passes, rays[None], depth_m[None], casts, own_from_lidar @ lidar_from_cam, grid, 1)


def _mark_visible(passes: np.ndarray, labels: np.ndarray, place_m: np.ndarray, grid: VoxelGrid) -> None:
    """Count the cells that are seen from a place, by rays to every cell of the grid's faces that end at the first cell
    that is not free."""
    face = np.ones(grid.shape, dtype=bool)
    face[1:-1, 1:-1, 1:-1] = False
    ways_m = grid.centers_m()[face].astype(np.float64) - place_m
    length_m = np.linalg.norm(ways_m, axis=1, keepdims=True)
    ways_m, length_m = ways_m[length_m[:, 0] > 0], length_m[length_m[:, 0] > 0]
    directions = ways_m / length_m
    _, depth_m = first_hits(labels, SEMANTIC_KITTI.free_id, grid, np.tile(place_m, (len(directions), 1)), directions)
    beyond_m = length_m[:, 0] + 2 * grid.voxel_size_m  # the face's own cell is left, too
    ends_m = directions * np.minimum(depth_m, beyond_m)[:, None]
    own_from_place = np.eye(4)
    own_from_place[:3, 3] = place_m
    _pass(passes, ends_m.astype(np.float32), own_from_place, grid)


def _majority(cells: np.ndarray, classes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that hold a point (M,), and the class of most of their points, uint8 (M,). UNLABELED wins only
    in cells where no point has a class."""
    winner = np.full(count, UNLABELED, dtype=np.uint8)
    most = np.zeros(count, dtype=np.int64)
    for class_id in np.unique(classes[classes != UNLABELED]):
        votes = np.bincount(cells[classes == class_id], minlength=count)
        winner[votes > most] = class_id
        np.maximum(most, votes, out=most)
    held = np.unique(cells)
    return held, winner[held]


def _write(path: Path, labels: np.ndarray) -> None:
    """Write the voxels as raw labels, after the `.invalid` file that marks the cells that nobody knows."""
    raw_of_class = np.zeros(256, dtype="<u2")
    for raw, name in reversed(RAW_KITTI_IDS.items()):
        raw_of_class[SEMANTIC_KITTI.id_of(name)] = raw
    write_atomically(path.with_suffix(".invalid"), np.packbits(labels == UNLABELED).tobytes())
    write_atomically(path, raw_of_class[labels].tobytes())
