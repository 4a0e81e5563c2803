"""Features of LiDAR points: of the cells that they lie in, and of how deep each camera sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from occ_core.grid import VoxelGrid
from occ_core.network_input.projection import project
from occ_core.network_input.rig_images import RigImages

DEPTH_SCALES_M = (1.0, 8.0)  # over which the evidence of depth saturates
DEPTH_CHANNELS = 1 + 2 * len(DEPTH_SCALES_M)
HIDDEN_SHARE, HIDDEN_M = 0.05, 0.5  # a point so much deeper than another in its image cell is hidden by it


class Points(NamedTuple):
    """The points of all samples that lie in the grid."""

    sample: Tensor  # [Q] int64
    rows: Tensor  # [Q, 5]: x, y, z in metres in the ego frame, intensity, age in seconds
    cell: Tensor  # [Q, 3] int64


def points_in_grid(
    lidar: Tensor,  # [B, P, 5], rows of NaN pad
    grid: VoxelGrid,
) -> Points:
    """Select the points that lie in the grid."""
    cell, inside = cells_at(lidar[..., :3], grid)
    sample, row = inside.nonzero().unbind(1)
    return Points(sample, lidar[sample, row], cell[sample, row])


def cells_at(
    points_ego_m: Tensor,  # [..., 3], may be NaN
    grid: VoxelGrid,
) -> tuple[Tensor, Tensor]:
    """Cell of each point, int64 [..., 3], and whether it is in the grid, bool [...]; others have cell 0."""
    origin, shape = points_ego_m.new_tensor(grid.origin_m), points_ego_m.new_tensor(grid.shape)
    at = ((points_ego_m - origin) / grid.voxel_size_m).floor()
    inside = ((at >= 0) & (at < shape)).all(-1)
    return torch.where(inside[..., None], at, 0).long(), inside


def voxel_channels(block: tuple[int, int, int]) -> int:
    return 6 + block[0] * block[1] * block[2]


def voxelise(points: Points, samples: int, grid: VoxelGrid, block: tuple[int, int, int]) -> Tensor:
    """Features of each block of cells: how many points it has, and how they lie in it.

    Returns:
        float32 [B, x * y * z, C], zeros without points: mean offset from the block's centre in halves of its edge (3),
        mean intensity, mean age in seconds, log(1 + points), and log(1 + points) of each of its cells, z fastest.
    """
    size = torch.tensor(block, device=points.cell.device)
    x, y, z = (n // b for n, b in zip(grid.shape, block, strict=True))
    lower = torch.div(points.cell, size, rounding_mode="floor")
    index = ((points.sample * x + lower[:, 0]) * y + lower[:, 1]) * z + lower[:, 2]
    edge_m = size * grid.voxel_size_m
    offset = ((points.rows[:, :3] - points.rows.new_tensor(grid.origin_m)) / edge_m - lower) * 2 - 1
    blocks = samples * x * y * z
    sums = offset.new_zeros(blocks, 5).index_add_(0, index, torch.cat([offset, points.rows[:, 3:]], dim=1))
    i, j, k = (points.cell - lower * size).unbind(1)
    cells = block[0] * block[1] * block[2]
    sub = index * cells + (i * block[1] + j) * block[2] + k
    counts = torch.bincount(sub, minlength=blocks * cells).reshape(blocks, cells).float()
    count = counts.sum(1, keepdim=True)
    return torch.cat([sums / count.clamp(min=1), count.log1p(), counts.log1p()], dim=1).unflatten(0, (samples, -1))


class ImageDepths(NamedTuple):
    """Depths along the optical axis of the points that each cell of an image sees; inf and 0 where it sees none."""

    nearest_m: Tensor  # [B, N, h, w]
    farthest_m: Tensor  # [B, N, h, w], of the points that the nearest one does not hide
    sample: Tensor  # [S] int64: which points are seen, once for each camera that sees them
    camera: Tensor  # [S]
    point: Tensor  # [S] row in the cloud
    pixel: Tensor  # [S, 2] u, v


def image_depths(rig_images: RigImages, size: tuple[int, int]) -> ImageDepths:
    """How deep each camera sees, measured by the points of `rig_images.lidar`, in `size` (w, h) cells of each image.

    The LiDAR sees some points that the camera does not: those far behind the nearest one in their cell are left out.
    """
    lidar = rig_images.lidar
    assert lidar is not None
    w, h = size
    pixels, depth_m, visible = project(lidar[..., :3], rig_images)
    b, n, _ = visible.shape
    sample, camera, point = visible.nonzero().unbind(1)
    pixel, depth_m = pixels[sample, camera, point], depth_m[sample, camera, point]
    index = _image_cell(pixel, sample * n + camera, rig_images, size)
    nearest = depth_m.new_full((b * n * h * w,), torch.inf).scatter_reduce_(0, index, depth_m, "amin")
    seen = depth_m <= nearest[index] * (1 + HIDDEN_SHARE) + HIDDEN_M
    sample, camera, point, pixel, index = (t[seen] for t in (sample, camera, point, pixel, index))
    farthest = torch.zeros_like(nearest).scatter_reduce_(0, index, depth_m[seen], "amax")
    nearest, farthest = (t.reshape(b, n, h, w) for t in (nearest, farthest))
    return ImageDepths(nearest, farthest, sample, camera, point, pixel)


def depth_evidence(
    points_ego_m: Tensor,  # [K, 3]
    rig_images: RigImages,
    depths: ImageDepths,
) -> Tensor:  # [B, K, DEPTH_CHANNELS]
    """Compare where points lie on the cameras' viewing rays with how deep the cameras see there.

    Channels: 1 if any LiDAR point lies in the image cell where the point is seen, else all are 0; how far it is behind
    the nearest of them, tanh(metres / scale) for each scale; and behind the farthest. Mean over the cameras that see it
    and a LiDAR point there.
    """
    b, n, h, w = depths.nearest_m.shape
    pixels, depth_m, visible = project(points_ego_m, rig_images)
    sample, camera, point = visible.nonzero().unbind(1)
    index = _image_cell(pixels[sample, camera, point], sample * n + camera, rig_images, (w, h))
    nearest, farthest = depths.nearest_m.flatten()[index], depths.farthest_m.flatten()[index]
    known = nearest.isfinite()
    sample, camera, point, nearest, farthest = (t[known] for t in (sample, camera, point, nearest, farthest))
    depth_m = depth_m[sample, camera, point]
    scales = depth_m.new_tensor(DEPTH_SCALES_M)
    behind = [torch.tanh((depth_m - end)[:, None] / scales) for end in (nearest, farthest)]
    rows = torch.cat([torch.ones_like(depth_m)[:, None], *behind], dim=1)
    target = sample * len(points_ego_m) + point
    sums = rows.new_zeros(b * len(points_ego_m), DEPTH_CHANNELS).index_add_(0, target, rows)
    return (sums / sums[:, :1].clamp(min=1)).unflatten(0, (b, -1))


def _image_cell(pixel: Tensor, image: Tensor, rig_images: RigImages, size: tuple[int, int]) -> Tensor:
    """The flat index into [B * N, h, w] of the image cell in which a visible pixel (u, v) lies."""
    w, h = size
    height, width = rig_images.images.shape[2:4]
    column = ((pixel[:, 0] + 0.5) * (w / width)).long().clamp(0, w - 1)
    row = ((pixel[:, 1] + 0.5) * (h / height)).long().clamp(0, h - 1)
    return (image * h + row) * w + column
