"""Contraction of all space into one box of cells: the grid keeps its scale in the middle, everything around it is
squeezed into the rim.

Per axis and so box to box, as OccNeRF (arXiv 2312.09243) puts it; the curve is that of Mip-NeRF 360 (arXiv 2111.12077,
equation 10), which contracts a ball.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from occ_core.grid import VoxelGrid


@dataclass(frozen=True)
class Contraction:
    """Converts between metres in the ego frame and contracted coordinates, -1..1 along each axis of the box.

    Attributes:
        grid: the cells in the middle of the box; they are as large in the box as anywhere.
        ratio: share of each axis of the box that the grid takes; 1 means that the box is the grid, and that what is
            outside has coordinates beyond -1..1.
        shape: cells of the box along (x, y, z); `grid.shape / ratio` where box cells are grid cells.
    """

    grid: VoxelGrid
    ratio: float
    shape: tuple[int, int, int]

    def contract(
        self,
        points_ego_m: Tensor,  # [..., 3]
    ) -> Tensor:  # [..., 3]
        """Contract points: inside the grid they stay within -ratio..ratio, outside they tend to -1 or 1 with
        distance."""
        centre, half = self._centre_and_half(points_ego_m)
        u = (points_ego_m - centre) / half
        if self.ratio == 1:
            return u
        beyond = (u.abs() - 1).clamp(min=0)
        t = self.ratio / (1 - self.ratio)  # makes the slope continuous at the grid's border
        rim = 1 - (1 - self.ratio) / (t * beyond + 1)
        return torch.where(beyond > 0, u.sign() * rim, self.ratio * u)

    def expand(
        self,
        contracted: Tensor,  # [..., 3] within -1..1
    ) -> Tensor:  # [..., 3]
        """The inverse of `contract`, metres in the ego frame."""
        centre, half = self._centre_and_half(contracted)
        if self.ratio == 1:
            return centre + half * contracted
        t = self.ratio / (1 - self.ratio)
        left = (1 - contracted.abs()).clamp(min=1e-6)  # -1 and 1 are infinitely far
        rim = 1 + ((1 - self.ratio) / left - 1) / t
        u = torch.where(contracted.abs() > self.ratio, contracted.sign() * rim, contracted / self.ratio)
        return centre + half * u

    def cell_centers_m(self, device: torch.device | None = None) -> Tensor:
        """Centres of the box's cells, float32 [X * Y * Z, 3], metres in the ego frame."""
        axes = [(2 * torch.arange(n, device=device) + 1) / n - 1 for n in self.shape]
        return self.expand(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)).reshape(-1, 3)

    @property
    def inner(self) -> tuple[slice, slice, slice]:
        """The box's cells that lie in the grid."""
        margins = [round(n * (1 - self.ratio) / 2) for n in self.shape]
        x, y, z = (slice(m, n - m) for n, m in zip(self.shape, margins, strict=True))
        return x, y, z

    def _centre_and_half(self, like: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = like.new_tensor(self.grid.origin_m), like.new_tensor(self.grid.upper_m)
        return (lower + upper) / 2, (upper - lower) / 2
