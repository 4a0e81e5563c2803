"""From the images of a rig to features: a backbone, and a pyramid (arXiv 1612.03144) that joins its levels."""

from __future__ import annotations

from pathlib import Path

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import InvalidInput
from occ_core.models.backbones import build_backbone, load_backbone, statistics

LEVELS = (4, 8, 16, 32)  # strides, in pixels per feature, that a pyramid can give


class FeaturePyramid(nn.Module):
    """Maps images uint8 [B, N, H, W, 3] to features [B, N, C, H / s, W / s], one for each stride s of `levels`."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, channels: int, levels: tuple[int, ...], checkpoint: bool = False):
        super().__init__()
        if not levels or not set(levels) <= set(LEVELS):
            raise InvalidInput(f"feature strides must be some of {LEVELS}, got {levels}")
        self.levels, self.multiple = levels, max(16, *levels)
        self.backbone = build_backbone(backbone, checkpoint)
        self.strides = self.backbone.strides
        mean, std = statistics(self.backbone)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        # A level finer than all the backbone gives is drawn from the one above alone.
        used = [(s, c) for s, c in zip(self.strides, self.backbone.channels, strict=True) if s >= min(levels)]
        self.lateral = nn.ModuleDict({str(s): nn.Conv2d(c, channels, 1) for s, c in used})
        self.smooth = nn.ModuleDict({str(s): smoothing(channels) for s in levels})

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        b, n, height, width, _ = images.shape
        if height % self.multiple or width % self.multiple:
            raise InvalidInput(f"images must be a multiple of {self.multiple} px, got {width} x {height}")
        pixels = (images.flatten(0, 1).permute(0, 3, 1, 2).float() - self.mean) / self.std
        features = dict(zip(self.strides, self.backbone(pixels), strict=True))
        levels: dict[int, Tensor] = {}
        x = None
        for stride in reversed([s for s in LEVELS if s >= min(self.levels)]):
            above = None if x is None else F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.lateral[str(stride)](features[stride]) if stride in features else above
            if above is not None and stride in features:  # which has an odd number of rows or columns, maybe
                x = x + above[..., : x.shape[2], : x.shape[3]]
            if stride in self.levels:
                levels[stride] = self.smooth[str(stride)](x).unflatten(0, (b, n))
        return tuple(levels[stride] for stride in self.levels)

    def load_backbone(self, weights: str | Path) -> None:
        """See `backbones.load_backbone`."""
        load_backbone(self.backbone, weights)


class ImageNetwork(nn.Module):
    """Maps images uint8 [B, N, H, W, 3] to features of one stride, [B, N, C, H / stride, W / stride]."""

    def __init__(self, backbone: str, channels: int, stride: int, checkpoint: bool = False):
        super().__init__()
        self.pyramid = FeaturePyramid(backbone, channels, (stride,), checkpoint)

    def forward(self, images: Tensor) -> Tensor:
        return self.pyramid(images)[0]


def smoothing(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )
