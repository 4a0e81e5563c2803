"""Scores predictions in every protocol of the field in one pass, as a dict, a JSON file and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.predictions import (
    prediction_files,
    read_confidence,
    read_observed,
    read_prediction,
    visible,
)
from occ_core.evaluation.ray_iou import THRESHOLDS_M, RayScores
from occ_core.evaluation.reliability import Reliability
from occ_core.evaluation.suspicions import FreeCells, other_axes
from occ_core.evaluation.voxel_iou import confusion_matrix, scores
from occ_core.files import write_atomically
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.parallel import Step, run_in_processes
from occ_core.taxonomy import OCC3D, Taxonomy

PROTOCOLS = {
    "camera": "cells that a camera observes (mask_camera); Occ3D's official score",
    "camera_and_lidar": "cells that a camera and the LiDAR observe",
    "full": "all cells; what nobody observed counts as free",
}
AXES_SAMPLES = 16
"""At most so many samples, evenly chosen, are tried with other axes."""


def protocol_masks(truth: Occupancy) -> dict[str, np.ndarray]:
    """For each protocol whose masks the truth has, the cells that count, bool (X, Y, Z)."""
    masks = {"full": np.ones_like(truth.observed)}
    if truth.is_masked:
        masks["camera"] = truth.observed
    if truth.is_masked and truth.mask_lidar is not None:
        masks["camera_and_lidar"] = truth.observed & truth.mask_lidar
    return masks


class VoxelScores:
    """One confusion matrix for each protocol, summed over all samples that have its masks."""

    def __init__(self, taxonomy: Taxonomy = OCC3D):
        self.taxonomy = taxonomy
        self.samples = 0
        self.counted = dict.fromkeys(PROTOCOLS, 0)  # samples of each protocol
        self.free = FreeCells(taxonomy)
        self.matrices = {name: np.zeros((len(taxonomy), len(taxonomy)), dtype=np.int64) for name in PROTOCOLS}

    def add(self, truth: Occupancy, predicted: np.ndarray) -> None:
        """Count one sample.

        Args:
            truth: with `observed` as the cameras' mask, and `mask_lidar`; protocols whose masks it lacks stay as they
                are.
            predicted: uint8 (X, Y, Z) class ids.
        """
        masks, classes = protocol_masks(truth), len(self.taxonomy)
        added = {name: confusion_matrix(truth.labels, predicted, mask, classes) for name, mask in masks.items()}
        for name, matrix in added.items():
            self.matrices[name] += matrix
            self.counted[name] += 1
        self.free.add(added["full"])
        self.samples += 1

    def merge(self, other: VoxelScores) -> None:
        """Add the counts of `other`."""
        for name, matrix in other.matrices.items():
            self.matrices[name] += matrix
            self.counted[name] += other.counted[name]
        self.free.merge(other.free)
        self.samples += other.samples

    def report(self) -> dict[str, dict[str, Any]]:
        """{protocol: {iou, miou_17, miou_15, per_class}} in percent; NaN and None where no sample has the masks."""
        return {name: scores(matrix, self.taxonomy) for name, matrix in self.matrices.items()}

    def confusion(self) -> dict[str, Any]:
        """Cells by true class and predicted class, of the first protocol that samples have masks for: {protocol,
        classes, cells}."""
        name = next((name for name, n in self.counted.items() if n), "full")
        return {"protocol": name, "classes": list(self.taxonomy.names), "cells": self.matrices[name].tolist()}

    def warnings(self) -> list[str]:
        """One line for each reason why numbers may not be what they seem: missing masks, or ids of another kind."""
        lacking = [
            f"'{name.replace('_', ' ')}' leaves out {self.samples - n} of {self.samples} samples"
            for name, n in self.counted.items()
            if n < self.samples
        ]
        masks = f"the truth lacks masks: {', '.join(lacking)}"
        return [*([masks] if lacking else []), *self.free.warnings()]


class SetScores:
    """VoxelScores; RayScores if all samples have ray origins; and Reliability of the samples that have confidence.

    Args:
        taxonomy, grid: of truth and predictions.
    """

    def __init__(self, taxonomy: Taxonomy = OCC3D, grid: VoxelGrid = OCC3D_GRID) -> None:
        self.taxonomy, self.grid = taxonomy, grid
        self.voxels = VoxelScores(taxonomy)
        self.rays: RayScores | None = None
        self.reliability = Reliability(taxonomy, grid)

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
        """Add the counts of `other`."""
        if self.voxels.samples and other.voxels.samples and (self.rays is None) != (other.rays is None):
            raise InvalidInput("ray origins must come with all samples or none; only one of two parts has them")
        self.voxels.merge(other.voxels)
        self.reliability.merge(other.reliability)
        if other.rays is not None:
            self.rays = self.rays or RayScores(self.taxonomy, self.grid)
            self.rays.merge(other.rays)

    def report(self) -> dict[str, dict[str, Any]]:
        """VoxelScores' report and `confusion`; with rays `ray`, see RayScores.report; with confidence `reliability`,
        see there."""
        rays = {} if self.rays is None else {"ray": self.rays.report()}
        reliability = {"reliability": self.reliability.report()} if self.reliability.samples else {}
        return self.voxels.report() | {"confusion": self.voxels.confusion()} | rays | reliability


def score_set(
    samples: Iterable[tuple[Occupancy, np.ndarray, np.ndarray | None]],
    taxonomy: Taxonomy = OCC3D,
    grid: VoxelGrid = OCC3D_GRID,
) -> dict[str, dict[str, Any]]:
    """Make the report of `occ eval` for predictions in memory.

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
) -> tuple[dict[str, Any], int]:
    """Score every prediction; returns the report and the number of samples. `prediction_files` says what a folder may
    hold.

    The report has a list `warnings` of lines, if there is one: see VoxelScores.warnings and suspicions.other_axes.

    Args:
        origins_ego_m: by sample token, see `ray_iou.ray_origins`; None: no RayIoU.
        workers: processes.

    Raises:
        MissingInput: no prediction at all, or ground truth or ray origins are missing for one.
        CorruptInput: an unreadable file, naming it.
        InvalidInput: no worker. MissingPackage: origins, but no numba.
    """
    files = prediction_files(Path(predictions))
    answers = {path.parent.name: path for path in visible(Path(truths), "*/*/labels.npz")}
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
    report: dict[str, Any] = total.report()
    some = pairs[:: -(-len(pairs) // AXES_SAMPLES)]
    if warnings := [*total.voxels.warnings(), *filter(None, [_axes_of(some, taxonomy, grid)])]:
        report["warnings"] = warnings
    return report, total.voxels.samples


def _axes_of(pairs: list[_Pair], taxonomy: Taxonomy, grid: VoxelGrid) -> str | None:
    labels = ((load_occ3d(p.truth, grid, taxonomy).labels, read_prediction(p.prediction, grid)) for p in pairs)
    return other_axes(labels, taxonomy)


def _score_pairs(taxonomy: Taxonomy, grid: VoxelGrid, pairs: list[_Pair], step: Step) -> SetScores:
    total = SetScores(taxonomy, grid)
    for pair in pairs:
        truth, predicted = load_occ3d(pair.truth, grid, taxonomy), read_prediction(pair.prediction, grid)
        try:
            total.add(truth, predicted, pair.origins_ego_m)
            if (confidence := read_confidence(pair.prediction, grid)) is not None:
                total.reliability.add(truth, predicted, read_observed(pair.prediction, grid), confidence)
        except InvalidInput as error:
            raise CorruptInput(f"{pair.prediction}: {error}") from error
        step()
    return total


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the report as JSON, atomically; a score that does not exist (no such class anywhere) is null."""
    write_atomically(path, (json.dumps(_without_nan(report), indent=2) + "\n").encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def table(report: dict[str, dict[str, Any]]):
    """A rich table with one row for each score and one column for each protocol."""
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
