"""Losses on viewing rays: where each feature pixel's ray ends, and in what."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def depth_loss(
    logits: Tensor,  # [N, D, h, w]
    target: Tensor,  # [N, h, w] uint8: bin 0..D-1, D = ends beyond all bins, 255 = unknown
) -> Tensor:
    """Cross-entropy of the bin in which a ray ends; "beyond" has the fixed logit 0 (see models.lifting)."""
    n, d, h, w = logits.shape
    rows = logits.permute(0, 2, 3, 1).reshape(n * h * w, d)
    rows = torch.cat([rows, rows.new_zeros(rows.shape[0], 1)], dim=1)
    return _mean_cross_entropy(rows, target.reshape(-1).long())


def pixel_class_loss(
    logits: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, h, w] uint8 class, 255 = unknown
) -> Tensor:
    """Cross-entropy of the class in which a ray ends. Unweighted: near objects fill images, so few classes are rare."""
    rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return _mean_cross_entropy(rows, target.reshape(-1).long())


def _mean_cross_entropy(rows: Tensor, target: Tensor) -> Tensor:
    known = target != IGNORE
    if not known.any():
        return rows.sum() * 0
    return F.cross_entropy(rows[known], target[known])
