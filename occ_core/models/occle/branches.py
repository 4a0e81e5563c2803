"""The two branches, semantic (what is there) and geometric (where something is). Each makes its own volume of
features."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models import checkpointing
from occ_core.models.hourglass import Hourglass


class Refined(nn.Module):
    """Turns rows of features of a lattice into a volume: batch norm, then a 3D U-Net of three resolutions.

    Dense at the lattice's resolution, where the paper's is sparse.
    """

    def __init__(self, channels: int, lattice: tuple[int, int, int], checkpoint: bool):
        super().__init__()
        self.lattice, self.checkpoint = lattice, checkpoint
        self.norm = nn.BatchNorm3d(channels)
        self.unet = Hourglass(channels)

    def forward(self, rows: Tensor) -> Tensor:  # [B, K, C] -> [B, C, x, y, z]
        x = F.relu(self.norm(rows.transpose(1, 2).unflatten(2, self.lattice).contiguous()))
        return F.relu(x + checkpointing.run(self.unet, x, self.checkpoint))


class SemanticBranch(nn.Module):
    """Reads image features and the pixels' class probabilities, lifted, and the LiDAR points of each lattice cell."""

    def __init__(
        self, seen: int, classes: int, side: int, channels: int, lattice: tuple[int, int, int], checkpoint: bool
    ):
        super().__init__()
        self.enter = nn.Linear(seen + classes + side, channels, bias=False)
        self.refined = Refined(channels, lattice, checkpoint)

    def forward(
        self,
        lifted: Tensor,  # [B, K, seen + classes]
        side: Tensor,  # [B, K, side], what is known of each lattice cell without images
    ) -> Tensor:  # [B, C, x, y, z]
        return self.refined(self.enter(torch.cat([lifted, side], dim=2)))


class GeometryBranch(nn.Module):
    """Cross-plane synergy: across the view the image is trusted, along it the LiDAR.

    An image feature is the same all along its viewing ray: it says what lies in which direction, not how far. A gate
    for each channel, made of what LiDAR says of the cell and of its place on the ray, lets it pass where things are.
    The paper pools planes across and along one camera's axis; to compare depths on every camera's own rays is ours, for
    rigs that look all around.
    """

    def __init__(self, seen: int, side: int, channels: int, lattice: tuple[int, int, int], checkpoint: bool):
        super().__init__()
        self.across = nn.Linear(seen, channels, bias=False)
        self.gate = nn.Linear(side, channels)
        self.along = nn.Linear(side, channels, bias=False)
        self.refined = Refined(channels, lattice, checkpoint)

    def forward(
        self,
        lifted: Tensor,  # [B, K, seen]
        side: Tensor,  # [B, K, side], the depth evidence included
    ) -> Tensor:  # [B, C, x, y, z]
        return self.refined(self.across(lifted) * torch.sigmoid(self.gate(side)) + self.along(side))
