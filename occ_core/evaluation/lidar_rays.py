"""LiDAR-ray score: does the laser hit where the map says that it would? It is for real data, which has no true voxels.

From the LiDAR's place to each of its returns runs a ray. The distance at which it enters the first occupied cell of the
map is compared with the measured range, both along the ray: occupied cells in between would have stopped the laser, and
a free cell at the return says that nothing is there. What is not observed is free, as in all other scores; only of the
returns' own cells it is told apart what the map calls free and what it does not speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, need
from occ_core.evaluation.predictions import prediction_files, read_observed, read_prediction
from occ_core.frame import Frame
from occ_core.geometry import apply, inverse
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.lidar_points import OWN_BODY_M
from occ_core.parallel import Step, run_in_processes
from occ_core.sources.kitti import GROUND_Z_M, SemanticKittiSource
from occ_core.sources.open import FrameSource, open_source
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy
from occ_core.teachers.lidar import read_kitti_labels, visible_points

GROUPS = ("ground", "above")
ABOVE_GROUND_M = 0.3  # over level ground, from here on a return is above it
EDGES_M = (0, 10, 20, 40)  # of the bands of measured range
BANDS = tuple(f"{low}-{high}m" for low, high in zip(EDGES_M, EDGES_M[1:], strict=False))
WITHIN_M = (0.5, 1.0, 2.0)
LEFT_OUT = ("own_body", "off_grid", "out_of_view", "far")
ERROR_STEP_M = 0.01
ERROR_LIMIT_M = float(EDGES_M[-1])  # errors are counted up to here; beyond, it is as if there were no cell
MET_M = WITHIN_M[1]  # a return whose error is no larger has met its cell, whose class is compared with its own
OWN_CELL = ("called_free", "not_observed")  # what a return's own cell may be, if it is not occupied


class Returns(NamedTuple):
    """One sweep, in the ego frame at the frame's stamp.

    Attributes:
        origin_ego_m: (3,), where the rays start.
        points_ego_m: float64 (N, 3), finite.
        in_view: bool (N,), falls into a camera's image.
        placed: the origin is the LiDAR's own; else the source does not know it, see `returns_of`.
        classes: uint8 (N,) ids of the points' own classes, UNKNOWN where it has none; None: nobody knows them.
    """

    origin_ego_m: np.ndarray
    points_ego_m: np.ndarray
    in_view: np.ndarray
    placed: bool = True
    classes: np.ndarray | None = None


def returns_of(frame: Frame, ground_z_m: float = 0.0, classes: np.ndarray | None = None) -> Returns:
    """Read the sweep of a frame; the sweep, the frame and each image have poses of their own.

    Some data sets give points in the ego frame, without the place of the LiDAR: it would be the ego frame's origin,
    on the ground, from where every ray would run through the road. Then rays start amid the cameras.

    Args:
        ground_z_m: height of level ground in the ego frame.
        classes: of the sweep's points, as of `Returns`.

    Raises:
        InvalidInput: the frame has no LiDAR sweep.
    """
    sweep = frame.lidar
    if sweep is None:
        raise InvalidInput(f"frame '{frame.token or frame.stamp_ns}' has no LiDAR sweep")
    place_m = sweep.ego_from_lidar[:3, 3]
    placed = bool(np.any(place_m != 0)) or ground_z_m <= -ABOVE_GROUND_M
    if not placed:
        place_m = np.mean([camera.ego_from_cam[:3, 3] for camera in frame.rig], axis=0)
    now_from_then = inverse(frame.world_from_ego) @ sweep.world_from_ego
    points_m = apply(now_from_then @ sweep.ego_from_lidar, sweep.points_lidar_m.astype(np.float64))
    in_view = np.zeros(len(points_m), dtype=bool)
    for name in frame.images:
        in_view[visible_points(frame, name)[2]] = True
    return Returns(apply(now_from_then, place_m), points_m, in_view, placed, classes)


COUNTS = ("frames", "without_lidar", "unplaced")


class LidarRayScores:
    """Returns by group and band of measured range, summed over all frames.

    Args:
        taxonomy, grid: of the predictions.
        ground_z_m: height of level ground in the ego frame.

    Raises:
        MissingPackage: without numba.
    """

    def __init__(self, taxonomy: Taxonomy = OCC3D, grid: VoxelGrid = OCC3D_GRID, ground_z_m: float = 0.0) -> None:
        need("numba", "world")
        self.taxonomy, self.grid, self.ground_z_m = taxonomy, grid, ground_z_m
        self.frames = self.without_lidar = self.unplaced = 0
        self.left_out = np.zeros(len(LEFT_OUT), dtype=np.int64)
        kinds = len(GROUPS), len(BANDS)
        self.within = np.zeros((*kinds, len(WITHIN_M)), dtype=np.int64)
        self.too_near = np.zeros(kinds, dtype=np.int64)
        self.own_cell = np.zeros((*kinds, len(OWN_CELL)), dtype=np.int64)
        self.classes = np.zeros((len(taxonomy), 3), dtype=np.int64)  # of each: returns, met, met with its class
        steps = round(2 * ERROR_LIMIT_M / ERROR_STEP_M)
        self.errors = np.zeros((*kinds, steps + 1), dtype=np.int64)  # by error, from -limit on; last: no cell

    def add(self, labels: np.ndarray, returns: Returns, observed: np.ndarray | None = None) -> None:
        """Count one frame.

        Args:
            labels: uint8 (X, Y, Z) class ids, in the ego frame of the returns.
            observed: bool (X, Y, Z), cells that the map speaks of; None: all of them.

        Raises:
            InvalidInput: another shape, or a label that is no class.
        """
        from occ_core.evaluation.first_hit import first_cells

        if labels.shape != self.grid.shape or labels.dtype != np.uint8:
            raise InvalidInput(f"prediction must be uint8 {self.grid.shape}, got {labels.dtype} {labels.shape}")
        if labels.max() >= len(self.taxonomy):
            raise InvalidInput(f"prediction holds label {labels.max()}, limit {len(self.taxonomy) - 1}")
        ways_m = returns.points_ego_m - returns.origin_ego_m
        range_m = np.linalg.norm(ways_m, axis=1)
        reasons = _left_out(returns, range_m, self.grid)
        self.left_out += np.bincount(reasons, minlength=len(LEFT_OUT) + 1)[: len(LEFT_OUT)]
        counts = reasons == len(LEFT_OUT)
        range_m, height_m = range_m[counts], returns.points_ego_m[counts, 2] - self.ground_z_m
        directions = ways_m[counts] / range_m[:, None]
        starts = np.tile(returns.origin_ego_m, (len(directions), 1))
        met, enter_m, _ = first_cells(labels, self.taxonomy.free_id, self.grid, starts, directions)
        own = tuple(self.grid.index_of(returns.points_ego_m[counts])[0].T)
        speaks = np.ones(len(range_m), dtype=bool) if observed is None else observed[own]
        empty = labels[own] == self.taxonomy.free_id
        kind = (height_m >= ABOVE_GROUND_M).astype(np.int64), np.searchsorted(EDGES_M, range_m, side="right") - 1
        self._count(*kind, enter_m - range_m)
        for number, is_so in enumerate((empty & speaks, empty & ~speaks)):
            np.add.at(self.own_cell[..., number], kind, is_so)
        if returns.classes is not None:
            self._count_classes(returns.classes[counts], met, np.abs(enter_m - range_m) <= MET_M)
        self.frames += 1
        self.unplaced += not returns.placed

    def _count(self, group: np.ndarray, band: np.ndarray, error_m: np.ndarray) -> None:
        for number, limit_m in enumerate(WITHIN_M):
            np.add.at(self.within[..., number], (group, band), np.abs(error_m) <= limit_m)
        np.add.at(self.too_near, (group, band), error_m < -WITHIN_M[-1])
        last = self.errors.shape[-1] - 1
        step = np.floor(np.clip((error_m + ERROR_LIMIT_M) / ERROR_STEP_M, 0, last)).astype(np.int64)
        np.add.at(self.errors, (group, band, step), 1)

    def _count_classes(self, own_classes: np.ndarray, met: np.ndarray, is_met: np.ndarray) -> None:
        known = (own_classes < len(self.taxonomy)) & (own_classes != self.taxonomy.free_id)
        own_classes, met, is_met = own_classes[known], met[known], is_met[known]
        for number, counts in enumerate((np.ones_like(is_met), is_met, is_met & (met == own_classes))):
            self.classes[:, number] += np.bincount(own_classes[counts], minlength=len(self.taxonomy))

    def merge(self, other: LidarRayScores) -> None:
        """Add the counts of `other`."""
        for name in (*COUNTS, "left_out", "within", "too_near", "own_cell", "classes", "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def report(self) -> dict[str, Any]:
        """{group: {band: {...}}}, the number of frames, and `left_out`, the number of returns by reason.

        Of each group and band: returns, their number; in percent of them within_0.5m, within_1m, within_2m, too_near
        (the first cell is more than 2 m nearer) and missed (more than 2 m farther, or none), where within_2m, too_near
        and missed add up to 100; median_error_m, entry less measured range, to the centimetre, where no cell is
        infinitely far: NaN if that is the median; called_free and not_observed, of the returns' own cells. All NaN
        without returns. Where points have classes, `classes`: {class: {returns, met, agree}}, met in percent of the
        returns (the first cell is within 1 m), agree (it has the return's class) in percent of those met; and `all`.
        """
        out: dict[str, Any] = {
            group: {band: self._band(row, column) for column, band in enumerate(BANDS)}
            for row, group in enumerate(GROUPS)
        }
        out |= {"frames": self.frames, "frames_without_lidar": self.without_lidar}
        if self.classes.any():
            rows = dict(zip(self.taxonomy.names, self.classes, strict=True)) | {"all": self.classes.sum(axis=0)}
            out["classes"] = {name: _class_row(*row.tolist()) for name, row in rows.items() if row[0]}
        return out | {
            "frames_without_lidar_place": self.unplaced,
            "left_out": dict(zip(LEFT_OUT, self.left_out.tolist(), strict=True)),
        }

    def _band(self, row: int, column: int) -> dict[str, Any]:
        errors, within = self.errors[row, column], self.within[row, column]
        near, total = self.too_near[row, column], errors.sum()
        counts = {f"within_{limit_m:g}m": count for limit_m, count in zip(WITHIN_M, within, strict=True)}
        counts |= {"too_near": near, "missed": total - near - within[-1]}
        shares = {name: _percent(count, total) for name, count in counts.items()}
        middle = int(np.searchsorted(np.cumsum(errors), (total + 1) // 2)) if total else len(errors) - 1
        median_m = (middle + 0.5) * ERROR_STEP_M - ERROR_LIMIT_M if middle < len(errors) - 1 else float("nan")
        own = dict(zip(OWN_CELL, self.own_cell[row, column], strict=True))
        rest = {name: _percent(count, total) for name, count in own.items()}
        return {"returns": int(total), **shares, "median_error_m": round(median_m, 3), **rest}


def _class_row(returns: int, met: int, agree: int) -> dict[str, Any]:
    return {"returns": returns, "met": _percent(met, returns), "agree": _percent(agree, met)}


def _percent(count: int, total: int) -> float:
    return float(100 * count / total) if total else float("nan")


def _left_out(returns: Returns, range_m: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """The first reason of LEFT_OUT for each return not to count, as an index, int64 (N,); len(LEFT_OUT) for those that
    count."""
    _, inside = grid.index_of(returns.points_ego_m)
    reasons = (range_m < OWN_BODY_M, ~inside, ~returns.in_view, range_m >= EDGES_M[-1])
    return np.select(reasons, range(len(LEFT_OUT)), len(LEFT_OUT))


def score_lidar_rays(
    predictions: Path,
    data: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 1,
    version: str | None = None,
    like: Path | None = None,
) -> dict[str, Any]:
    """Score every frame of a data set that has a prediction. `prediction_files` says what a folder may hold.

    Args:
        data: what `open_source` opens; of nuScenes layout, keyframes. Grid and classes are Occ3D's; of SemanticKITTI
            its own, if that is the form of the predictions.
        workers: processes.
        version: table folder of nuScenes layout.
        like: another folder of predictions: only frames that it has count, so that scores of true voxels, the ceiling,
            are of the same returns.

    Returns:
        as LidarRayScores.report, with `frames_without_prediction` and `predictions_without_frame`.

    Raises:
        MissingInput: no prediction of any frame, no LiDAR sweep in any frame that has one, or a file of a frame.
        CorruptInput: an unreadable file, naming it. InvalidInput: no worker. MissingPackage: without numba.
    """
    if workers < 1:
        raise InvalidInput(f"workers must be 1 or more, got {workers}")
    need("numba", "world")
    predictions = Path(predictions)
    known, source = prediction_files(predictions), open_source(data, version=version)
    files = files_of(predictions, known, source)
    if like is not None:
        others = files_of(like, prediction_files(like), source)
        files = {number: path for number, path in files.items() if number in others}
    if not files:
        raise MissingInput(
            f"{predictions}: no prediction of any of the {len(source)} frames of {data}, such as '{source.names[0]}'"
        )
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, len(files))

    total = scores_for(source, next(iter(files.values())))
    work = partial(_score_frames, source)
    pairs = list(files.items())
    shares = [share for i in range(workers) if (share := pairs[i::workers])]
    for part in run_in_processes(work, shares, workers, step):
        total.merge(part)
    if not total.frames:
        raise MissingInput(f"{data}: no LiDAR sweep in any of the {len(files)} frames that have a prediction")
    return total.report() | {
        "frames_without_prediction": len(source) - len(files),
        "predictions_without_frame": len(set(known.values()) - set(files.values())),
    }


def files_of(folder: Path, known: dict[str, Path], source: FrameSource) -> dict[int, Path]:
    """Find predictions by the frame's number. Tokens that are unique only within their scene are looked up there; with
    a single scene they are looked up by themselves, which is how SemanticKITTI names its voxels."""
    paths = {}
    for number, (name, (scene, token)) in enumerate(zip(source.names, source.samples, strict=True)):
        own = folder / scene / token / "labels.npz"
        if name in known or own.is_file():
            paths[number] = known.get(name, own)
        elif len(source.scenes) == 1 and token in known:
            paths[number] = known[token]
    return paths


def scores_for(source: FrameSource, path: Path) -> LidarRayScores:
    """Make scores with the grid and classes of a prediction; SemanticKITTI's may be of either kind."""
    if not isinstance(source, SemanticKittiSource):
        return LidarRayScores()
    if path.suffix == ".label" or _is_like(path, SEMANTIC_KITTI_VOXELS):
        return LidarRayScores(SEMANTIC_KITTI, SEMANTIC_KITTI_VOXELS, GROUND_Z_M)
    return LidarRayScores(ground_z_m=GROUND_Z_M)


def _is_like(path: Path, grid: VoxelGrid) -> bool:
    try:
        read_prediction(path, grid)
    except CorruptInput:
        return False
    return True


def point_classes(source: FrameSource, number: int, taxonomy: Taxonomy) -> np.ndarray | None:
    """The classes of the points of a frame's sweep, uint8 (N,), where the data set has them.

    Raises:
        CorruptInput: naming the file.
    """
    if not isinstance(source, SemanticKittiSource) or not (path := source.labels_path(number)).is_file():
        return None
    return read_kitti_labels(path, taxonomy)


def _score_frames(source: FrameSource, pairs: Sequence[tuple[int, Path]], step: Step) -> LidarRayScores:
    total = scores_for(source, pairs[0][1])
    for number, path in pairs:
        frame = source[number]
        if frame.lidar is None:
            total.without_lidar += 1
        else:
            labels, observed = read_prediction(path, total.grid), read_observed(path, total.grid)
            classes = point_classes(source, number, total.taxonomy)
            if classes is not None and len(classes) != len(frame.lidar.points_lidar_m):
                raise CorruptInput(
                    f"frame '{source.names[number]}': {len(classes)} labels for "
                    f"{len(frame.lidar.points_lidar_m)} LiDAR points"
                )
            try:
                total.add(labels, returns_of(frame, total.ground_z_m, classes), observed)
            except InvalidInput as error:
                raise CorruptInput(f"{path}: {error}") from error
        step()
    return total
