"""Supervision of OccLE beside voxel labels: class maps at LiDAR points, LiDAR rays, and its own averaged weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from occ_core.grid import VoxelGrid
from occ_core.losses.voxel import geometry_loss
from occ_core.models.occle.lidar import ImageDepths, cells_at
from occ_core.network_input.projection import flat_cell, in_view
from occ_core.network_input.rig_images import RigImages
from occ_core.taxonomy import UNLABELED

FREE_SAMPLES = 8  # on the way to each LiDAR point
MARGIN_CELLS = 2.0  # before a LiDAR point, where its ray is not said to be free
KEPT_POINTS = 0.75  # share of points kept in a disturbed cloud
BRIGHTNESS = (0.8, 1.25)  # range of the factor for a disturbed camera
SPREAD_CELLS = 1.0  # standard deviation, by which the class of a LiDAR point is spread to the cells around it
RAMP = 0.5  # share of the run during which the weight of the averaged network rises


class Evidence(NamedTuple):
    """Cells that are known to be free or occupied."""

    cell: Tensor  # [E] int64, flat over samples and cells
    occupied: Tensor  # [E] bool


@torch.no_grad()
def lidar_evidence(
    lidar: Tensor,  # [B, P, 5]
    origin_m: Tensor,  # [B, 3], where the newest sweep was taken
    grid: VoxelGrid,
    rays: int,
) -> Evidence:
    """Choose at most `rays` random points of each sample's newest sweep; return their cells, and the cells on the way
    to them.

    A cell that holds any point is never called free.
    """
    samples, cells = len(lidar), grid.cells
    points, age_s = lidar[..., :3], lidar[..., 4].nan_to_num(torch.inf)
    newest = (age_s == age_s.amin(1, keepdim=True)) & points.isfinite().all(-1)
    sample, row = newest.nonzero()[_some(newest, rays)].unbind(1)
    end, start = points[sample, row], origin_m[sample]
    length_m = (end - start).norm(dim=1)
    free_m = (length_m - MARGIN_CELLS * grid.voxel_size_m).clamp(min=0)
    share = torch.rand(len(end), FREE_SAMPLES, device=lidar.device) * (free_m / length_m.clamp(min=1e-6))[:, None]
    way = start[:, None] + share[..., None] * (end - start)[:, None]
    (hit, hit_in), (way, way_in), (any_hit, any_in) = (cells_at(p, grid) for p in (end, way, points))
    every = torch.arange(samples, device=lidar.device)[:, None]
    hit, way, any_hit = (flat_cell(c, m, grid) for c, m in ((hit, sample), (way, sample[:, None]), (any_hit, every)))
    held = torch.zeros(samples * cells, dtype=torch.bool, device=lidar.device)
    held[any_hit[any_in]] = True
    hit, way = hit[hit_in], way[way_in & (free_m > 0)[:, None]]
    way = way[~held[way]]
    cell = torch.cat([hit, way])
    return Evidence(cell, torch.arange(len(cell), device=cell.device) < len(hit))


def _some(chosen: Tensor, count: int) -> Tensor:
    """Choose at most `count` True elements of each row of a bool [B, P] at random, as indices into
    `chosen.nonzero()`."""
    rows = chosen.nonzero()[:, 0]
    order = (rows + torch.rand(len(rows), device=rows.device)).argsort()  # rows stay together, each one shuffled
    counts = rows.bincount(minlength=len(chosen))
    rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    return order[rank < count]


def evidence_loss(
    occupied: Tensor,  # [B, X, Y, Z] logits
    evidence: Evidence,
    unlabelled: Tensor,  # [B, X, Y, Z] bool
    free_share: float,
) -> Tensor:
    """`balanced_occupancy` on the cells without label."""
    used = unlabelled.flatten()[evidence.cell]
    return balanced_occupancy(occupied.flatten()[evidence.cell[used]], evidence.occupied[used], free_share)


def balanced_occupancy(
    logit: Tensor,  # [K]
    occupied: Tensor,  # [K] bool
    free_share: float,
) -> Tensor:
    """Binary cross-entropy, of which `free_share` is the mean over free cells and the rest the mean over occupied
    ones."""
    of_free, of_occupied = (geometry_loss(logit[part], occupied[part]) for part in (~occupied, occupied))
    return free_share * of_free + (1 - free_share) * of_occupied


class TaughtCells(NamedTuple):
    """Cells and the class that a teacher gives each of them, if it is occupied."""

    cell: Tensor  # [Q] int64, flat over samples and cells
    classes: Tensor  # [Q] int64

    def known(self, weights: Tensor) -> TaughtCells:
        """Keep the cells whose class has a weight, since a mean over no weight is not a number."""
        some = weights[self.classes] > 0
        return TaughtCells(self.cell[some], self.classes[some])


@torch.no_grad()
def points_taught(
    rig_images: RigImages,
    depths: ImageDepths,
    class_map: Tensor,  # uint8 [B, N, H, W]
    grid: VoxelGrid,
    free_id: int,
) -> TaughtCells:
    """Read the class map at the pixel of every point that a camera sees; sky and unknown are left out.

    Each point tells it of its own cell, and of one near it: beams meet one in five of the cells that cameras see
    occupied, and what is next to a point is most often the same thing. To spread them so is ours.
    """
    assert rig_images.lidar is not None
    column, row = depths.pixel.round().long().unbind(1)
    height, width = class_map.shape[2:]
    classes = class_map[depths.sample, depths.camera, row.clamp(0, height - 1), column.clamp(0, width - 1)].long()
    cell, inside = cells_at(rig_images.lidar[depths.sample, depths.point, :3], grid)
    known = inside & (classes != UNLABELED) & (classes != free_id)
    sample, cell, classes = (torch.cat([of[known], of[known]]) for of in (depths.sample, cell, classes))
    spread = (torch.randn(cell.shape, device=cell.device) * SPREAD_CELLS).round().long()
    spread[: len(cell) // 2] = 0
    cell = cell + spread
    kept = ((cell >= 0) & (cell < torch.tensor(grid.shape, device=cell.device))).all(1)
    return TaughtCells(flat_cell(cell[kept], sample[kept], grid), classes[kept])


def voxels_taught(
    pseudo_labels: Tensor,  # uint8 [B, X, Y, Z], UNLABELED where nothing is said
    free_id: int,
) -> TaughtCells:
    """The cells that pseudo-labels call occupied."""
    classes = pseudo_labels.flatten()
    cell = ((classes != UNLABELED) & (classes != free_id)).nonzero()[:, 0]
    return TaughtCells(cell, classes[cell].long())


@torch.no_grad()
def disturbed(
    rig_images: RigImages,
    chosen: Tensor,  # [B] bool
) -> RigImages:
    """In the chosen samples, change each camera's brightness and remove a part of the LiDAR points; the averaged
    network sees the undisturbed input."""
    images = rig_images.images
    low, high = (math.log(limit) for limit in BRIGHTNESS)
    factor = torch.exp(low + (high - low) * torch.rand(*images.shape[:2], 1, 1, 1, device=images.device))
    factor = torch.where(chosen[:, None, None, None, None], factor, 1)
    lidar = rig_images.lidar
    if lidar is not None:
        gone = torch.rand(*lidar.shape[:2], device=lidar.device) > KEPT_POINTS
        lidar = lidar.masked_fill((gone & chosen[:, None])[..., None], torch.nan)
    return replace(rig_images, images=(images * factor).clamp(max=255).to(torch.uint8), lidar=lidar)


def consistency_loss(
    occupied: Tensor,  # [B, X, Y, Z] logits
    taught: Tensor,  # [B, X, Y, Z] logits of the averaged network
    unlabelled: Tensor,  # [B, X, Y, Z] bool
    centers_m: Tensor,  # [X * Y * Z, 3]
    rig_images: RigImages,
    cells: int,
) -> Tensor:
    """Mean squared difference between the probabilities of occupied, on random cells in view that have no label. Cells
    that the average calls occupied count half and the others half, because most are free."""
    some = torch.randint(len(centers_m), (cells,), device=occupied.device)
    used = in_view(centers_m[some], rig_images) & unlabelled.flatten(1)[:, some]
    mine = torch.sigmoid(occupied.flatten(1)[:, some][used].float())
    theirs = torch.sigmoid(taught.flatten(1)[:, some][used].float())
    square, side = (mine - theirs) ** 2, theirs > 0.5
    halves = [(square * part).sum() / part.sum().clamp(min=1) for part in (side, ~side)]
    return (halves[0] + halves[1]) / 2


def teacher_weight(progress: float) -> float:
    """Weight of the averaged network, 0..1; at first it knows little (the ramp of Laine and Aila, arXiv 1610.02242)."""
    return math.exp(-5 * (1 - min(1.0, progress / RAMP)) ** 2)
