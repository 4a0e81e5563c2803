"""Predicts where a viewing ray ends as a fraction of the way to where it meets the ground.

Road is at that place on any rig, and what stands on it is nearer by a share that the image alone tells (rows to its
foot against rows to the horizon), whatever the focal length and the height of the camera. GEDepth (arXiv 2309.09975)
adds the ground's depth to what a network reads; here the answer is told relative to it, beside the one at fixed depths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS, AT_GROUND = 18, 12  # numbered from 1; places 0 and BINS + 1 say nothing
PER_BIN, FINE = 0.25, 0.1  # steps of 2.8 % of the way where the ground is, wider ones far from it: 0.23 to 1.42 of it
LEAST = 1e-4  # 1 / m: ground farther away is none


def over_depth(
    logits: Tensor,  # [N, BINS, h, w]: of places along the way to the ground
    ground: Tensor,  # [N, 1, h, w]: 1 / distance, in 1 / m, at which each ray meets it, 0 for never
    log_depth: Tensor,  # [D, 1, 1]: of the depth bins' middles in m
) -> Tensor:  # [N, D, h, w]
    """Interpolate the logits linearly to the depth bins; they are 0 where a ray meets no ground."""
    position = places(ground, log_depth)
    none = torch.zeros_like(logits[:, :1])
    logits = torch.cat([none, logits, none, none], dim=1)
    first = position.floor()
    index = first.long()
    low, high = logits.gather(1, index), logits.gather(1, index + 1)
    return low + (position - first) * (high - low)


def over_depth_rows(
    logits: Tensor,  # [K, BINS]
    position: Tensor,  # [K, D], of `places`
) -> Tensor:  # [K, D]
    """The same of K rays, as runtimes like it: a gather from one vector, for which they have fast code."""
    logits = F.pad(logits, (1, 2))
    first = position.floor()
    index = first.int() + logits.shape[1] * torch.arange(logits.shape[0], dtype=torch.int32)[:, None]
    low, high = (logits.reshape(-1).index_select(0, i.reshape(-1)).reshape(position.shape) for i in (index, index + 1))
    return low + (position - first) * (high - low)


def places(ground: Tensor, log_depth: Tensor) -> Tensor:
    """Where along the way to the ground each depth is, counted in bins, 0 to BINS + 1; the two broadcast against each
    other."""
    ratio = ground.clamp(min=LEAST).log() + log_depth
    return (AT_GROUND + ratio.sign() * torch.log(ratio.abs() / FINE + 1) / PER_BIN).clamp(0, BINS + 1)
