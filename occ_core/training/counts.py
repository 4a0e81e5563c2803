"""How often each class occurs in the data of a run, and the loss weights that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from occ_core.losses.voxel import class_weights
from occ_core.models.build import ModelConfig
from occ_core.training.ranks import Ranks
from occ_core.training.tabulated import Samples


class Counts(NamedTuple):
    """Class weights and counts, summed over all processes."""

    weights: dict[str, Tensor]  # by fields of Targets
    record: dict[str, Any]  # cells and pixels of each class


def count_classes(samples: Samples, config: ModelConfig, ranks: Ranks) -> Counts:
    """Count the classes in the training samples; each process counts a part of them."""

    def some(of: Sequence[int], count: int) -> Sequence[int]:
        return of[:: max(1, len(of) // count)][ranks.rank :: ranks.world]

    taxonomy, weights, record = config.classes, {}, {}
    if "labels" in samples.needs:
        labelled = some(samples.labelled, samples.counted_cells)
        cells = ranks.sum(counted(map(samples.labels, labelled), len(taxonomy)))
        record["cells_per_class"] = cells.tolist()
        weights["class_weights"] = cell_weights(torch.from_numpy(cells), taxonomy.free_id)
    if "class_map" in samples.needs:
        shown = some(range(len(samples)), samples.counted_pixels)
        pixels = ranks.sum(counted(map(samples.class_map, shown), len(taxonomy)))
        record["pixels_per_class"] = pixels.tolist()
        weights["pixel_weights"] = class_weights(torch.from_numpy(pixels), config.pixel_ratio_limit)
    return Counts(weights, record)


def cell_weights(
    counts: Tensor,  # [C] observed cells of each class
    free_id: int,
) -> Tensor:  # [C] float32
    """Class weights 1 / sqrt(frequency) among occupied classes, scaled to a mean of 1 over their cells. Classes that
    never occur get 0, free cells 1: how much free cells count is up to each loss."""
    counts = counts.clone()
    counts[free_id] = 0
    weights = class_weights(counts)
    weights[free_id] = 1.0
    return weights


def counted(arrays: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Count how often each class occurs, int64 (classes,)."""
    total = np.zeros(256, dtype=np.int64)
    for array in arrays:
        total += np.bincount(array.ravel(), minlength=256)
    return total[:classes]
