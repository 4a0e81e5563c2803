"""Scatter-accumulated projection: compares an answer in cells, accumulated along pixels' viewing rays, with the class
maps.

Only the idea is OccLE's (arXiv 2505.20617); the formula is ours. A ray meets cells 1, 2, .. with p_i to be occupied:

    w_i = p_i (1 - p_1) .. (1 - p_(i-1))        q_c = sum_i w_i P(class c | i occupied) / sum_i w_i

and the loss is -log q of the pixel's class, weighted by sum_i w_i, the chance that the ray meets anything. w teaches
nothing: to call the nearest cell occupied is the quickest way to please any pixel. Only rays into the sky teach where
things are: all that they pass is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.grid import VoxelGrid
from occ_core.losses.query import within_grid
from occ_core.network_input.projection import flat_cell, pixel_rays
from occ_core.network_input.rig_images import RigImages
from occ_core.taxonomy import UNLABELED

LEAST_WEIGHT = 0.01  # cells with less weight on a ray are skipped when classes are computed
SMALLEST = 1e-6


class RayCells(NamedTuple):
    """The cells that rays meet, in order."""

    cell: Tensor  # [R, S] int64, of `flat_cell`
    met: Tensor  # [R, S] bool; the rest are repetitions or outside the grid
    classes: Tensor  # [R] int64 of the rays' pixels


def projection_losses(
    occupied: Tensor,  # [B, X, Y, Z] logits
    classes_of: Callable[
        [Tensor], Tensor
    ],  # logits [Q, C - 1] of cells, given as in `RayCells`; without the free class
    class_map: Tensor,  # uint8 [B, N, H, W]; free_id = sky, UNLABELED = unknown
    rig_images: RigImages,
    grid: VoxelGrid,
    free_id: int,
    rays: int,
    class_weights: Tensor,  # [C]
) -> dict[str, Tensor]:
    """`projection` of classes, `projection_sky`: mean of -log(1 - p) over cells on rays into the sky; of `rays` random
    pixels of each sample."""
    walks = cells_along_rays(class_map, rig_images, grid, rays)
    logit = occupied.flatten()[walks.cell].float()  # [R, S]
    passed = torch.where(walks.met, F.logsigmoid(-logit), 0)
    sky = walks.classes == free_id
    sky_cells = (walks.met & sky[:, None]).sum().clamp(min=1)
    losses = {"projection_sky": -passed[sky].sum() / sky_cells}
    with torch.no_grad():
        weight = torch.exp(passed.cumsum(1) - passed) * torch.sigmoid(logit) * walks.met
        ray, sample = (weight * ~sky[:, None] > LEAST_WEIGHT).nonzero().unbind(1)
        weight = weight[ray, sample]
    target = walks.classes - (walks.classes > free_id).long()  # among classes without the free one
    rows = classes_of(walks.cell[ray, sample]).float()
    share = weight * F.softmax(rows, dim=1).gather(1, target[ray][:, None])[:, 0]
    hit = torch.zeros_like(logit[:, 0]).index_add(0, ray, share)
    met = torch.zeros_like(logit[:, 0]).index_add(0, ray, weight)
    counts = met * torch.where(sky, 0, class_weights[walks.classes])
    loss = -torch.log(hit / met.clamp(min=SMALLEST) + SMALLEST)
    losses["projection"] = (loss * counts).sum() / counts.sum().clamp(min=SMALLEST)
    return losses


@torch.no_grad()
def cells_along_rays(class_map: Tensor, rig_images: RigImages, grid: VoxelGrid, rays: int) -> RayCells:
    """Random pixels of known class and the cells on their rays, one sample each edge length."""
    b, n, height, width = class_map.shape
    device = class_map.device
    origins_m, directions = pixel_rays(rig_images, (width, height))
    sample = torch.arange(b, device=device).repeat_interleave(rays)
    pixel = torch.randint(n * height * width, (b * rays,), device=device)
    camera = pixel // (height * width)
    target = class_map.flatten(1)[sample, pixel].long()
    origin, direction = origins_m[sample, camera], F.normalize(directions.flatten(1, 3)[sample, pixel], dim=1)
    enter_m, leave_m = within_grid(origin, direction, grid)
    usable = (target != UNLABELED) & rig_images.present[sample, camera] & (enter_m < leave_m)
    sample, target, origin, direction, enter_m, leave_m = (
        t[usable] for t in (sample, target, origin, direction, enter_m, leave_m)
    )
    longest_m = float((leave_m - enter_m).max()) if len(leave_m) else 0.0
    samples = int(longest_m / grid.voxel_size_m) + 1
    at_m = enter_m[:, None] + (torch.arange(samples, device=device) + 0.5) * grid.voxel_size_m  # [R, S]
    points = origin[:, None] + at_m[..., None] * direction[:, None]
    shape = torch.tensor(grid.shape, device=device)
    at = ((points - points.new_tensor(grid.origin_m)) / grid.voxel_size_m).floor().long()
    cell = flat_cell(torch.minimum(at.clamp(min=0), shape - 1), sample[:, None], grid)
    again = F.pad(cell[:, 1:] == cell[:, :-1], (1, 0))
    return RayCells(cell, (at_m < leave_m[:, None]) & ~again, target)
