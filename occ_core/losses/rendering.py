"""Losses on rendered rays: each ray should end at one place, or nowhere."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_loss(
    opacity: Tensor,  # [...] probability that the ray ends within the volume
) -> Tensor:
    """Mean binary entropy, nats: a ray either ends or meets nothing; 0 of no ray."""
    p = opacity.float().clamp(1e-6, 1 - 1e-6)
    entropy = -(p * torch.log(p) + (1 - p) * torch.log(1 - p))
    return entropy.sum() / max(entropy.numel(), 1)


def distortion(
    weights: Tensor,  # [..., S] of the samples along each ray
    positions: Tensor,  # [..., S] of the samples, not falling
    widths: Tensor,  # [..., S] of the samples' intervals, in the same unit
) -> Tensor:  # [...]
    """sum_ij w_i w_j |s_i - s_j| + 1/3 sum_i w_i^2 width_i (Mip-NeRF 360, arXiv 2111.12077, equation 15).

    In time linear in S: with sorted positions, each pair is counted twice with the nearer one's sums known.
    """
    weighted = weights * positions
    nearer_weight, nearer_weighted = weights.cumsum(-1) - weights, weighted.cumsum(-1) - weighted
    between = 2 * (weights * (positions * nearer_weight - nearer_weighted)).sum(-1)
    return between + (weights * weights * widths).sum(-1) / 3
