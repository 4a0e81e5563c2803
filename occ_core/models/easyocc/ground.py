"""Where a viewing ray ends, told in parts of the way to where it meets the ground.

Road is at that place on any rig, and what stands on it is nearer by a share that the image alone tells: rows to its
foot against rows to the horizon, whatever the focal length and the height of the camera. A ray that rises is told by
its mirror image below the horizon. After GEDepth (arXiv 2309.09975), which adds the ground's depth to what a network
reads; here it is the answer that is told relative to it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.inference.table import LOWEST_M

SIDE = 50  # places before the ground, and as many beyond it
PLACES = 2 * SIDE + 1
STEP, FINE = 0.04, 0.5  # each 2 % of the way farther than the one before where the ground is; 4 % to 24 times the way
FARTHEST_M = 60.0  # ground that is farther away, if at all, counts as so far


class AlongTheWay(nn.Module):
    """Hazard logits at places along the way to the ground [N, PLACES, h, w] to those at depth bins [N, D, h, w]."""

    log_depth: Tensor
    log_width: Tensor

    def __init__(self, depth_edges_m: np.ndarray):
        super().__init__()
        middles_m, widths_m = (depth_edges_m[1:] + depth_edges_m[:-1]) / 2, np.diff(depth_edges_m)
        self.register_buffer("log_depth", _column(np.log(middles_m)), persistent=False)
        # a wider bin holds more of what ends somewhere in it
        self.register_buffer("log_width", _column(np.log(widths_m / middles_m / STEP)), persistent=False)

    def forward(
        self,
        logits: Tensor,
        slope: Tensor,  # [N, 1, h, w]: z of unit viewing directions
        height_m: Tensor,  # [N, 1, h, w]: of the camera above the ground
    ) -> Tensor:
        inverse = (slope.abs() / height_m.clamp(min=LOWEST_M)).clamp(min=1 / FARTHEST_M)  # of the way, in 1 / m
        share = inverse.log() + self.log_depth
        beyond, before = (torch.log(F.relu(part) / FINE + 1) for part in (share, -share))
        place = (SIDE + (beyond - before) / STEP).clamp(0, PLACES - 1.001)
        first = place.floor()
        index = first.long()
        low, high = logits.gather(1, index), logits.gather(1, index + 1)
        return low + (place - first) * (high - low) + self.log_width


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[:, None, None]
