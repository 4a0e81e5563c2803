"""Scores labels against exact truth in every protocol, and against LiDAR points that they were not made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import CorruptInput, MissingInput
from occ_core.evaluation.lidar_rays import point_classes
from occ_core.evaluation.report import PROTOCOLS, VoxelScores, protocol_masks, table
from occ_core.evaluation.voxel_iou import confusion_matrix
from occ_core.geometry import apply, inverse
from occ_core.labels.store import LabelStore
from occ_core.lidar_points import OWN_BODY_M
from occ_core.occupancy import Occupancy, load_occ3d
from occ_core.sources.scenes import Recording, SceneFrames
from occ_core.taxonomy import OCC3D, Taxonomy


class LabelScores:
    """Scores of all protocols of `occ eval`, and how many cells the labels decide; undecided cells count as free."""

    def __init__(self, taxonomy: Taxonomy = OCC3D) -> None:
        self.taxonomy = taxonomy
        self.voxels = VoxelScores(taxonomy)
        self.counts = {name: np.zeros(4, dtype=np.int64) for name in PROTOCOLS}  # cells, decided, free, rightly free

    def add(self, truth: Occupancy, label: Occupancy) -> None:
        """Count one sample; `truth.observed` is the cameras' mask."""
        self.voxels.add(truth, label.labels)
        everywhere = np.ones_like(truth.observed)
        free = label.observed & (label.labels == self.taxonomy.free_id)
        rightly = free & (truth.labels == self.taxonomy.free_id)
        for name, mask in protocol_masks(truth).items():
            self.counts[name] += [(mask & cells).sum() for cells in (everywhere, label.observed, free, rightly)]

    def merge(self, other: LabelScores) -> None:
        """Add the counts of `other`."""
        self.voxels.merge(other.voxels)
        for name, counts in other.counts.items():
            self.counts[name] += counts

    def report(self) -> dict[str, dict[str, Any]]:
        """The report of VoxelScores, with `decided` and `free_precision` in percent for each protocol."""
        report = self.voxels.report()
        for name, (cells, decided, free, rightly) in self.counts.items():
            report[name] |= {"decided": _percent(decided, cells), "free_precision": _percent(rightly, free)}
        return report


class PointScores:
    """Scores labels against points of a LiDAR that they were not made from."""

    def __init__(self, taxonomy: Taxonomy = OCC3D) -> None:
        self.taxonomy = taxonomy
        self.points = np.zeros(3, dtype=np.int64)  # in occupied, free, undecided cells
        self.free_cells = np.zeros(2, dtype=np.int64)  # all, and those with a point in them
        self.classes = np.zeros((len(taxonomy), len(taxonomy)), dtype=np.int64)

    def add(self, label: Occupancy, points_ego_m: np.ndarray, point_class: np.ndarray | None = None) -> None:
        """Count one sample.

        Args:
            points_ego_m: (N, 3) in the label's ego frame; those outside the grid do not count.
            point_class: uint8 (N,), ids of the taxonomy; ids outside it and the free id mean unknown.
        """
        index, inside = label.grid.index_of(points_ego_m)
        at = tuple(index[inside].T)
        occupied = label.occupied[at]
        free = label.observed[at] & ~occupied
        self.points += [occupied.sum(), free.sum(), (~occupied & ~free).sum()]
        hit = np.zeros(label.grid.shape, dtype=bool)
        hit[at] = True
        called_free = label.observed & ~label.occupied
        self.free_cells += [called_free.sum(), (called_free & hit).sum()]
        if point_class is not None:
            truth = point_class[inside]
            known = (truth < len(self.taxonomy)) & (truth != self.taxonomy.free_id) & occupied
            self.classes += confusion_matrix(truth, label.labels[at], known, len(self.taxonomy))

    def report(self) -> dict[str, Any]:
        """Scores in percent, and `points`, the number of points in the grid.

        in_occupied, in_free, in_undecided: where the points lie. free_cells_hit: cells called free that hold a point.
        class_agreement: points of known class in occupied cells whose cell has that class; None without classes.
        per_class: the same by the points' class.
        """
        total, classes = self.points.sum(), self.classes
        shares = [_percent(count, total) for count in self.points]
        per_class = {
            name: _percent(classes[i, i], classes[i].sum())
            for i, name in enumerate(self.taxonomy.names)
            if classes[i].sum()
        }
        return {
            "points": int(total),
            **dict(zip(("in_occupied", "in_free", "in_undecided"), shares, strict=True)),
            "free_cells_hit": _percent(self.free_cells[1], self.free_cells[0]),
            "class_agreement": _percent(np.trace(classes), classes.sum()),
            "per_class": per_class,
        }


def score_store(
    folder: Path,
    dataroot: Path,
    scenes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    version: str | None = None,
) -> dict[str, Any]:
    """Score the labels of a store against the recording's gts/ and its LiDAR, as far as they exist.

    Args:
        dataroot: what the labels were made of: nuScenes layout, SemanticKITTI, a bag.

    Returns:
        {samples, lacking (labels that are not there yet), sweeps_missing (LiDAR files of them that are not there),
        warnings (if there are any, as of VoxelScores), camera, camera_and_lidar, full, lidar}; see LabelScores and
        PointScores.

    Raises:
        MissingInput: no label at all, one of another recording, or neither truth nor LiDAR for any.
        CorruptInput.
    """
    store, recording = LabelStore.open(folder), Recording(dataroot, version)
    wanted = [pair for pair in store.samples if scenes is None or pair[0] in scenes]
    there = [pair for pair in wanted if store.path(*pair).is_file()]
    if not there:
        raise MissingInput(f"{folder}: none of its {len(wanted)} labels is there yet")
    recording.require_scenes(sorted({scene for scene, _ in there}))
    voxels, points, missing, done = LabelScores(store.taxonomy), PointScores(store.taxonomy), 0, 0
    for scene in dict.fromkeys(scene for scene, _ in there):
        frames = recording.scene(scene)
        index_of = {token: index for index, token in enumerate(frames.tokens)}
        for token in (token for name, token in there if name == scene):
            if token not in index_of:
                raise MissingInput(f"{dataroot}: no sample '{token}' in {scene}; is it what {folder} is made of?")
            label = store.read(scene, token).occupancy
            truth = recording.truth_path(scene, token)
            if truth is not None and truth.is_file():
                voxels.add(load_occ3d(truth), label)
            try:
                if (measured := measured_points(frames, index_of[token], store.taxonomy)) is not None:
                    points.add(label, *measured)
            except MissingInput:
                missing += 1
            done += 1
            progress(done, len(there))
    counts = {"samples": len(there), "lacking": len(wanted) - len(there), "sweeps_missing": missing}
    report: dict[str, Any] = dict(counts)
    if voxels.voxels.samples:
        report |= voxels.report()
        if warnings := voxels.voxels.warnings():
            report["warnings"] = warnings
    if points.points.sum():
        report["lidar"] = points.report()
    if report == counts:
        raise MissingInput(f"{dataroot}: neither gts/ nor LiDAR for any of the {len(there)} labels of {folder}")
    return report


def measured_points(frames: SceneFrames, index: int, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Return the LiDAR points of a keyframe's own sweep, without those on the robot itself; None: it has no sweep.

    Returns:
        float64 (N, 3) in the ego frame at the keyframe's time; uint8 (N,), their classes where the recording has them.

    Raises:
        MissingInput: the sweep's file is not there. CorruptInput: naming the file.
    """
    number = frames.source_indices[index]
    sweeps = frames.source.sweeps_before(number, 1)
    if not sweeps:
        return None
    (sweep,), (_, world_from_ego) = sweeps, frames.source.stamp_and_pose(number)
    outside = np.linalg.norm(sweep.points_lidar_m, axis=1) > OWN_BODY_M
    points_m = sweep.points_ego_m[outside]
    if not np.array_equal(world_from_ego, sweep.world_from_ego):  # the LiDAR's time is another one
        points_m = apply(inverse(world_from_ego) @ sweep.world_from_ego, points_m)
    classes = point_classes(frames.source, number, taxonomy)
    if classes is not None and len(classes) != len(outside):
        raise CorruptInput(f"sample '{frames.tokens[index]}': {len(classes)} labels for {len(outside)} LiDAR points")
    return points_m, None if classes is None else classes[outside]


def tables_of(report: dict[str, Any]) -> list:
    """Rich tables of a report."""
    from rich.table import Table

    found = []
    if protocols := {name: report[name] for name in PROTOCOLS if name in report}:
        voxels = table(protocols)
        voxels.add_section()
        for key, name in (("decided", "cells decided"), ("free_precision", "precision of free")):
            voxels.add_row(name, *(_text(scores[key]) for scores in protocols.values()))
        found.append(voxels)
    if lidar := report.get("lidar"):
        points = Table("percent", f"{lidar['points']} LiDAR points", title="held-out LiDAR", title_justify="left")
        for key in ("in_occupied", "in_free", "in_undecided", "free_cells_hit", "class_agreement"):
            points.add_row(key.replace("_", " "), _text(lidar[key]))
        for name, share in lidar["per_class"].items():
            points.add_row(f"class agreement, {name}", _text(share))
        found.append(points)
    return found


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(part: Any, whole: Any) -> float | None:
    return float(100 * part / whole) if whole else None
