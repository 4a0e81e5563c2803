"""Multi-scale deformable attention (Zhu et al., arXiv 2010.04159, eq. 3) in plain torch.

Each query reads every level of a feature pyramid at a few learned places beside its reference points. Coordinates are
fractions of the image: (0, 0) is the outer corner of the first feature cell, (1, 1) that of the last, on every level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def sample_and_sum(
    values: Sequence[Tensor],  # L of [B, heads, D, h, w], any h and w
    places: Tensor,  # [B, Q, heads, L, P, 2] (x, y) as fractions of the image
    weights: Tensor,  # [B, Q, heads, L, P]
) -> Tensor:  # [B, Q, heads * D]
    """Sum weighted bilinear samples; outside a feature map the values are zero."""
    batch, queries, heads = weights.shape[:3]
    grid = (2 * places - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B * heads, Q, P, 2]
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)  # [L, B * heads, Q, P]
    total: Tensor | float = 0.0
    for level, value in enumerate(values):
        value = value.flatten(0, 1).to(grid.dtype)  # of reduced precision under autocast
        samples = F.grid_sample(value, grid[level], align_corners=False)  # [B * heads, D, Q, P]
        total = total + torch.einsum("ndqp,nqp->ndq", samples, weights[level])
    return torch.as_tensor(total).reshape(batch, -1, queries).transpose(1, 2)


def split_heads(value: Tensor, heads: int) -> Tensor:
    """Split channels into heads: [B, heads * D, h, w] -> [B, heads, D, h, w]."""
    return value.unflatten(1, (heads, -1))


class SamplingPoints(nn.Module):
    """Predicts where a query looks: offsets in cells of each level, and the weight of each place (before the soft-max).

    Offsets start on rays that fan out from the reference point, one ray a head, one cell further each point; or all one
    cell away (`spread=False`), where every point has a reference of its own. All places start with equal weight.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int, spread: bool = True):
        super().__init__()
        self.shape = (heads, levels, points)
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.logits = nn.Linear(channels, heads * levels * points)
        for layer in (self.offsets, self.logits):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.logits.bias)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, points + 1) if spread else torch.ones(points)
        start = ray[:, None, None, :] * distance[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(start.expand(heads, levels, points, 2).reshape(-1))

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Map queries [..., C] to offsets [..., heads, L, P, 2] and logits [..., heads, L, P]."""
        with torch.autocast(query.device.type, enabled=False):  # a place of 8 bits would be pixels off
            query = query.to(self.offsets.weight.dtype)
            offsets = self.offsets(query).unflatten(-1, (*self.shape, 2))
            return offsets, self.logits(query).unflatten(-1, self.shape)


class DeformableAttention(nn.Module):
    """Attention of queries to a pyramid at `points` places a level and head; with queries from the pyramid it is
    self-attention."""

    def __init__(self, channels: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads = heads
        self.places = SamplingPoints(channels, heads, levels, points)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Linear(channels, channels)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        references: Tensor,  # [Q, L, P, 2], or anything that broadcasts to [B, Q, L, P, 2]; fractions of the image
        levels: Sequence[Tensor],  # L of [B, C, h, w]
    ) -> Tensor:  # [B, Q, C]
        offsets, logits = self.places(query)
        places = references.unsqueeze(-4) + offsets / cells_of(levels, query)
        weights = logits.flatten(-2).softmax(dim=-1).view_as(logits)
        values = [split_heads(self.value(level), self.heads) for level in levels]
        return self.out(sample_and_sum(values, places, weights))


def cells_of(levels: Sequence[Tensor], like: Tensor) -> Tensor:
    """(width, height) of each level, [L, 1, 2]: an offset in cells divided by it is a fraction of the image."""
    sizes = [[level.shape[-1], level.shape[-2]] for level in levels]
    return torch.tensor(sizes, dtype=like.dtype, device=like.device)[:, None]
