"""The MVS-embedded photometric loss of SelfOcc (arXiv 2311.12754): every sample on a ray is a depth proposal.

A loss at the rendered depth sees the neighbouring image only beside the point where that depth projects to, so it
points to the truth only from within a pixel or so. Here each sample of a ray is warped to the neighbouring image, and
its weight falls or rises with how well the colour there fits, wherever on the ray it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from occ_core.losses.photometric import SSIM_SHARE, ssim

SMALLEST = 1e-6  # share of a ray


def proposals_in_view(
    weights: Tensor,  # [N, S, h, w]
    inside: Tensor,  # [N, S, h, w] bool: does the sample project into the neighbouring image
) -> tuple[Tensor, Tensor]:  # [N, S, h, w], bool [N, 1, h, w]
    """Weights renormalised over the samples that the neighbour sees; and whether it sees any of the ray at all."""
    seen = weights * inside
    total = seen.sum(dim=1, keepdim=True)
    valid = total > SMALLEST
    # A ray that is out of the neighbour's view is not compared, but windows of SSIM beside it reach into it.
    return torch.where(valid, seen / total.clamp(min=SMALLEST), weights), valid


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
    unlike = ((1 - ssim(blended, target)) / 2).clamp(0, 1).mean(dim=1, keepdim=True)
    return SSIM_SHARE * unlike + (1 - SSIM_SHARE) * l1, valid
