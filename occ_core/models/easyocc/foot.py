"""Lets each pixel hear from the others of its image column where rays end, above all from the foot of what stands.

A wall is as far away as the place where it meets the ground, which lies straight below in the image and tells distance
best. Attention along image columns finds it, as in "Translating Images into Maps" (arXiv 2110.00966); what is passed on
here is not features but hazards of depth bins, which are true all the way up.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from occ_core.models.easyocc import ground
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.table import GROUND, RAY_CHANNELS

WIDTH = 32  # of queries and keys


class HazardsOfTheColumn(nn.Module):
    """Maps features and rays to hazard logits; until it has learned, to zeros."""

    apart: Tensor

    def __init__(self, config: EasyOccConfig):
        super().__init__()
        self.heads, rows = config.foot_heads, config.feature_size[1]
        channels = config.neck_channels
        self.query = nn.Conv2d(channels + RAY_CHANNELS, self.heads * WIDTH, 1)
        self.key = nn.Conv2d(channels + RAY_CHANNELS, self.heads * WIDTH, 1)
        self.by_distance = nn.Parameter(torch.zeros(self.heads, 2 * rows - 1))
        self.to_hazard = nn.Conv2d(channels, self.heads * config.depth_bins, 1)
        self.to_ground = nn.Conv2d(channels, self.heads * ground.BINS, 1)
        for layer in (self.to_hazard, self.to_ground):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))
        row = torch.arange(rows)  # `by_distance` is told in rows, from a cell to the one that it listens to
        self.register_buffer("apart", row[:, None] - row + rows - 1, persistent=False)

    def forward(self, features: Tensor, rays: Tensor, log_depth: Tensor) -> Tensor:
        """Hazard logits [N, D, h, w], of `features` [N, C, h, w] and `rays` [N, RAY_CHANNELS, h, w]; see
        `ground.over_depth` for `log_depth`."""
        features, rays = features.transpose(2, 3), rays.transpose(2, 3)
        at_ground, along = rays[:, GROUND : GROUND + 1], self.to_ground(features).chunk(self.heads, 1)
        said = torch.cat([ground.over_depth(part, at_ground, log_depth) for part in along], dim=1)
        said = (said + self.to_hazard(features)).permute(0, 2, 3, 1)
        n, _, w, h = features.shape
        seen = torch.cat([features, rays], dim=1)
        query, key = (
            layer(seen).reshape(n, self.heads, WIDTH, w, h).permute(0, 3, 1, 4, 2) for layer in (self.query, self.key)
        )
        return self._heard(self._shares(query, key), said).permute(0, 3, 2, 1)

    def of_rows(self, features: Tensor, rays: Tensor, position: Tensor) -> Tensor:
        """The same for runtimes, [N * h * w, D]: a row for each pixel, and only what is attended to is brought into
        columns. Layers are products with rows here: after a convolution OpenVINO copies what comes out.

        Args:
            position: [N * h * w, D], of `ground.places`.
        """
        n, _, h, w = features.shape
        rows, ray_rows = (x.permute(0, 2, 3, 1).reshape(n * h * w, -1) for x in (features, rays))
        seen = torch.cat([rows, ray_rows], dim=1)
        query, key = (
            _product(seen, layer).reshape(n, h, w, self.heads, WIDTH).permute(0, 2, 3, 1, 4)
            for layer in (self.query, self.key)
        )
        along = _product(rows, self.to_ground)
        said = [ground.over_depth_rows(part, position) for part in along.chunk(self.heads, 1)]
        both = torch.cat(said, dim=1) + _product(rows, self.to_hazard)
        heard = self._heard(self._shares(query, key), both.reshape(n, h, w, -1).transpose(1, 2))
        return heard.transpose(1, 2).reshape(n * h * w, -1)

    def _heard(
        self,
        shares: Tensor,  # [N, w, heads, h, h]
        said: Tensor,  # [N, w, h, heads * D]
    ) -> Tensor:  # [N, w, h, D]
        n, w, h, _ = said.shape
        shares = shares.permute(0, 1, 3, 4, 2).reshape(n, w, h, h * self.heads)
        return shares @ said.reshape(n, w, h * self.heads, -1)

    def _shares(
        self,
        query: Tensor,  # [N, w, heads, h, WIDTH]
        key: Tensor,
    ) -> Tensor:  # [N, w, heads, h, h]
        """How much each cell of a column listens to each: of every head, the last axis sums to 1."""
        return torch.softmax(query @ key.transpose(3, 4) / WIDTH**0.5 + self.by_distance[:, self.apart], dim=-1)


def _product(rows: Tensor, layer: nn.Conv2d) -> Tensor:
    """What a convolution of single pixels makes of each of them, [K, channels]."""
    return rows @ layer.weight[:, :, 0, 0].T + layer.get_parameter("bias")
