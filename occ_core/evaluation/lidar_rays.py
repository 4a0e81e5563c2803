"""LiDAR-ray score: does the laser hit where the map says that it would? For real data, which has no true voxels.

From the LiDAR's place to each of its returns runs a ray. The distance at which it enters the first occupied cell of the
map is compared with the measured range, both along the ray: occupied cells in between would have stopped the laser, and
a free cell at the return says that nothing is there. What is not observed is free, as in all other scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, need
from occ_core.evaluation.predictions import prediction_files, read_prediction
from occ_core.frame import Frame
from occ_core.geometry import apply, inverse
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.lidar_points import OWN_BODY_M
from occ_core.parallel import Step, run_in_processes
from occ_core.sources.kitti import GROUND_Z_M, SemanticKittiSource
from occ_core.sources.open import FrameSource, open_source
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, Taxonomy
from occ_core.teachers.lidar import visible_points

GROUPS = ("ground", "above")
ABOVE_GROUND_M = 0.3  # over level ground, from here on a return is above it
EDGES_M = (0, 10, 20, 40)  # of the bands of measured range
BANDS = tuple(f"{low}-{high}m" for low, high in zip(EDGES_M, EDGES_M[1:], strict=False))
WITHIN_M = (0.5, 1.0, 2.0)
LEFT_OUT = ("own_body", "off_grid", "out_of_view", "far")
ERROR_STEP_M = 0.01
ERROR_LIMIT_M = float(EDGES_M[-1])  # errors are counted up to here; beyond, it is as if there were no cell


class Returns(NamedTuple):
    """One sweep, in the ego frame at the frame's stamp.

    Attributes:
        origin_ego_m: (3,), where the rays start.
        points_ego_m: float64 (N, 3), finite.
        in_view: bool (N,), falls into a camera's image.
        placed: the origin is the LiDAR's own; else the source does not know it, see `returns_of`.
    """

    origin_ego_m: np.ndarray
    points_ego_m: np.ndarray
    in_view: np.ndarray
    placed: bool = True


def returns_of(frame: Frame, ground_z_m: float = 0.0) -> Returns:
    """The sweep of a frame; it, the frame and each image have poses of their own.

    Some data sets give points in the ego frame, without the place of the LiDAR: it would be the ego frame's origin,
    on the ground, from where every ray would run through the road. Then rays start amid the cameras.

    Args:
        ground_z_m: height of level ground in the ego frame.

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
    return Returns(apply(now_from_then, place_m), points_m, in_view, placed)


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
        steps = round(2 * ERROR_LIMIT_M / ERROR_STEP_M)
        self.errors = np.zeros((*kinds, steps + 1), dtype=np.int64)  # by error, from -limit on; last: no cell

    def add(self, labels: np.ndarray, returns: Returns) -> None:
        """Count one frame.

        Args:
            labels: uint8 (X, Y, Z) class ids, in the ego frame of the returns.

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
        _, enter_m, _ = first_cells(labels, self.taxonomy.free_id, self.grid, starts, directions)
        self._count((height_m >= ABOVE_GROUND_M).astype(np.int64), range_m, enter_m - range_m)
        self.frames += 1
        self.unplaced += not returns.placed

    def _count(self, group: np.ndarray, range_m: np.ndarray, error_m: np.ndarray) -> None:
        band = np.searchsorted(EDGES_M, range_m, side="right") - 1
        for number, limit_m in enumerate(WITHIN_M):
            np.add.at(self.within[..., number], (group, band), np.abs(error_m) <= limit_m)
        np.add.at(self.too_near, (group, band), error_m < -WITHIN_M[-1])
        last = self.errors.shape[-1] - 1
        step = np.floor(np.clip((error_m + ERROR_LIMIT_M) / ERROR_STEP_M, 0, last)).astype(np.int64)
        np.add.at(self.errors, (group, band, step), 1)

    def merge(self, other: LidarRayScores) -> None:
        """Count all that `other` counted."""
        for name in ("frames", "without_lidar", "unplaced", "left_out", "within", "too_near", "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def report(self) -> dict[str, Any]:
        """{group: {band: {...}}}, and counts: of frames, and `left_out`, of returns by reason.

        Of each group and band: returns, their number; in percent of them within_0.5m, within_1m, within_2m, too_near
        (the first cell is more than 2 m nearer) and missed (more than 2 m farther, or none), where within_2m, too_near
        and missed add up to 100; median_error_m, entry less measured range, to the centimetre, where no cell is
        infinitely far: NaN if that is the median. All NaN without returns.
        """
        out: dict[str, Any] = {
            group: {band: self._band(row, column) for column, band in enumerate(BANDS)}
            for row, group in enumerate(GROUPS)
        }
        out |= {"frames": self.frames, "frames_without_lidar": self.without_lidar}
        return out | {
            "frames_without_lidar_place": self.unplaced,
            "left_out": dict(zip(LEFT_OUT, self.left_out.tolist(), strict=True)),
        }

    def _band(self, row: int, column: int) -> dict[str, Any]:
        errors, within = self.errors[row, column], self.within[row, column]
        near, total = self.too_near[row, column], errors.sum()
        counts = {f"within_{limit_m:g}m": count for limit_m, count in zip(WITHIN_M, within, strict=True)}
        counts |= {"too_near": near, "missed": total - near - within[-1]}
        shares = {name: float(100 * count / total) if total else float("nan") for name, count in counts.items()}
        middle = int(np.searchsorted(np.cumsum(errors), (total + 1) // 2)) if total else len(errors) - 1
        median_m = (middle + 0.5) * ERROR_STEP_M - ERROR_LIMIT_M if middle < len(errors) - 1 else float("nan")
        return {"returns": int(total), **shares, "median_error_m": round(median_m, 3)}


def _left_out(returns: Returns, range_m: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """Index into LEFT_OUT of the first reason that holds for each return, int64 (N,); len(LEFT_OUT): it counts."""
    _, inside = grid.index_of(returns.points_ego_m)
    reasons = (range_m < OWN_BODY_M, ~inside, ~returns.in_view, range_m >= EDGES_M[-1])
    return np.select(reasons, range(len(LEFT_OUT)), len(LEFT_OUT))


def score_lidar_rays(
    predictions: Path,
    data: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 1,
    version: str | None = None,
) -> dict[str, Any]:
    """Score every frame of a data set that has a prediction. See `prediction_files` for what a folder may hold.

    Args:
        data: what `open_source` opens; of nuScenes layout, keyframes. Its kind says grid and classes: SemanticKITTI's
            own, else Occ3D's.
        workers: processes.
        version: table folder of nuScenes layout.

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
    files = _files_of(predictions, known, source)
    if not files:
        raise MissingInput(
            f"{predictions}: no prediction of any of the {len(source)} frames of {data}, such as '{source.names[0]}'"
        )
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, len(files))

    work, total = partial(_score_frames, source), _scores_for(source)
    pairs = list(files.items())
    for part in run_in_processes(work, [pairs[i::workers] for i in range(workers)], workers, step):
        total.merge(part)
    if not total.frames:
        raise MissingInput(f"{data}: no LiDAR sweep in any of the {len(files)} frames that have a prediction")
    return total.report() | {
        "frames_without_prediction": len(source) - len(files),
        "predictions_without_frame": len(set(known.values()) - set(files.values())),
    }


def _files_of(folder: Path, known: dict[str, Path], source: FrameSource) -> dict[int, Path]:
    """Prediction by number of the frame. Tokens that are unique in their scene only are looked up there."""
    paths = {}
    for number, (name, (scene, token)) in enumerate(zip(source.names, source.samples, strict=True)):
        own = folder / scene / token / "labels.npz"
        if name in known or own.is_file():
            paths[number] = known.get(name, own)
    return paths


def _scores_for(source: FrameSource) -> LidarRayScores:
    if isinstance(source, SemanticKittiSource):
        return LidarRayScores(SEMANTIC_KITTI, SEMANTIC_KITTI_VOXELS, GROUND_Z_M)
    return LidarRayScores()


def _score_frames(source: FrameSource, pairs: Sequence[tuple[int, Path]], step: Step) -> LidarRayScores:
    total = _scores_for(source)
    for number, path in pairs:
        frame = source[number]
        if frame.lidar is None:
            total.without_lidar += 1
        else:
            labels, returns = read_prediction(path, total.grid), returns_of(frame, total.ground_z_m)
            try:
                total.add(labels, returns)
            except InvalidInput as error:
                raise CorruptInput(f"{path}: {error}") from error
        step()
    return total


def lidar_table(scores: dict[str, Any]):
    """A rich table of `score_lidar_rays`: one row a group and band."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "LiDAR returns by the first occupied cell on their ray; percent"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("", no_wrap=True)
    within = [f"within {limit_m:g} m" for limit_m in WITHIN_M]
    for name in ("returns", *within, "too near", "missed", "median error, m"):
        out.add_column(name, justify="right", min_width=max(map(len, name.split())))  # headers break between words
    for group in GROUPS:
        for band in BANDS:
            returns, *shares, median_m = scores[group][band].values()
            numbers = [f"{share:.1f}" for share in shares] + [f"{median_m:+.2f}"]
            cells = ["-" if number in ("nan", "+nan") else number for number in numbers]
            out.add_row(f"{group}, {band.replace('m', ' m')}", str(returns), *cells)
        out.add_section()
    return out


def summary(scores: dict[str, Any]) -> list[str]:
    """What the table of `score_lidar_rays` counts and what not, in lines of text."""
    left_out, near, far = scores["left_out"], WITHIN_M[-1], EDGES_M[-1]
    lines = [
        f"within {near:g} m, too near (by more) and missed (farther by more, or nothing) add up to 100",
        f"{scores['frames']} frames; returns not counted: {left_out['own_body']} within {OWN_BODY_M:g} m of the LiDAR, "
        f"{left_out['off_grid']} off the grid, {left_out['out_of_view']} in no camera's image, {left_out['far']} "
        f"beyond {far} m",
    ]
    for key, what in (
        ("frames_without_prediction", "frames of the data have no prediction"),
        ("predictions_without_frame", "predictions are of no frame of the data"),
        ("frames_without_lidar", "frames have a prediction but no LiDAR sweep"),
        ("frames_without_lidar_place", "frames do not say where their LiDAR is: rays start amid the cameras"),
    ):
        if scores[key]:
            lines.append(f"{scores[key]} {what}")
    return lines
