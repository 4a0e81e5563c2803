"""Every protocol of the field from one pass over predictions and ground truth, as a dict, a JSON file and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import CorruptInput, MissingInput
from occ_core.evaluation.voxel_iou import confusion_matrix, scores
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy, load_occ3d, read_npz
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
        for name, mask in masks.items():
            self.matrices[name] += confusion_matrix(truth.labels, predicted, mask, len(self.taxonomy))
        self.samples += 1

    def merge(self, other: VoxelScores) -> None:
        """Count all that `other` counted."""
        for name, matrix in other.matrices.items():
            self.matrices[name] += matrix
        self.samples += other.samples

    def report(self) -> dict[str, dict[str, Any]]:
        """{protocol: {iou, miou_17, miou_15, per_class}} in percent."""
        return {name: scores(matrix, self.taxonomy) for name, matrix in self.matrices.items()}


def evaluate_folders(
    predictions: Path,
    truths: Path,
    grid: VoxelGrid = OCC3D_GRID,
    taxonomy: Taxonomy = OCC3D,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Score every prediction, and the number of samples scored. See `prediction_files` for what a folder may hold.

    Raises:
        MissingInput: no prediction at all, or ground truth is missing for one.
        CorruptInput: an unreadable file.
    """
    files = prediction_files(Path(predictions))
    answers = {path.parent.name: path for path in Path(truths).glob("*/*/labels.npz")}
    if not answers:
        raise MissingInput(f"{truths}: no <scene>/<token>/labels.npz below it")
    unmatched = sorted(set(files) - set(answers))
    if unmatched:
        raise MissingInput(f"{truths}: no ground truth for {len(unmatched)} predictions, first: {unmatched[0]}")
    total = VoxelScores(taxonomy)
    for i, (token, path) in enumerate(sorted(files.items())):
        total.add(load_occ3d(answers[token], grid, taxonomy), read_prediction(path, grid))
        progress(i + 1, len(files))
    return total.report(), total.samples


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
    arrays = read_npz(path, grid)
    key = next((key for key in ("pred", "semantics") if key in arrays), None)
    if key is None:
        raise CorruptInput(f"{path}: neither 'pred' nor 'semantics' in it, only {sorted(arrays)}")
    array = arrays[key]
    if array.shape != grid.shape or array.dtype.kind not in "ui":
        raise CorruptInput(f"{path}: '{key}' must be integers {grid.shape}, is {array.dtype} {array.shape}")
    if array.min() < 0 or array.max() > 255:
        raise CorruptInput(f"{path}: '{key}' holds label {array.max()}, limit 255")
    return array.astype(np.uint8)


def read_observed(path: Path, grid: VoxelGrid) -> np.ndarray:
    """Which cells a prediction or label speaks of, bool (X, Y, Z); all of them where the file does not say.

    Raises:
        MissingInput, CorruptInput.
    """
    arrays = read_npz(path, grid)
    key = next((key for key in ("observed", "mask_camera") if key in arrays), None)
    if key is None:
        return np.ones(grid.shape, dtype=bool)
    array = arrays[key]
    if array.shape != grid.shape or array.dtype.kind not in "bui":
        raise CorruptInput(f"{path}: '{key}' must be bool or integers {grid.shape}, is {array.dtype} {array.shape}")
    return array.astype(bool)


def write_report(path: Path, report: dict[str, dict[str, Any]]) -> None:
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
    from rich.table import Table

    out = Table(title="percent; one confusion matrix over all samples", title_justify="left")
    out.add_column("")
    for name in report:
        out.add_column(name, justify="right")

    def row(label: str, values: list[float | None]) -> None:
        out.add_row(label, *("-" if v is None or math.isnan(v) else f"{v:.1f}" for v in values))

    for key, label in (("iou", "IoU"), ("miou_15", "mIoU, 15 classes"), ("miou_17", "mIoU, 17 classes")):
        row(label, [scores[key] for scores in report.values()])
    out.add_section()
    for name in next(iter(report.values()))["per_class"]:
        row(name, [scores["per_class"][name] for scores in report.values()])
    return out
