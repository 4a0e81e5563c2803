"""Dual Mamba: stages in which a semantic and a geometric volume read each other and themselves."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models import checkpointing
from occ_core.models.selective_scan import selective_scan

ORDERS = (
    (1, 2, 3),
    (1, 3, 2),
    (2, 3, 1),
)  # axes of [B, x, y, z, C] from slowest to fastest, of one stage after another
STEP_RANGE = (0.001, 0.1)  # of the first steps, as in Mamba


class MambaMixer(nn.Module):
    """Cells of a volume in one order as a sequence: half of the heads walk it forwards, the other half backwards.

    Mamba's block with a depthwise 3 x 3 x 3 convolution in place of its causal one along the sequence.
    """

    def __init__(self, channels: int, heads: int, state: int, order: tuple[int, int, int]):
        super().__init__()
        self.heads, self.state, self.order = heads, state, order
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Linear(channels, 2 * channels, bias=False)
        self.near = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.to_scan = nn.Linear(channels, heads + 4 * state)  # steps; b and c of both directions
        self.rate_log = nn.Parameter(torch.linspace(1, 16, heads // 2).log().repeat(2))
        self.direct = nn.Parameter(torch.ones(channels))
        self.leave = nn.Linear(channels, channels, bias=False)
        low, high = (math.log(limit) for limit in STEP_RANGE)
        first = torch.exp(low + (high - low) * torch.rand(heads))
        with torch.no_grad():
            self.to_scan.bias[:heads] = first + torch.log(-torch.expm1(-first))  # soft-plus makes `first` of it

    def forward(self, volume: Tensor) -> Tensor:  # [B, x, y, z, C] -> the same
        x, gate = self.enter(self.norm(volume)).chunk(2, dim=-1)
        x = F.silu(self.near(x.movedim(-1, 1)).movedim(1, -1))
        mixed = self._scanned(x) + x * self.direct
        return self.leave(mixed * F.silu(gate))

    def _scanned(self, x: Tensor) -> Tensor:
        ordered = x.permute(0, *self.order, 4)
        tokens = ordered.flatten(1, 3)  # [B, L, C]
        step, bc = self.to_scan(tokens).split([self.heads, 4 * self.state], dim=-1)
        b, c = bc.unflatten(-1, (2, 2, self.state)).unbind(2)  # [B, L, direction, N]
        values = tokens.unflatten(-1, (2, self.heads // 2, -1))  # [B, L, direction, H / 2, P]
        step = F.softplus(step.float()).unflatten(-1, (2, -1))
        rate = -self.rate_log.exp().unflatten(0, (2, -1))
        ahead = selective_scan(values[:, :, 0], step[:, :, 0], rate[0], b[:, :, 0], c[:, :, 0])
        back = selective_scan(*(t[:, :, 1].flip(1) for t in (values, step)), rate[1], b[:, :, 1].flip(1),
                              c[:, :, 1].flip(1)).flip(1)  # fmt: skip
        y = torch.cat([ahead, back], dim=2).flatten(2).to(x.dtype).unflatten(1, ordered.shape[1:4])
        return y.permute(0, *(1 + self.order.index(axis) for axis in (1, 2, 3)), 4)


class ConvMixer(nn.Module):
    """For comparison: plain 3D convolutions of about the price of `MambaMixer`."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Sequential(
            nn.Conv3d(channels, half, 1), nn.ReLU(inplace=True), nn.Conv3d(half, half, 3, padding=1),
            nn.ReLU(inplace=True), nn.Conv3d(half, channels, 1),
        )  # fmt: skip

    def forward(self, volume: Tensor) -> Tensor:  # [B, x, y, z, C] -> the same
        return self.mix(self.norm(volume).movedim(-1, 1)).movedim(1, -1)


class DualStage(nn.Module):
    """Each volume is mixed after a linear map of the other one is added to what is mixed. This exchange is ours."""

    def __init__(self, channels: int, semantic: nn.Module, geometry: nn.Module):
        super().__init__()
        self.from_geometry = nn.Linear(channels, channels, bias=False)
        self.from_semantic = nn.Linear(channels, channels, bias=False)
        self.semantic, self.geometry = semantic, geometry

    def forward(self, pair: Tensor) -> Tensor:  # [2, B, x, y, z, C]: semantic, geometry -> the same
        semantic, geometry = pair
        what = semantic + self.semantic(semantic + self.from_geometry(geometry))
        where = geometry + self.geometry(geometry + self.from_semantic(semantic))
        return torch.stack([what, where])


class DualFusion(nn.Module):
    """Two volumes [B, C, x, y, z], each with what half the resolution adds to it after all stages; any shape will do.

    Cost is linear in the number of cells, with either mixer.
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
        self.checkpoint = checkpoint
        self.down = nn.ModuleList(nn.Conv3d(volume_channels, channels, 3, 2, 1) for _ in range(2))
        self.up = nn.ModuleList(nn.ConvTranspose3d(channels, volume_channels, 3, 2, 1) for _ in range(2))
        self.norm = nn.LayerNorm(channels)

        def mix(stage: int) -> nn.Module:
            return ConvMixer(channels) if mixer == "conv" else MambaMixer(
                channels, heads, state, ORDERS[stage % len(ORDERS)]
            )  # fmt: skip

        self.stages = nn.ModuleList(DualStage(channels, mix(i), mix(i)) for i in range(stages))

    def forward(self, semantic: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor]:
        volumes = semantic, geometry
        pair = torch.stack([down(v).movedim(1, -1) for down, v in zip(self.down, volumes, strict=True)])
        for stage in self.stages:
            pair = checkpointing.run(stage, pair, self.checkpoint)
        what, where = (
            F.relu(volume + up(x.movedim(-1, 1), output_size=volume.shape[2:]))
            for volume, up, x in zip(volumes, self.up, self.norm(pair), strict=True)
        )
        return what, where
