"""A re-creation of FlashOcc's design (Yu et al., arXiv 2311.12058), untrained, to time beside our network.

Written from the paper, with the layer sizes that its authors publish for M0 (ResNet-50, one frame): image features of
256 channels at stride 16, 44 depth bins of 1 m, Lift-Splat to 64 channels on the ground plane (arXiv 2008.05711), three
residual stages of 128, 256 and 512 channels, a feature pyramid back to the grid's resolution with 128, and a head that
turns channels into height. It is not their code and has no weights of theirs: what it computes has the cost of what
theirs computes, in eager torch, and means nothing.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.camera import Rig
from occ_core.grid import VoxelGrid
from occ_core.models.resnet import BasicBlock, ResNet
from occ_core.network_input.preprocess import Preprocess

NAME = "FlashOcc M0 (re-creation)"
STRIDE = 16
DEPTH_M = np.arange(1.0, 45.0, 1.0)  # nearer edges of the bins
IMAGE_CHANNELS, LIFTED_CHANNELS, BEV_CHANNELS, COLUMN_CHANNELS = 256, 64, (128, 256, 512), 128


def build(rig: Rig, input_size: tuple[int, int], grid: VoxelGrid, classes: int) -> nn.Module:
    """The network for a rig, in which the splat's table is constant, as in FlashOcc's own deployment."""
    torch.manual_seed(0)
    return FlashOcc(splat_cells(rig, input_size, grid), grid, classes).eval()


def splat_cells(rig: Rig, input_size: tuple[int, int], grid: VoxelGrid) -> Tensor:
    """int64 [N * D * h * w]: the column x * Y + y of the grid that each frustum point falls into; X * Y outside."""
    width, height = input_size
    w, h = width // STRIDE, height // STRIDE
    u, v = np.meshgrid((np.arange(w) + 0.5) * STRIDE - 0.5, (np.arange(h) + 0.5) * STRIDE - 0.5)
    cells = []
    for camera in (Preprocess(width, height).camera(camera) for camera in rig):
        rays = camera.rays(np.stack([u, v], axis=-1).reshape(-1, 2))
        rays = rays / rays[:, 2:]  # depth is along the optical axis
        points_cam_m = (DEPTH_M + 0.5)[:, None, None] * rays
        points_ego_m = points_cam_m @ camera.ego_from_cam[:3, :3].T + camera.ego_from_cam[:3, 3]
        index = np.floor((points_ego_m - np.asarray(grid.origin_m)) / grid.voxel_size_m).astype(np.int64)
        inside = ((index >= 0) & (index < grid.shape)).all(axis=-1)
        cells.append(np.where(inside, index[..., 0] * grid.shape[1] + index[..., 1], grid.shape[0] * grid.shape[1]))
    return torch.from_numpy(np.stack(cells).reshape(-1))


class FlashOcc(nn.Module):
    def __init__(self, cells: Tensor, grid: VoxelGrid, classes: int):
        super().__init__()
        self.grid_shape, self.classes = grid.shape, classes
        self.register_buffer("cells", cells)
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1))
        self.backbone = ResNet("resnet50")
        self.from16 = nn.Conv2d(1024, IMAGE_CHANNELS, 1)
        self.from32 = nn.Conv2d(2048, IMAGE_CHANNELS, 1)
        self.smooth = nn.Conv2d(IMAGE_CHANNELS, IMAGE_CHANNELS, 3, padding=1)
        self.depth_and_context = nn.Conv2d(IMAGE_CHANNELS, len(DEPTH_M) + LIFTED_CHANNELS, 1)
        c1, c2, c3 = BEV_CHANNELS
        self.stages = nn.ModuleList(stage(cin, cout) for cin, cout in ((LIFTED_CHANNELS, c1), (c1, c2), (c2, c3)))
        wide = 2 * COLUMN_CHANNELS
        self.merge = nn.Sequential(*conv(c3 + c1, wide), *conv(wide, wide))
        self.up = nn.Sequential(*conv(wide, COLUMN_CHANNELS), nn.Conv2d(COLUMN_CHANNELS, COLUMN_CHANNELS, 1))
        self.head = nn.Conv2d(COLUMN_CHANNELS, COLUMN_CHANNELS, 3, padding=1)
        self.to_column = nn.Sequential(
            nn.Linear(COLUMN_CHANNELS, wide), nn.Softplus(), nn.Linear(wide, grid.shape[2] * classes)
        )

    def forward(self, images: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [X, Y, Z] uint8
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        *_, x16, x32 = self.backbone(pixels)
        features = self.smooth(self.from16(x16) + F.interpolate(self.from32(x32), scale_factor=2.0))
        x, y, z = self.grid_shape
        pillars = self.splat(features).T.reshape(1, LIFTED_CHANNELS, x, y)
        levels = []
        for layers in self.stages:
            pillars = layers(pillars)
            levels.append(pillars)
        far = F.interpolate(levels[2], scale_factor=4.0, mode="bilinear", align_corners=True)
        merged = self.merge(torch.cat([levels[0], far], dim=1))
        columns = self.up(F.interpolate(merged, scale_factor=2.0, mode="bilinear", align_corners=True))
        logits = self.to_column(self.head(columns).permute(0, 2, 3, 1))
        return logits.reshape(x, y, z, self.classes).argmax(dim=-1).to(torch.uint8)

    def splat(self, features: Tensor) -> Tensor:  # [N, C, h, w] -> [X * Y, channels]
        both = self.depth_and_context(features)
        depth, context = both[:, : len(DEPTH_M)].softmax(dim=1), both[:, len(DEPTH_M) :]
        points = (depth[..., None] * context.permute(0, 2, 3, 1)[:, None]).reshape(-1, LIFTED_CHANNELS)
        x, y, _ = self.grid_shape
        return points.new_zeros(x * y + 1, LIFTED_CHANNELS).index_add_(0, self.cells, points)[: x * y]


def stage(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(cin, cout, 2), BasicBlock(cout, cout, 1))


def conv(cin: int, cout: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
