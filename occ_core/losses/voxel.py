"""Losses on cells, one row a cell: is it observed; and for observed ones only: is it occupied, and by what."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def class_weights(
    counts: Tensor,  # [C] cells of each class in the training labels
    ratio_limit: float = 20.0,
) -> Tensor:  # [C] float32
    """1 / sqrt(frequency), as OccNeRF weights its classes, at most `ratio_limit` apart; 0 for classes never seen.

    Normalised so that the average weight of a labelled cell is 1.
    """
    counts = counts.double()
    present = counts > 0
    if not present.any():
        return torch.zeros_like(counts).float()
    weights = torch.zeros_like(counts)
    weights[present] = counts[present].rsqrt()
    weights[present] = weights[present].clamp(max=ratio_limit * float(weights[present].min()))
    return (weights * counts.sum() / (weights * counts).sum()).float()


def geometry_loss(
    occupied_logit: Tensor,  # [K]
    occupied: Tensor,  # [K] bool
) -> Tensor:
    """Mean binary cross-entropy of occupied against free."""
    return F.binary_cross_entropy_with_logits(occupied_logit, occupied.to(occupied_logit.dtype))


def observed_loss(
    observed_logit: Tensor,  # [K], of any cells, hidden ones too
    observed: Tensor,  # [K] bool
) -> Tensor:
    """Mean binary cross-entropy of seen by a camera against hidden."""
    return F.binary_cross_entropy_with_logits(observed_logit, observed.to(observed_logit.dtype))


def semantic_loss(
    class_logits: Tensor,  # [K, C] of occupied cells
    target: Tensor,  # [K] int64
    weights: Tensor,  # [C]
) -> Tensor:
    """Weighted mean of the cross-entropy; the mean over weights keeps a sample full of rare cells from shouting."""
    if not len(target):
        return class_logits.sum() * 0
    return F.cross_entropy(class_logits, target, weight=weights)


def lovasz_softmax(
    probabilities: Tensor,  # [K, C]
    target: Tensor,  # [K] int64; a value outside 0..C-1 belongs to none of the classes
) -> Tensor:
    """Lovasz extension of the Jaccard loss, mean over the classes that occur in `target` (arXiv 1705.08790)."""
    losses = []
    for c in torch.unique(target).tolist():
        if not 0 <= c < probabilities.shape[1]:
            continue
        truth = (target == c).to(probabilities.dtype)
        errors, order = (truth - probabilities[:, c]).abs().sort(descending=True)
        losses.append(torch.dot(errors, lovasz_gradient(truth[order])))
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0


def lovasz_gradient(
    truth: Tensor,  # [K] 0 or 1, in order of falling error
) -> Tensor:  # [K]
    """Increase of the Jaccard loss as each cell in turn becomes wrong."""
    total = truth.sum()
    intersection = total - truth.cumsum(0)
    union = total + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
