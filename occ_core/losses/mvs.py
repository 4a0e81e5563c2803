"""The MVS-embedded photometric loss of SelfOcc (arXiv 2311.12754): every sample on a ray is a depth proposal.

A loss at the rendered depth sees the images only beside the point where that depth projects to, so it is right only
within a pixel or so of the truth. Here each sample of a ray is warped to the neighbouring image, and its weight falls or
rises with how well the colour there fits, wherever on the ray it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from occ_core.losses.photometric import ssim


def proposals_in_view(
    weights: Tensor,  # [N, S, h, w]
    inside: Tensor,  # [N, S, h, w] bool: does the sample project into the neighbouring image
) -> tuple[Tensor, Tensor]:  # [N, S, h, w], bool [N, 1, h, w]
    """Weights renormalised over the samples that the neighbour sees; and whether it sees any of the ray at all."""
    seen = weights * inside
    total = seen.sum(dim=1, keepdim=True)
    return seen / total.clamp(min=1e-6), total > 1e-6


def mvs_photometric_error(
    target: Tensor,  # [N, 3, h, w]
    proposals: Tensor,  # [N, 3, S, h, w], colour of the neighbouring image where each sample projects to
    inside: Tensor,  # [N, S, h, w] bool
    weights: Tensor,  # [N, S, h, w], of rendering
) -> tuple[Tensor, Tensor]:  # [N, 1, h, w], bool [N, 1, h, w]
    """0.85 (1 - SSIM) / 2 of the weight-blended warped image + 0.15 of the weighted L1 of all samples; and where valid.

    With all weight of each ray on one sample this is the photometric error of the image warped at that sample's depth.
    """
    share, valid = proposals_in_view(weights, inside)
    l1 = (share * (proposals - target.unsqueeze(2)).abs().mean(dim=1)).sum(dim=1, keepdim=True)
    blended = (share.unsqueeze(1) * proposals).sum(dim=2)
    dissimilar = (1 - ssim(blended, target).mean(dim=1, keepdim=True)) / 2
    return 0.85 * dissimilar + 0.15 * l1, valid
