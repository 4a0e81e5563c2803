"""Relates cells and pixels of pinhole cameras: projection of points, features of points, viewing rays of pixels.

The conventions are those of `occ_core.camera`: pixel (0, 0) is the centre of the top-left pixel, a point is visible
when it is more than 1 mm in front of the camera and within the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid
from occ_core.network_input.rig_images import RigImages

NEAREST_M = 1e-3


def cell_centers_m(grid: VoxelGrid, cells_per_feature: int | tuple[int, int, int] = 1) -> Tensor:
    """The centres of blocks of f x f x f (or fx x fy x fz) cells, in metres in the ego frame.

    Returns:
        float32 [X/fx * Y/fy * Z/fz, 3], in order [x, y, z].

    Raises:
        InvalidInput: f does not divide the grid's shape.
    """
    f = (cells_per_feature,) * 3 if isinstance(cells_per_feature, int) else cells_per_feature
    if any(n % block for n, block in zip(grid.shape, f, strict=True)):
        raise InvalidInput(f"cells_per_feature {cells_per_feature} must divide the grid's shape {grid.shape}")
    axes = [
        origin + (torch.arange(n // block, dtype=torch.float64) + 0.5) * block * grid.voxel_size_m
        for origin, n, block in zip(grid.origin_m, grid.shape, f, strict=True)
    ]
    return torch.cartesian_prod(*axes).float()


def flat_cell(
    cell: Tensor,  # [..., 3] int64
    sample: Tensor,  # [...] int64, or of a shape that fits
    grid: VoxelGrid,
) -> Tensor:  # [...] int64
    """The index of cells in a flat [B, X, Y, Z]."""
    i, j, k = cell.unbind(-1)
    return ((sample * grid.shape[0] + i) * grid.shape[1] + j) * grid.shape[2] + k


def project(
    points_ego_m: Tensor,  # [K, 3] or [B, K, 3]
    rig_images: RigImages,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where each camera sees each point.

    Returns:
        pixels float32 [B, N, K, 2], meaningful where visible; depth_m float32 [B, N, K], along the optical axis;
        visible bool [B, N, K], never of a camera that is absent, nor on a pixel that shows the robot itself.
    """
    height, width = rig_images.images.shape[2:4]
    x, y, z = points_ego_m.float().expand(len(rig_images.images), -1, 3)[:, None].unbind(-1)  # [B, 1, K] each
    # Sums of products, not matmul: reduced precision (autocast, TF32) would move points by pixels.
    matrix = _image_from_ego(rig_images)[..., None]  # [B, N, 3, 4, 1]
    u, v, depth_m = (m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2] * z + m[:, :, 3] for m in matrix.unbind(2))
    front = depth_m > NEAREST_M
    scale = 1 / depth_m.clamp(min=NEAREST_M)
    u, v = u * scale, v * scale
    visible = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5) & front & rig_images.present[..., None]
    if rig_images.sees is not None:
        pixel = v.round().clamp(0, height - 1).long() * width + u.round().clamp(0, width - 1).long()
        visible &= rig_images.sees.flatten(2).gather(2, pixel)
    return torch.stack([u, v], dim=-1), depth_m, visible


def in_view(
    points_ego_m: Tensor,  # [K, 3] or [B, K, 3]
    rig_images: RigImages,
) -> Tensor:  # bool [B, K]
    """Whether a point is in the image of any camera that is present."""
    return project(points_ego_m, rig_images)[2].any(dim=1)


def lift(
    features: Tensor,  # [B, N, C, h, w]
    points_ego_m: Tensor,  # [K, 3] or [B, K, 3]
    rig_images: RigImages,
) -> tuple[Tensor, Tensor]:
    """Sample image features at points: bilinearly in each image, then the mean over the cameras that see the point.

    Cell (i, j) of a feature map of stride s has its centre at pixel s * (i, j) + (s - 1) / 2; beyond the outermost
    centres the outermost feature holds.

    Returns:
        lifted float32 [B, C, K], zeros where no camera sees the point; seen bool [B, K].
    """
    b, n, c, h, w = features.shape
    height, width = rig_images.images.shape[2:4]
    pixels, _, visible = project(points_ego_m, rig_images)
    cameras = visible.sum(dim=1)  # [B, K]
    sample, point, camera = visible.transpose(1, 2).nonzero(as_tuple=True)  # cameras of a point in a row
    at = pixels[sample, camera, point]  # [M, 2]
    column, row = (at[:, 0] + 0.5) * (w / width) - 0.5, (at[:, 1] + 0.5) * (h / height) - 0.5
    left, top = column.floor(), row.floor()
    right_share, lower_share = column - left, row - top
    columns = torch.stack([left, left + 1], dim=1).long().clamp(0, w - 1)  # [M, 2]
    rows = torch.stack([top, top + 1], dim=1).long().clamp(0, h - 1)
    index = (((sample * n + camera)[:, None] * h + rows) * w)[:, :, None] + columns[:, None]  # [M, 2, 2]
    weight = torch.stack([1 - lower_share, lower_share], dim=1)[:, :, None]
    weight = weight * torch.stack([1 - right_share, right_share], dim=1)[:, None]
    weight = weight / cameras[sample, point][:, None, None]
    table = features.permute(0, 1, 3, 4, 2).reshape(-1, c).float()
    taps = 4 * cameras.reshape(-1)
    lifted = weighted_rows(table, index.reshape(-1), weight.reshape(-1), taps)
    return lifted.reshape(b, -1, c).transpose(1, 2), cameras > 0


def pixel_rays(
    rig_images: RigImages,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The viewing rays through the centres of a grid of `size` (w, h) cells over each image, in the ego frame.

    Returns:
        origins float32 [B, N, 3], metres; directions float32 [B, N, h, w, 3], of length such that
        origin + t * direction is at depth t along the optical axis.
    """
    w, h = size
    height, width = rig_images.images.shape[2:4]
    device = rig_images.intrinsics.device
    u = (torch.arange(w, dtype=torch.float64, device=device) + 0.5) * (width / w) - 0.5
    v = (torch.arange(h, dtype=torch.float64, device=device) + 0.5) * (height / h) - 0.5
    v, u = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    ego_from_pixel = rig_images.ego_from_cam[..., :3, :3].double() @ rig_images.intrinsics.double().inverse()
    directions = torch.einsum("bnij,hwj->bnhwi", ego_from_pixel, pixels)
    return rig_images.ego_from_cam[..., :3, 3].float(), directions.float()


def weighted_rows(
    table: Tensor,  # [R, C]
    index: Tensor,  # [E] int64 rows of the table
    weight: Tensor,  # [E] float32
    counts: Tensor,  # [K]: the first counts[0] entries are summed into row 0, the next counts[1] into row 1, ...
) -> Tensor:  # [K, C]
    """Sum weighted rows, as a product with a sparse matrix, forward and backward without an intermediate [E, C]."""
    return _WeightedRows.apply(table, index, weight, counts)


class _WeightedRows(torch.autograd.Function):
    """The backward pass is the product with the transposed matrix, so that it also adds in a fixed order."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight, counts)
        ctx.rows = len(table)
        return _bags(table, index, weight, counts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        index, weight, counts = ctx.saved_tensors
        order = index.argsort(stable=True)
        target = torch.repeat_interleave(torch.arange(len(counts), device=index.device), counts)
        grad_table = _bags(grad.contiguous(), target[order], weight[order], index.bincount(minlength=ctx.rows))
        return grad_table, None, None, None


def _bags(table: Tensor, index: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    starts = counts.cumsum(0) - counts
    if not len(index):
        return table.new_zeros(len(counts), table.shape[1])
    return F.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weight.to(table.dtype))


def _image_from_ego(rig_images: RigImages) -> Tensor:
    """The matrices [B, N, 3, 4] from ego points (x, y, z, 1) to (u * depth, v * depth, depth)."""
    cam_from_ego = rig_images.ego_from_cam.double().inverse()[..., :3, :]
    return (rig_images.intrinsics.double() @ cam_from_ego).float()
