"""What losses have to know of a run's data: how often each class occurs, and how pseudo-labels err."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from occ_core.evaluation.voxel_iou import confusion_matrix
from occ_core.losses.voxel import class_weights
from occ_core.taxonomy import Taxonomy
from occ_core.training.label_files import IGNORE
from occ_core.training.moments import Moments
from occ_core.training.ranks import Ranks

CELL_MOMENTS, PIXEL_MOMENTS = 400, 100
"""Over how many, evenly chosen, classes are counted: reading labels is cheap, maps are not."""
RIGHT_CELLS = 100.0  # of each class, that pseudo-labels are taken to have right before any is counted


class Counts(NamedTuple):
    """Of all processes together."""

    weights: dict[str, Tensor]  # by fields of Targets
    record: dict[str, Any]  # cells and pixels of each class


def count_classes(moments: Moments, needs: frozenset[str], taxonomy: Taxonomy, ranks: Ranks) -> Counts:
    """Each process counts a part of the moments."""

    def some(of: Sequence[int], count: int) -> Sequence[int]:
        return of[:: max(1, len(of) // count)][ranks.rank :: ranks.world]

    weights, record = {}, {}
    labelled = some(moments.labelled, CELL_MOMENTS)
    if "labels" in needs:
        cells = ranks.sum(counted(map(moments.labels, labelled), len(taxonomy)))
        record["cells_per_class"] = cells.tolist()
        weights["class_weights"] = cell_weights(torch.from_numpy(cells), taxonomy.free_id)
    if "class_map" in needs:
        shown = some(range(len(moments)), PIXEL_MOMENTS)
        pixels = ranks.sum(counted(map(moments.class_map, shown), len(taxonomy)))
        record["pixels_per_class"] = pixels.tolist()
        weights["pixel_weights"] = class_weights(torch.from_numpy(pixels))
    if moments.pseudo_labelled:
        both = ranks.sum(confusion(moments, labelled, taxonomy))
        weights["pseudo_confusion"] = pseudo_confusion(torch.from_numpy(both))
    return Counts(weights, record)


def cell_weights(
    counts: Tensor,  # [C] observed cells of each class
    free_id: int,
) -> Tensor:  # [C] float32
    """1 / sqrt(frequency) among occupied classes, of mean 1 over their cells, 0 for classes that never occur; 1 for
    free cells, whose share of a loss is that loss' own affair."""
    counts = counts.clone()
    counts[free_id] = 0
    weights = class_weights(counts)
    weights[free_id] = 1.0
    return weights


def pseudo_confusion(
    counts: Tensor,  # int64 [C, C] cells of class i that pseudo-labels call j
) -> Tensor:  # [C, C] float32
    """P(j | i): with few cells counted, pseudo-labels are right."""
    counts = counts.float() + RIGHT_CELLS * torch.eye(len(counts))
    return counts / counts.sum(dim=1, keepdim=True)


def confusion(moments: Moments, labelled: Sequence[int], taxonomy: Taxonomy) -> np.ndarray:
    """Cells that both call occupied: int64 (C, C), by their label and by what pseudo-labels say."""
    matrix, free = np.zeros((len(taxonomy), len(taxonomy)), dtype=np.int64), taxonomy.free_id
    for index in labelled:
        truth, said = moments.labels(index), moments.pseudo_labels(index)
        both = (truth != IGNORE) & (truth != free) & (said != IGNORE) & (said != free)
        matrix += confusion_matrix(truth, said, both, len(taxonomy))
    return matrix


def counted(arrays: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """How often each class occurs, int64 (classes,)."""
    total = np.zeros(256, dtype=np.int64)
    for array in arrays:
        total += np.bincount(array.ravel(), minlength=256)
    return total[:classes]
