"""From plane features to the values at each vertex of the grid: distance to the surface, colour and class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from occ_core.models.selfocc.config import SelfOccConfig
from occ_core.models.selfocc.encoder import vertex_axes_m

START_LIMIT_M = 1.0  # the field starts as the height above z = 0, but nowhere larger than this
SLAB = 32  # vertices along x that the head works on at once: bounds its memory


class Volume(NamedTuple):
    """The values at each vertex."""

    sdf_m: Tensor  # [B, X, Y, Z]
    rgb: Tensor  # [B, X, Y, Z, 3], 0..1
    class_logits: Tensor  # [B, X, Y, Z, classes - 1], without the free class; no channel where the run has no semantics


class SdfHead(nn.Module):
    """A two-layer network on the sum of a vertex's plane features; with the ground plane alone, height is an embedding.

    Its first layer is linear, so it is applied to the planes before they are summed, which is the same and far cheaper.
    The field starts as the ground plane z = 0 of the ego frame (a geometric initialisation, as a sphere is for NeuS).
    """

    def __init__(self, config: SelfOccConfig):
        super().__init__()
        self.config = config
        self.classes = len(config.classes) - 1 if config.semantics else 0
        self.hidden = nn.Linear(config.channels, config.head_channels)
        self.out = nn.Linear(config.head_channels, 4 + self.classes)
        if config.encoder == "bev":
            self.height = nn.Parameter(torch.randn(config.vertices[2], config.channels))
        with torch.no_grad():
            self.out.weight[0] *= 0.1
            self.out.bias[0] = 0
        self.start_m: Tensor
        self.register_buffer("start_m", vertex_axes_m(config)[2].clamp(max=START_LIMIT_M), persistent=False)

    def forward(self, planes: dict[int, Tensor]) -> Volume:
        """Compute the volume from `PlaneEncoder`'s planes, [B, rows, columns, C] by normal."""
        hidden = {n: F.linear(plane, self.hidden.weight) for n, plane in planes.items()}
        if self.config.encoder == "bev":
            hidden[0] = F.linear(self.height, self.hidden.weight)[None, None]  # the same for every x and y
        again = self.config.checkpoint and torch.is_grad_enabled()
        slabs = []
        for start in range(0, self.config.vertices[0], SLAB):
            # planes that span x are cut, the one whose normal is x serves every slab
            args = [h if n == 0 else h[:, start : start + SLAB] for n, h in sorted(hidden.items())]
            slabs.append(checkpoint(self._slab, *args, use_reentrant=False) if again else self._slab(*args))
        out = torch.cat(slabs, dim=1)
        return Volume(out[..., 0] + self.start_m, out[..., 1:4].sigmoid(), out[..., 4:])

    def _slab(self, *hidden: Tensor) -> Tensor:
        """Map the planes' hidden features, by normal x, (y,) z, to [B, x, Y, Z, 4 + classes]."""
        normals = (0, 1, 2) if len(hidden) == 3 else (0, 2)
        total: Tensor = self.hidden.bias
        for normal, part in zip(normals, hidden, strict=True):
            total = total + part.unsqueeze(normal + 1)
        return self.out(F.relu(total))
