"""Losses on viewing rays: where each feature pixel's ray ends, and in which class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.taxonomy import UNLABELED


def depth_loss(
    hazard_logits: Tensor,  # [N, D, h, w], see models.lifting
    target: Tensor,  # [N, h, w] uint8: bin 0..D-1 where the ray ends, D = beyond all bins, UNLABELED = unknown
) -> Tensor:
    """Negative log-likelihood of where the rays end: each survives all nearer bins, then ends in its own."""
    n, d, h, w = hazard_logits.shape
    rows, target = hazard_logits.permute(0, 2, 3, 1).reshape(n * h * w, d), target.reshape(-1, 1).long()
    bins = torch.arange(d, device=rows.device)
    # softplus(s) = -log(1 - hazard), softplus(s) - s = -log(hazard)
    loss = torch.where(bins <= target, F.softplus(rows), 0).sum(1) - torch.where(bins == target, rows, 0).sum(1)
    known = target[:, 0] != UNLABELED
    return torch.where(known, loss, 0).sum() / known.sum().clamp(min=1)


def pixel_class_loss(
    logits: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, h, w] uint8 class, UNLABELED = unknown
    weights: Tensor,  # [C]
) -> Tensor:
    """Weighted mean of the cross-entropy of the class in which a ray ends."""
    rows, target = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]), target.reshape(-1).long()
    known = target != UNLABELED
    if not (weights[target[known]] > 0).any():
        return rows.sum() * 0
    return F.cross_entropy(rows[known], target[known], weight=weights)
