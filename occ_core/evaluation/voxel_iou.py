"""Computes IoU and mIoU of voxels from one confusion matrix, summed over the whole set.

A mean of per-sample or per-process scores is another number (two published codes report it); it is not offered here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.taxonomy import Taxonomy


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Count cells by (truth, prediction), int64 (classes, classes), where `mask` is set.

    Args:
        truth, predicted: uint8, same shape, 0..classes - 1 where `mask`.
        mask: bool, same shape.

    Raises:
        InvalidInput: shapes differ, or a label in the mask is no class.
    """
    if not truth.shape == predicted.shape == mask.shape:
        raise InvalidInput(f"truth {truth.shape}, prediction {predicted.shape} and mask {mask.shape} differ in shape")
    truth, predicted = truth[mask].astype(np.int64), predicted[mask].astype(np.int64)
    for name, labels in (("truth", truth), ("prediction", predicted)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise InvalidInput(f"{name} holds label {labels.max()}, limit {classes - 1}")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def scores(matrix: np.ndarray, taxonomy: Taxonomy) -> dict[str, Any]:
    """All voxel scores in percent.

    Returns:
        iou: occupied against free. miou_17: mean over all classes but free (Occ3D: 17). miou_15: without the taxonomy's
        ignored classes too (Occ3D: others and other_flat). per_class: IoU by class name, free left out.
        A class that occurs neither in truth nor in prediction has no IoU: None in per_class, and left out of the means.
    """
    hit = np.diag(matrix)
    per_class = iou_by_class(hit, matrix.sum(axis=0) + matrix.sum(axis=1) - hit)
    occupied, free = list(taxonomy.occupied_ids), taxonomy.free_id
    both = matrix[np.ix_(occupied, occupied)].sum()
    either = matrix.sum() - matrix[free, free]
    return {"iou": float(100 * both / either) if either else float("nan"), **class_means(per_class, taxonomy)}


def iou_by_class(hit: np.ndarray, union: np.ndarray) -> np.ndarray:
    """100 hit / union, from counts (..., classes); NaN for a class whose union is empty."""
    return np.where(union > 0, 100 * hit / np.maximum(union, 1), np.nan)


def class_means(per_class: np.ndarray, taxonomy: Taxonomy) -> dict[str, Any]:
    """Compute miou_17, miou_15 and per_class, see `scores`, from the classes' IoU (classes,), NaN where there is
    none."""
    occupied = list(taxonomy.occupied_ids)
    return {
        "miou_17": _mean(per_class[occupied]),
        "miou_15": _mean(per_class[[i for i in occupied if i not in taxonomy.ignored_ids]]),
        "per_class": {taxonomy.names[i]: None if np.isnan(v := per_class[i]) else float(v) for i in occupied},
    }


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
