"""Heads from features lifted into the grid to logits of its cells: in three dimensions, or over the ground plane."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models import checkpointing
from occ_core.models.easyocc.model import Residual, conv
from occ_core.models.easyocc.volume_config import EasyOccVolumeConfig
from occ_core.models.hourglass import StackedHourglass

SLABS = 8  # of the volume, whose hidden layer is computed again one after the other: as a whole it is the largest


class HourglassHead(nn.Module):
    """Stacked 3D hourglasses; where a feature stands for 2 x 2 x 2 cells, the cells come out of the channels."""

    def __init__(self, config: EasyOccVolumeConfig, channels_in: int, outputs: int):
        super().__init__()
        self.block, self.outputs, self.checkpoint = config.block, outputs, config.checkpoint
        c = config.hourglass_channels
        self.volume = StackedHourglass(channels_in, c, config.hourglass_stacks, config.checkpoint)
        cells = self.block[0] * self.block[1] * self.block[2]
        self.to_cells = nn.Sequential(nn.Linear(c, 2 * c), nn.ReLU(inplace=True), nn.Linear(2 * c, cells * outputs))

    def forward(self, lifted: Tensor) -> Tensor:  # [B, C, x, y, z] -> [B, X, Y, Z, outputs]
        rows = self.volume(lifted).permute(0, 2, 3, 4, 1)
        slabs = rows.chunk(SLABS if self.checkpoint else 1, dim=1)
        rows = torch.cat([checkpointing.run(self.to_cells, slab, self.checkpoint) for slab in slabs], dim=1)
        return blocks_to_cells(rows, self.block, self.outputs)


class BirdsEyeHead(nn.Module):
    """A 2D UNet over pillars; height comes out of the channels, as in FlashOcc (arXiv 2311.12058)."""

    def __init__(self, config: EasyOccVolumeConfig, channels_in: int, outputs: int):
        super().__init__()
        heights = config.lifted_shape[2]
        self.block, self.heights, self.outputs = config.block, heights, outputs
        self.checkpoint = config.checkpoint
        c1, c2, c3 = config.bev_channels
        self.enter = nn.Sequential(conv(heights * channels_in, c1, 1), Residual(c1))
        self.down2 = nn.Sequential(conv(c1, c2, stride=2), Residual(c2))
        self.down3 = nn.Sequential(conv(c2, c3, stride=2), Residual(c3), Residual(c3))
        self.up2, self.block2 = conv(c3, c2, 1), Residual(c2)
        self.up1, self.block1 = conv(c2, c1, 1), Residual(c1)
        cells = self.block[0] * self.block[1] * self.block[2]
        self.to_cells = nn.Sequential(
            nn.Linear(c1, 2 * c1), nn.ReLU(inplace=True), nn.Linear(2 * c1, heights * cells * outputs)
        )

    def forward(self, lifted: Tensor) -> Tensor:  # [B, C, x, y, z] -> [B, X, Y, Z, outputs]
        pillars = lifted.permute(0, 4, 1, 2, 3).flatten(1, 2)  # [B, z * C, x, y]
        x1 = checkpointing.run(self.enter, pillars, self.checkpoint)
        x2 = checkpointing.run(self.down2, x1, self.checkpoint)
        x3 = checkpointing.run(self.down3, x2, self.checkpoint)
        x2 = x2 + F.interpolate(self.up2(x3), size=x2.shape[2:], mode="nearest")
        x2 = checkpointing.run(self.block2, x2, self.checkpoint)
        x1 = x1 + F.interpolate(self.up1(x2), size=x1.shape[2:], mode="nearest")
        x1 = checkpointing.run(self.block1, x1, self.checkpoint)
        rows = self.to_cells(x1.permute(0, 2, 3, 1))  # [B, x, y, z * cells * outputs]
        return blocks_to_cells(rows.unflatten(-1, (self.heights, -1)), self.block, self.outputs)


def blocks_to_cells(
    rows: Tensor,  # [B, x, y, z, bx * by * bz * outputs]
    block: tuple[int, int, int],
    outputs: int,
) -> Tensor:  # [B, x * bx, y * by, z * bz, outputs]
    b, x, y, z, _ = rows.shape
    bx, by, bz = block
    cells = rows.reshape(b, x, y, z, bx, by, bz, outputs).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cells.reshape(b, x * bx, y * by, z * bz, outputs)


def position_channels(points_ego_m: Tensor, extent_m: Tensor) -> Tensor:
    """Position of each feature, which convolutions cannot know: [4, K] of x, y, z and distance, each in about -1..1.

    Args:
        points_ego_m: [K, 3]. extent_m: [3], largest |x|, |y|, |z| of the grid.
    """
    near = torch.log1p(points_ego_m[:, :2].norm(dim=1)) / torch.log1p(extent_m[:2].norm())
    return torch.cat([(points_ego_m / extent_m).T, near[None]])
