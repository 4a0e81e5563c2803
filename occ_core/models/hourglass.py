"""Stacked 3D hourglasses over a volume of features, after PSMNet (Chang and Chen, arXiv 1803.08669, section 3.4)."""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models import checkpointing


def conv3d(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm3d(cout))


class Hourglass(nn.Module):
    """Goes down to 1/2 and 1/4 of the volume's resolution and back, with sums across; the volume may have any shape."""

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels
        self.down1, self.same1 = conv3d(channels, wide, 2), conv3d(wide, wide)
        self.down2, self.same2 = conv3d(wide, wide, 2), conv3d(wide, wide)
        self.up1 = nn.ConvTranspose3d(wide, wide, 3, 2, 1, bias=False)
        self.up1_norm = nn.BatchNorm3d(wide)
        self.up2 = nn.ConvTranspose3d(wide, channels, 3, 2, 1, bias=False)
        self.up2_norm = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, X, Y, Z] -> the same
        half = F.relu(self.same1(F.relu(self.down1(x), inplace=True)), inplace=True)
        quarter = F.relu(self.same2(F.relu(self.down2(half), inplace=True)), inplace=True)
        half = F.relu(half + self.up1_norm(self.up1(quarter, output_size=half.shape[2:])), inplace=True)
        return self.up2_norm(self.up2(half, output_size=x.shape[2:]))


class StackedHourglass(nn.Module):
    """Maps features [B, channels_in, X, Y, Z] to [B, channels, X, Y, Z]."""

    def __init__(self, channels_in: int, channels: int, stacks: int, checkpoint: bool = False):
        super().__init__()
        self.checkpoint = checkpoint
        self.enter = nn.Sequential(
            conv3d(channels_in, channels), nn.ReLU(inplace=True), conv3d(channels, channels), nn.ReLU(inplace=True)
        )
        self.mix = nn.Sequential(conv3d(channels, channels), nn.ReLU(inplace=True), conv3d(channels, channels))
        self.stacks = nn.ModuleList(Hourglass(channels) for _ in range(stacks))

    def forward(self, volume: Tensor) -> Tensor:
        start = checkpointing.run(self.enter, volume, self.checkpoint)
        start = start + checkpointing.run(self.mix, start, self.checkpoint)
        x = start
        for hourglass in self.stacks:
            x = start + checkpointing.run(hourglass, x, self.checkpoint)  # as in PSMNet, onto the first volume
        return x
