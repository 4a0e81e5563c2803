"""Every protocol of the field from one pass over predictions and ground truth, as a dict, a JSON file and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.ray_iou import THRESHOLDS_M, RayScores
from occ_core.evaluation.voxel_iou import confusion_matrix, scores
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy, load_occ3d, read_npz
from occ_core.parallel import Step, run_in_processes
from occ_core.taxonomy import OCC3D, Taxonomy

PROTOCOLS = {
    "camera": "cells that a camera observes (mask_camera); Occ3D's official score",
    "camera_and_lidar": "cells that a camera and the LiDAR observe",
    "full": "all cells; what nobody observed counts as free",
}


class VoxelScores:
    """One confusion matrix a protocol, summed over all samples."""

    def __init__(self, taxonomy: Taxonomy = OCC3D):
        self.taxonomy = taxonomy
        self.samples = 0
        self.matrices = {name: np.zeros((len(taxonomy), len(taxonomy)), dtype=np.int64) for name in PROTOCOLS}

    def add(self, truth: Occupancy, predicted: np.ndarray) -> None:
        """Count one sample.

        Args:
            truth: with `observed` as the cameras' mask, and `mask_lidar`.
            predicted: uint8 (X, Y, Z) class ids.
        """
        lidar = truth.observed if truth.mask_lidar is None else truth.mask_lidar
        everywhere = np.ones_like(truth.observed)
        masks = {"camera": truth.observed, "camera_and_lidar": truth.observed & lidar, "full": everywhere}
        classes = len(self.taxonomy)
        added = {name: confusion_matrix(truth.labels, predicted, mask, classes) for name, mask in masks.items()}
        for name, matrix in added.items():
            self.matrices[name] += matrix
        self.samples += 1

    def merge(self, other: VoxelScores) -> None:
        """Count all that `other` counted."""
        for name, matrix in other.matrices.items():
            self.matrices[name] += matrix
        self.samples += other.samples

    def report(self) -> dict[str, dict[str, Any]]:
        """{protocol: {iou, miou_17, miou_15, per_class}} in percent."""
        return {name: scores(matrix, self.taxonomy) for name, matrix in self.matrices.items()}


class SetScores:
    """VoxelScores, and RayScores where the samples come with ray origins; all of them or none.

    Args:
        taxonomy, grid: of truth and predictions.
    """

    def __init__(self, taxonomy: Taxonomy = OCC3D, grid: VoxelGrid = OCC3D_GRID) -> None:
        self.taxonomy, self.grid = taxonomy, grid
        self.voxels = VoxelScores(taxonomy)
        self.rays: RayScores | None = None

    def add(self, truth: Occupancy, predicted: np.ndarray, origins_ego_m: np.ndarray | None = None) -> None:
        """Count one sample; see VoxelScores.add and RayScores.add.

        Raises:
            InvalidInput: shapes differ, a label is no class, or ray origins where samples before had none.
            MissingPackage: origins, but no numba.
        """
        if self.voxels.samples and (self.rays is None) != (origins_ego_m is None):
            raise InvalidInput(f"ray origins must come with all samples or none; sample {self.voxels.samples} differs")
        self.voxels.add(truth, predicted)
        if origins_ego_m is not None:
            self.rays = self.rays or RayScores(self.taxonomy, self.grid)
            self.rays.add(truth.labels, predicted, origins_ego_m)

    def merge(self, other: SetScores) -> None:
        """Count all that `other` counted."""
        if self.voxels.samples and other.voxels.samples and (self.rays is None) != (other.rays is None):
            raise InvalidInput("ray origins must come with all samples or none; only one of two parts has them")
        self.voxels.merge(other.voxels)
        if other.rays is not None:
            self.rays = self.rays or RayScores(self.taxonomy, self.grid)
            self.rays.merge(other.rays)

    def report(self) -> dict[str, dict[str, Any]]:
        """VoxelScores' report, and `ray`: see RayScores.report."""
        return self.voxels.report() | ({} if self.rays is None else {"ray": self.rays.report()})


def score_set(
    samples: Iterable[tuple[Occupancy, np.ndarray, np.ndarray | None]],
    taxonomy: Taxonomy = OCC3D,
    grid: VoxelGrid = OCC3D_GRID,
) -> dict[str, dict[str, Any]]:
    """The report of `occ eval` for predictions in memory.

    Args:
        samples: truth, predicted uint8 (X, Y, Z), and ray origins (N, 3) or None; see SetScores.add.
    """
    total = SetScores(taxonomy, grid)
    for truth, predicted, origins_ego_m in samples:
        total.add(truth, predicted, origins_ego_m)
    return total.report()


class _Pair(NamedTuple):
    """One sample on disk."""

    prediction: Path
    truth: Path
    origins_ego_m: np.ndarray | None


def evaluate_folders(
    predictions: Path,
    truths: Path,
    grid: VoxelGrid = OCC3D_GRID,
    taxonomy: Taxonomy = OCC3D,
    progress: Callable[[int, int], None] = lambda done, total: None,
    origins_ego_m: dict[str, np.ndarray] | None = None,
    workers: int = 1,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Score every prediction, and the number of samples scored. See `prediction_files` for what a folder may hold.

    Args:
        origins_ego_m: by sample token, see `ray_iou.ray_origins`; None: no RayIoU.
        workers: processes.

    Raises:
        MissingInput: no prediction at all, or ground truth or ray origins are missing for one.
        CorruptInput: an unreadable file, naming it.
        InvalidInput: no worker. MissingPackage: origins, but no numba.
    """
    files = prediction_files(Path(predictions))
    answers = {path.parent.name: path for path in Path(truths).glob("*/*/labels.npz")}
    if workers < 1:
        raise InvalidInput(f"workers must be 1 or more, got {workers}")
    if not answers:
        raise MissingInput(f"{truths}: no <scene>/<token>/labels.npz below it")
    for what, known in (("ground truth", answers), ("ray origins", files if origins_ego_m is None else origins_ego_m)):
        if unmatched := sorted(set(files) - set(known)):
            raise MissingInput(f"{predictions}: no {what} for {len(unmatched)} predictions, first: {unmatched[0]}")
    pairs = [
        _Pair(path, answers[token], None if origins_ego_m is None else origins_ego_m[token])
        for token, path in sorted(files.items())
    ]
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, len(pairs))

    total = SetScores(taxonomy, grid)
    work = partial(_score_pairs, taxonomy, grid)
    for part in run_in_processes(work, [pairs[i::workers] for i in range(workers)], workers, step):
        total.merge(part)
    return total.report(), total.voxels.samples


def _score_pairs(taxonomy: Taxonomy, grid: VoxelGrid, pairs: list[_Pair], step: Step) -> SetScores:
    total = SetScores(taxonomy, grid)
    for pair in pairs:
        truth, predicted = load_occ3d(pair.truth, grid, taxonomy), read_prediction(pair.prediction, grid)
        try:
            total.add(truth, predicted, pair.origins_ego_m)
        except InvalidInput as error:
            raise CorruptInput(f"{pair.prediction}: {error}") from error
        step()
    return total


def prediction_files(folder: Path) -> dict[str, Path]:
    """Prediction file by sample token: `<token>.npz`, or `<scene>/<token>/labels.npz` as labels are stored.

    Raises:
        MissingInput: neither is there.
    """
    if not folder.is_dir():
        raise MissingInput(f"{folder}: no such folder")
    files = {path.stem: path for path in folder.glob("*.npz")}
    files = files or {path.parent.name: path for path in folder.glob("*/*/labels.npz")}
    if not files:
        raise MissingInput(f"{folder}: neither <token>.npz nor <scene>/<token>/labels.npz in it")
    return files


def read_prediction(path: Path, grid: VoxelGrid) -> np.ndarray:
    """Class ids uint8 (X, Y, Z) from key `pred`, or `semantics` as in Occ3D's labels.

    Raises:
        MissingInput, CorruptInput.
    """
    array = _read_cells(path, grid, ("pred", "semantics"), "ui", "integers")
    if array is None:
        raise CorruptInput(f"{path}: neither 'pred' nor 'semantics' in it")
    if array.min() < 0 or array.max() > 255:
        wrong = array.min() if array.min() < 0 else array.max()
        raise CorruptInput(f"{path}: holds label {wrong}, limits 0 and 255")
    return array.astype(np.uint8)


def read_observed(path: Path, grid: VoxelGrid) -> np.ndarray:
    """Which cells a prediction or label speaks of, bool (X, Y, Z); all of them where the file does not say.

    Raises:
        MissingInput, CorruptInput.
    """
    array = _read_cells(path, grid, ("observed", "mask_camera"), "bui", "bool or integers")
    return np.ones(grid.shape, dtype=bool) if array is None else array.astype(bool)


def _read_cells(path: Path, grid: VoxelGrid, keys: tuple[str, ...], kinds: str, wanted: str) -> np.ndarray | None:
    """The array under the first of `keys` that the file has, if it has one of them."""
    arrays = read_npz(path, grid)
    for key in keys:
        if key in arrays:
            array = arrays[key]
            if array.shape != grid.shape or array.dtype.kind not in kinds:
                raise CorruptInput(f"{path}: '{key}' must be {wanted} {grid.shape}, is {array.dtype} {array.shape}")
            return array
    return None


def write_report(path: Path, report: dict[str, Any]) -> None:
    """JSON of the report, atomically; a score that does not exist (no such class anywhere) is null."""
    from occ_core.training.checkpoint import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_without_nan(report), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def table(report: dict[str, dict[str, Any]]):
    """A rich table: one row a score, one column a protocol."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = {name.replace("_", " "): scores for name, scores in report.items() if name in PROTOCOLS}
    if ray := report.get("ray"):
        columns["RayIoU"] = {f"miou_{kind}": ray[f"rayiou_{kind}"] for kind in (15, 17)} | {
            "per_class": ray["per_class"]
        }
        for metres in THRESHOLDS_M:
            at = f"at_{metres}m"
            scores = {"miou_15": ray[f"{at}_15"], "miou_17": ray[at], "per_class": ray[f"per_class_{at}"]}
            columns[f"ray {metres} m"] = scores
    out = Table(
        title="percent; counts summed over all samples", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    out.add_column("", no_wrap=True)
    for name in columns:
        out.add_column(name, justify="right", min_width=max(map(len, name.split())))  # headers break between words
    for key, label in (("iou", "IoU"), ("miou_15", "mIoU, 15 classes"), ("miou_17", "mIoU, 17 classes")):
        out.add_row(label, *(_text(scores.get(key)) for scores in columns.values()))
    out.add_section()
    for name in next(iter(columns.values()))["per_class"]:
        out.add_row(name, *(_text(scores["per_class"][name]) for scores in columns.values()))
    return out


def _text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
