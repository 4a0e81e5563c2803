"""The memory of EasyOcc nano: bird's-eye features of earlier frames, moved to where the robot is now.

One recurrent state in place of stored frames, as GDFusion (arXiv 2504.12959) has it. Where the state knows nothing, the
network computes exactly what one without memory does; so a state of zeros is none, and there is one set of weights.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models.easyocc.config import EasyOccConfig


class MemoryFusion(nn.Module):
    """Joins the moved state with the features of the frame, and selects what the next state keeps.

    The state, [B, memory channels + 1, X/2, Y/2], lies in -1..1; its last channel says where it knows something, 0..1.
    """

    centers_m: Tensor
    to_unit: Tensor
    corner: Tensor
    known: Tensor

    def __init__(self, config: EasyOccConfig):
        super().__init__()
        channels, kept = config.bev_channels[0], config.memory_channels
        # Two layers, not one on both: features and state are of unlike range, and each has its own int8 scale so.
        self.now = nn.Conv2d(channels, channels, 1)
        self.then = nn.Conv2d(kept + 1, channels, 3, 1, 1)
        self.change = nn.Conv2d(channels, channels, 1)
        self.keep = nn.Conv2d(channels, kept, 1)
        for parameter in self.change.parameters():  # until it has learned, a memory changes nothing
            nn.init.zeros_(parameter)
        centers_m = _centers_m(config)
        low_m, high_m = (torch.tensor(corner[:2]) for corner in (config.grid.origin_m, config.grid.upper_m))
        scale = 2 / (high_m - low_m)
        self.register_buffer("centers_m", centers_m[None], persistent=False)
        # grid_sample wants (y, x), for y is the last axis, each -1..1 from edge to edge of the grid
        self.register_buffer("to_unit", torch.diag(scale)[:, [1, 0]], persistent=False)
        self.register_buffer("corner", (-low_m * scale - 1)[[1, 0]], persistent=False)
        self.register_buffer("known", torch.ones(1, 1, *config.pillar_grid_shape[:2]), persistent=False)

    def moved(
        self,
        state: Tensor,  # [B, memory channels + 1, X/2, Y/2], seen from the ego frame then
        then_from_now: Tensor,  # [B, 2, 3]: (x, y, 1) in metres in the ego frame now to (x, y) in that of then
    ) -> Tensor:  # the same, seen from the ego frame now; zeros where the grid did not reach then
        """Resample the state bilinearly. It is called by name, not as a layer, so that fp16 exports keep its
        coordinates in fp32."""
        unit_from_now = then_from_now.transpose(1, 2) @ self.to_unit
        where = self.centers_m @ unit_from_now + self.corner
        where = where.reshape(-1, *self.known.shape[2:], 2)
        return F.grid_sample(state, where, mode="bilinear", padding_mode="zeros", align_corners=False)

    def forward(
        self,
        features: Tensor,  # [B, C, X/2, Y/2]
        past: Tensor,  # [B, memory channels + 1, X/2, Y/2], what `moved` gives
    ) -> Tensor:  # [B, C, X/2, Y/2]
        """The features, changed only where the state knows something."""
        change = self.change(F.relu(self.now(features) + self.then(past), inplace=True))
        return features + change * past[:, -1:]

    def kept(self, features: Tensor) -> Tensor:
        """What to remember of the features [B, C, X/2, Y/2]: a state without its last channel."""
        return torch.tanh(self.keep(features))

    def state(self, kept: Tensor) -> Tensor:
        """The state made of what `kept` returns; it knows something everywhere. It is called by name, like `moved`."""
        return torch.cat([kept, self.known.expand(kept.shape[0], -1, -1, -1)], dim=1)


def _centers_m(config: EasyOccConfig) -> Tensor:
    """Centres (x, y, 1) of the state's cells, float32 (X/2 * Y/2, 3)."""
    shape, cell_m = config.pillar_grid_shape, config.voxel_size_m * config.pillar_cells
    x, y = (o + (torch.arange(n) + 0.5) * cell_m for o, n in zip(config.grid_origin_m[:2], shape[:2], strict=True))
    x, y = torch.meshgrid(x, y, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3).float()
