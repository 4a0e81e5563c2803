"""SemanticKITTI semantic scene completion, as MonoScene and VoxFormer score it.

Cao and de Charette, "MonoScene", CVPR 2022; Li et al., "VoxFormer", CVPR 2023 (which reports three ranges).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.predictions import SUBMITTED, prediction_files, read_prediction, visible
from occ_core.evaluation.suspicions import FreeCells
from occ_core.evaluation.voxel_iou import confusion_matrix, scores
from occ_core.grid import SEMANTIC_KITTI_GRID
from occ_core.taxonomy import SEMANTIC_KITTI, UNLABELED
from occ_core.teachers.lidar import class_of_raw_kitti

RANGES_M = (12.8, 25.6, 51.2)


class SscScores:
    """One confusion matrix a range, summed over all samples."""

    def __init__(self) -> None:
        n = len(SEMANTIC_KITTI)
        self.samples = 0
        self.free = FreeCells(SEMANTIC_KITTI)
        self.matrices = {range_m: np.zeros((n, n), dtype=np.int64) for range_m in RANGES_M}

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one sample.

        Args:
            truth: uint8 (256, 256, 32), class ids, UNLABELED where nobody knows: such cells do not count.
            predicted: uint8 (256, 256, 32), class ids.

        Raises:
            InvalidInput: shapes differ from each other or from the grid, or a label is no class.
        """
        for name, labels in (("truth", truth), ("prediction", predicted)):
            if labels.shape != SEMANTIC_KITTI_GRID.shape:
                raise InvalidInput(f"{name} must be {SEMANTIC_KITTI_GRID.shape}, got {labels.shape}")
        known = truth != UNLABELED
        added = [confusion_matrix(truth, predicted, known & within(r), len(SEMANTIC_KITTI)) for r in RANGES_M]
        for range_m, matrix in zip(RANGES_M, added, strict=True):
            self.matrices[range_m] += matrix
        self.free.add(added[-1])
        self.samples += 1

    def merge(self, other: SscScores) -> None:
        """Add the counts of `other`."""
        for range_m, matrix in other.matrices.items():
            self.matrices[range_m] += matrix
        self.free.merge(other.free)
        self.samples += other.samples

    def report(self) -> dict[str, dict[str, Any]]:
        """{"12.8m", "25.6m", "51.2m": {precision, recall, iou, miou_19, per_class}} in percent.

        precision, recall, iou: of occupied against empty. miou_19: mean over all 19 classes, where as published a class
        that occurs neither in truth nor in prediction counts 0 (its per_class is None).
        """
        return {f"{range_m}m": _scores(matrix) for range_m, matrix in self.matrices.items()}

    def confusion(self) -> dict[str, Any]:
        """Cells by true class and predicted class, of the largest range: {protocol, classes, cells}."""
        cells = self.matrices[RANGES_M[-1]].tolist()
        return {"protocol": f"{RANGES_M[-1]}m", "classes": list(SEMANTIC_KITTI.names), "cells": cells}


def _scores(matrix: np.ndarray) -> dict[str, Any]:
    both = matrix[1:, 1:].sum()  # empty is 0
    found = scores(matrix, SEMANTIC_KITTI)
    return {
        "precision": _percent(both, matrix[:, 1:].sum()),
        "recall": _percent(both, matrix[1:].sum()),
        "iou": found["iou"],
        "miou_19": float(np.mean([value or 0.0 for value in found["per_class"].values()])),
        "per_class": found["per_class"],
    }


def _percent(part: int, whole: int) -> float:
    return float(100 * part / whole) if whole else float("nan")


@cache
def within(range_m: float) -> np.ndarray:
    """Mark the columns, bool (256, 256, 1), that are less than `range_m` ahead and half as far to either side."""
    x_m, y_m = np.moveaxis(SEMANTIC_KITTI_GRID.centers_m()[:, :, :1, :2], -1, 0)
    return (x_m < range_m) & (np.abs(y_m) < range_m / 2)


def holds_voxels(folder: Path) -> bool:
    """Whether a folder is one of SemanticKITTI's `voxels/<frame>.label`."""
    return any(visible(Path(folder), "*.label"))


def evaluate_voxels(
    predictions: Path, voxels: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Any], int]:
    """Score every prediction against `voxels`; returns the report and the number of samples.

    A prediction is <frame>.npz, or <scene>_<frame>.npz as `occ predict` calls it, of the scene whose voxels these are;
    or as it is submitted, <frame>.label, in `predictions` or below it in sequences/<scene>/predictions. The report has
    a list `warnings`, if there is one.

    Raises:
        MissingInput: no prediction, or no truth for one. CorruptInput: an unreadable file, naming it.
    """
    scene, total = Path(voxels).resolve().parent.name, SscScores()
    files = _of_scene(prediction_files(Path(predictions)), scene)
    if not files:
        raise MissingInput(f"{predictions}: no prediction of scene '{scene}'")
    if unmatched := sorted(frame for frame in files if not (voxels / f"{frame}.label").is_file()):
        raise MissingInput(f"{predictions}: no ground truth for {len(unmatched)} predictions, first: {unmatched[0]}")
    for frame, path in sorted(files.items()):
        truth, predicted = read_ssc_truth(voxels / f"{frame}.label"), read_prediction(path, SEMANTIC_KITTI_GRID)
        try:
            total.add(truth, predicted)
        except InvalidInput as error:
            raise CorruptInput(f"{path}: {error}") from error
        progress(total.samples, len(files))
    report: dict[str, Any] = total.report() | {"confusion": total.confusion()}
    if warnings := total.free.warnings():
        report["warnings"] = warnings
    return report, total.samples


def _of_scene(files: dict[str, Path], scene: str) -> dict[str, Path]:
    """Select files by the frame's number; submissions for other scenes are left out."""
    submitted = {path.suffix for path in files.values()} == {SUBMITTED}
    own = {name: path for name, path in files.items() if not submitted or name in (path.stem, f"{scene}_{path.stem}")}
    return {name.removeprefix(f"{scene}_"): path for name, path in own.items()}


def read_ssc_truth(path: Path) -> np.ndarray:
    """Read the truth, uint8 (256, 256, 32), of `voxels/<frame>.label`, without the cells that `<frame>.invalid` rules
    out.

    Raw label 0 is empty; raw labels without a class, and invalid cells, are 255.

    Raises:
        MissingInput: one of the two files. CorruptInput: of another size.
    """
    raw = np.frombuffer(_read(path, 2), dtype="<u2")
    truth = class_of_raw_kitti()[raw]
    truth[raw == 0] = SEMANTIC_KITTI.free_id
    truth[np.unpackbits(np.frombuffer(_read(path.with_suffix(".invalid"), 1 / 8), np.uint8)) == 1] = UNLABELED
    return truth.reshape(SEMANTIC_KITTI_GRID.shape)


def _read(path: Path, bytes_a_cell: float) -> bytes:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    data, expected = path.read_bytes(), int(SEMANTIC_KITTI_GRID.cells * bytes_a_cell)
    if len(data) != expected:
        raise CorruptInput(f"{path}: {len(data)} bytes, a grid of {SEMANTIC_KITTI_GRID.shape} has {expected}")
    return data
