"""Supervision by points on viewing rays: free before the hit, occupied just behind it (as in QueryOcc, CVPR 2026).

It takes the teachers' depth and classes as they are, with no grid in between.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.grid import VoxelGrid
from occ_core.losses.labels import SMALLEST, occupied_logit
from occ_core.losses.voxel import geometry_loss
from occ_core.network_input.projection import pixel_rays, weighted_rows
from occ_core.network_input.rig_images import RigImages
from occ_core.taxonomy import UNLABELED


class Queries(NamedTuple):
    """Points of all samples in a row; all lie in the grid."""

    sample: Tensor  # [Q] int64
    points_ego_m: Tensor  # [Q, 3]
    occupied: Tensor  # [Q] bool
    classes: Tensor  # [Q] int64; UNLABELED where free or unknown


def sample_queries(
    depth_m: Tensor,  # [B, N, H, W] along the optical axis; +inf = sky, NaN = unknown
    class_map: Tensor,  # uint8 [B, N, H, W]; free_id = sky, UNLABELED = unknown
    rig_images: RigImages,
    grid: VoxelGrid,
    free_id: int,
    rays: int,
    buffer_m: float,
) -> Queries:
    """Choose a free and an occupied point on `rays` random pixels of each sample.

    The free one is uniform between where the ray enters the grid and its hit, the occupied one uniform in the
    `buffer_m` behind the hit. The sky gives the first only, up to the end of the grid, and where the depth is within
    the grid neither: a wrong sky would empty houses (as in `labels.lift.sort_pixels`). What lies outside the grid is
    dropped.
    """
    b, n, height, width = depth_m.shape
    device = depth_m.device
    origins, directions = pixel_rays(rig_images, (width, height))
    sample = torch.arange(b, device=device)[:, None].expand(b, rays).flatten()
    pixel = torch.randint(n * height * width, (b * rays,), device=device)
    camera = pixel // (height * width)
    depth, classes = depth_m.flatten(1)[sample, pixel].float(), class_map.flatten(1)[sample, pixel].long()
    sky = classes == free_id
    depth = torch.where(sky & ~(depth > 0), torch.inf, depth)  # of unknown depth, too
    usable = rig_images.present[sample, camera] & (depth > 0)  # NaN is not
    sample, pixel, camera, depth, classes, sky = (v[usable] for v in (sample, pixel, camera, depth, classes, sky))
    origin, direction = origins[sample, camera], directions.flatten(1, 3)[sample, pixel]

    enter, leave = within_grid(origin, direction, grid)
    last = torch.minimum(leave, depth)
    contradiction = sky & (depth < leave)
    free = (last > enter) & ~contradiction
    share = torch.rand(len(depth), device=device)
    free_points = origin + (enter + share * (last - enter))[:, None] * direction

    share = torch.rand(len(depth), device=device)
    behind = depth + share * buffer_m / direction.norm(dim=1)
    hit = torch.isfinite(depth) & (behind > enter) & (behind < leave) & ~contradiction
    hit_points = origin + torch.where(hit, behind, 0)[:, None] * direction

    points = torch.cat([free_points[free], hit_points[hit]])
    occupied = torch.arange(len(points), device=device) >= free.sum()
    return Queries(
        torch.cat([sample[free], sample[hit]]),
        points,
        occupied,
        torch.where(occupied, torch.cat([classes[free], classes[hit]]), UNLABELED),
    )


def query_losses(
    logits: Tensor,  # [B, C, X, Y, Z]
    queries: Queries,
    grid: VoxelGrid,
    free_id: int,
    class_weights: Tensor | None = None,  # [C]
) -> dict[str, Tensor]:
    """`query_occupied`: binary cross-entropy, half of it from free points and half from occupied ones. `query_class`:
    cross-entropy of the class of occupied points, among all classes but free; unknown ones are left out.
    """
    rows = trilinear(logits, queries.sample, queries.points_ego_m, grid)
    logit, occupied = occupied_logit(rows, free_id), queries.occupied
    halves = [geometry_loss(logit[side], occupied[side]) for side in (occupied, ~occupied)]
    known = occupied & (queries.classes != UNLABELED) & (queries.classes != free_id)
    rows, target = rows[known], queries.classes[known]
    no_class = torch.arange(rows.shape[1], device=rows.device) == free_id
    loss = -F.log_softmax(rows.masked_fill(no_class, -torch.inf), dim=1).gather(1, target[:, None])[:, 0]
    weight = torch.ones_like(loss) if class_weights is None else class_weights[target]
    return {
        "query_occupied": (halves[0] + halves[1]) / 2,
        "query_class": (loss * weight).sum() / weight.sum().clamp(min=SMALLEST),
    }


def trilinear(
    volume: Tensor,  # [B, C, X, Y, Z]
    sample: Tensor,  # [Q] int64
    points_ego_m: Tensor,  # [Q, 3], in the grid
    grid: VoxelGrid,
) -> Tensor:  # [Q, C]
    """Values between cell centres; beyond the outermost centres the outermost cell holds."""
    shape = torch.tensor(grid.shape, device=volume.device)
    origin_m = torch.tensor(grid.origin_m, device=volume.device)
    at = (points_ego_m - origin_m) / grid.voxel_size_m - 0.5
    low = at.floor()
    share = at - low
    low = low.long()
    corners = torch.cartesian_prod(*[torch.arange(2, device=volume.device)] * 3)  # [8, 3]
    x, y, z = torch.minimum((low[:, None] + corners).clamp(min=0), shape - 1).unbind(2)  # [Q, 8] each
    weight = torch.where(corners == 1, share[:, None], 1 - share[:, None]).prod(dim=2)
    index = ((sample[:, None] * grid.shape[0] + x) * grid.shape[1] + y) * grid.shape[2] + z
    table = volume.movedim(1, -1).flatten(0, 3).float()  # [B * X * Y * Z, C]
    return weighted_rows(table, index.flatten(), weight.flatten(), torch.full_like(sample, 8))


def within_grid(origin: Tensor, direction: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Depths [R] at which rays [R, 3] enter and leave the grid; enter >= leave where they miss it."""
    step = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    a, b = (
        (torch.tensor(corner, dtype=origin.dtype, device=origin.device) - origin) / step
        for corner in (grid.origin_m, grid.upper_m)
    )
    return torch.minimum(a, b).amax(dim=1).clamp(min=0), torch.maximum(a, b).amin(dim=1)
