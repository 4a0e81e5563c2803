"""Dual Mamba: stages in which a semantic and a geometric volume read each other and themselves."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models import checkpointing
from occ_core.models.easyocc.heads import blocks_to_cells
from occ_core.models.selective_scan import selective_scan

ORDERS = (
    (1, 2, 3),
    (1, 3, 2),
    (2, 3, 1),
)  # axes of [B, x, y, z, C] from slowest to fastest, of one stage after another
STEP_RANGE = (0.001, 0.1)  # of the first steps, as in Mamba


class MambaMixer(nn.Module):
    """Reads the cells of a volume in one order as a sequence: half of the heads go forwards, the other half backwards.

    Mamba's block, but its convolution along the sequence looks one cell ahead and one back instead of three back.
    """

    def __init__(self, channels: int, heads: int, state: int, order: tuple[int, int, int]):
        super().__init__()
        self.heads, self.state, self.order = heads, state, order
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Linear(channels, 2 * channels, bias=False)
        self.near = nn.Parameter(torch.randn(3, channels) / math.sqrt(3))
        self.to_scan = nn.Linear(channels, heads + 4 * state)  # steps; b and c of both directions
        self.rate_log = nn.Parameter(torch.linspace(1, 16, heads // 2).log().repeat(2))
        self.direct = nn.Parameter(torch.ones(channels))
        self.leave = nn.Linear(channels, channels, bias=False)
        low, high = (math.log(limit) for limit in STEP_RANGE)
        first = torch.exp(low + (high - low) * torch.rand(heads))
        with torch.no_grad():
            self.to_scan.bias[:heads] = first + torch.log(-torch.expm1(-first))  # soft-plus makes `first` of it

    def forward(self, volume: Tensor) -> Tensor:  # [B, x, y, z, C] -> the same
        ordered = self.norm(volume).permute(0, *self.order, 4)
        x, gate = self.enter(ordered.flatten(1, 3)).chunk(2, dim=-1)  # [B, L, C]
        before, after = F.pad(x[:, :-1], (0, 0, 1, 0)), F.pad(x[:, 1:], (0, 0, 0, 1))
        x = F.silu(before * self.near[0] + x * self.near[1] + after * self.near[2])
        y = self.leave((self._scanned(x) + x * self.direct) * F.silu(gate)).unflatten(1, ordered.shape[1:4])
        return y.permute(0, *(1 + self.order.index(axis) for axis in (1, 2, 3)), 4)

    def _scanned(self, tokens: Tensor) -> Tensor:  # [B, L, C] -> the same
        step, bc = self.to_scan(tokens).split([self.heads, 4 * self.state], dim=-1)
        b, c = bc.unflatten(-1, (2, 2, self.state)).unbind(2)  # [B, L, direction, N]
        values = tokens.unflatten(-1, (2, self.heads // 2, -1))  # [B, L, direction, H / 2, P]
        step = F.softplus(step.float()).unflatten(-1, (2, -1))
        ahead, back = ([t[:, :, i] for t in (values, step, b, c)] for i in (0, 1))
        back = [t.flip(1) for t in back]
        rates = -self.rate_log.exp().unflatten(0, (2, -1))
        y = [selective_scan(x, s, rate, b, c) for (x, s, b, c), rate in zip((ahead, back), rates, strict=True)]
        return torch.cat([y[0], y[1].flip(1)], dim=2).flatten(2).to(tokens.dtype)


class ConvMixer(nn.Module):
    """Two plain 3D convolutions, which take about the time of `MambaMixer`; for comparison."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 3, padding=1),
        )

    def forward(self, volume: Tensor) -> Tensor:  # [B, x, y, z, C] -> the same
        return self.mix(self.norm(volume).movedim(-1, 1)).movedim(1, -1)


class DualStage(nn.Module):
    """Adds to each volume a linear map of the other one, then mixes it. This exchange is ours."""

    def __init__(self, channels: int, semantic: nn.Module, geometry: nn.Module):
        super().__init__()
        self.from_geometry = nn.Linear(channels, channels, bias=False)
        self.from_semantic = nn.Linear(channels, channels, bias=False)
        self.semantic, self.geometry = semantic, geometry

    def forward(self, pair: Tensor) -> Tensor:  # [2, B, x, y, z, C]: semantic, geometry -> the same
        semantic, geometry = pair
        new_semantic = semantic + self.semantic(semantic + self.from_geometry(geometry))
        new_geometry = geometry + self.geometry(geometry + self.from_semantic(semantic))
        return torch.stack([new_semantic, new_geometry])


class DualFusion(nn.Module):
    """Fuses two volumes [B, C, x, y, z]: all stages run at half the resolution, and their result is added to each
    volume.

    Cost is linear in the number of cells, with either mixer. x, y and z must be even.
    """

    def __init__(
        self,
        mixer: Literal["mamba", "conv"],
        volume_channels: int,
        channels: int,
        stages: int,
        heads: int,
        state: int,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.checkpoint, self.volume_channels = checkpoint, volume_channels
        self.down = nn.ModuleList(nn.Linear(8 * volume_channels, channels) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(channels, 8 * volume_channels) for _ in range(2))
        self.norm = nn.LayerNorm(channels)

        def mix(stage: int) -> nn.Module:
            if mixer == "conv":
                return ConvMixer(channels)
            return MambaMixer(channels, heads, state, ORDERS[stage % len(ORDERS)])

        self.stages = nn.ModuleList(DualStage(channels, mix(i), mix(i)) for i in range(stages))

    def forward(self, semantic: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor]:
        volumes = semantic, geometry
        pair = torch.stack([down(_halved(volume)) for down, volume in zip(self.down, volumes, strict=True)])
        for stage in self.stages:
            pair = checkpointing.run(stage, pair, self.checkpoint)
        added = [up(x) for up, x in zip(self.up, self.norm(pair), strict=True)]
        new_semantic, new_geometry = (
            F.relu(volume + blocks_to_cells(rows, (2, 2, 2), self.volume_channels).movedim(-1, 1))
            for volume, rows in zip(volumes, added, strict=True)
        )
        return new_semantic, new_geometry


def _halved(volume: Tensor) -> Tensor:
    """Group 2 x 2 x 2 cells into one row: [B, C, x, y, z] to [B, x / 2, y / 2, z / 2, 8 C]."""
    b, c, x, y, z = volume.shape
    blocks = volume.reshape(b, c, x // 2, 2, y // 2, 2, z // 2, 2)
    return blocks.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)
