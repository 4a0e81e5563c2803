"""Rays through the volume: where they enter and leave it, what they meet there, and how it looks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.models.selfocc.sdf import neus_weights


class RenderedRays(NamedTuple):
    """Results along R rays with S samples each. Depth is along the camera's optical axis."""

    depth_m: Tensor  # [R]
    sample_depth_m: Tensor  # [R, S]
    weights: Tensor  # [R, S], sum 1: what passes all samples is given to the last
    passed: Tensor  # [R], the share that passed
    rgb: Tensor  # [R, 3]
    classes: Tensor  # [R, classes - 1] probabilities; without channels where the run has no semantics


class Rays(NamedTuple):
    """Rays of one camera; `directions` have length 1 along its optical axis, so that the ray parameter is depth."""

    origin_m: Tensor  # [3], ego frame
    directions: Tensor  # [R, 3], ego frame


class Box(NamedTuple):
    """Where a volume's vertices are, from border to border."""

    lower_m: Tensor  # [3]
    upper_m: Tensor  # [3]
    shape: tuple[int, int, int]

    def places(self, points_m: Tensor) -> Tensor:
        """Convert points [..., 3] to units of vertices along x, y, z."""
        last = self.lower_m.new_tensor([n - 1 for n in self.shape])
        return (points_m - self.lower_m) / (self.upper_m - self.lower_m) * last


class VolumeTables(NamedTuple):
    """A volume as rows of vertices, in order [x, y, z]."""

    geometry: Tensor  # [V, 4]: distance, metres, and its gradient along x, y, z
    appearance: Tensor  # [V, 3 + classes - 1]: colour 0..1, then probabilities of classes


def pixel_grid(
    size: tuple[int, int],  # (w, h) rays
    image_size: tuple[int, int],  # (W, H)
    shift: Tensor,  # [..., 2], of all rays together in cells, -0.5..0.5; 0 = cell centres
) -> Tensor:  # [..., h, w, 2]
    """The pixel of each ray, one in each of w x h cells over the image. (0, 0) is the centre of the top-left pixel."""
    (w, h), (width, height) = size, image_size
    x = torch.arange(w, device=shift.device, dtype=shift.dtype) + 0.5
    y = torch.arange(h, device=shift.device, dtype=shift.dtype) + 0.5
    cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) + shift[..., None, None, :]
    return cells * cells.new_tensor([width / w, height / h]) - 0.5


def camera_rays(
    pixels: Tensor,  # [..., 2]
    intrinsics: Tensor,  # [3, 3]
    ego_from_cam: Tensor,  # [4, 4]
) -> Rays:
    points = F.pad(pixels.flatten(0, -2), (0, 1), value=1.0) @ torch.linalg.inv(intrinsics).T
    return Rays(ego_from_cam[:3, 3], points @ ego_from_cam[:3, :3].T)


def span_in_box(
    rays: Rays,
    lower_m: Tensor,  # [3]
    upper_m: Tensor,  # [3]
    near: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [R] each
    """Depths at which rays enter a box (or `near` where that is further) and leave it, and whether any depth lies
    between."""
    safe = torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
    ends = torch.stack([(lower_m - rays.origin_m) / safe, (upper_m - rays.origin_m) / safe])
    enter = ends.amin(dim=0).amax(dim=-1).clamp(min=near)
    leave = ends.amax(dim=0).amin(dim=-1)
    return enter, leave, leave > enter


def trilinear(
    places: Tensor,  # [K, 3], in vertices along x, y, z
    shape: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:  # int32 [K, 8], [K, 8]
    """The eight vertices around each place, as rows of a flattened volume, and their weights; places are clamped to the
    borders."""
    limit = places.new_tensor([n - 1 for n in shape])
    places = places.clamp(min=torch.zeros_like(limit), max=limit)
    first = torch.minimum(places.floor(), limit - 1)
    share = places - first
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=places.device)
    corners = torch.tensor([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)], device=places.device)
    rows = (first.long() * strides).sum(dim=1)[:, None] + (corners * strides).sum(dim=1)
    low, high = 1 - share, share
    x, y, z = (torch.stack([low[:, a], high[:, a]], dim=-1) for a in range(3))
    return rows.int(), (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)


def read(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: table [V, C], rows and weights [K, n] -> [K, C]."""
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def render(
    tables: VolumeTables,
    box: Box,
    rays: Rays,
    s: Tensor,  # scalar, 1/m
    samples: int,
    near_m: float,
    jitter: Tensor,  # [R, 1], place of each ray's samples in their intervals, 0..1; 0.5 = centres
    anneal: float = 1.0,
) -> RenderedRays:
    """Sample rays at equal steps from `near_m` to where they leave the box, weigh the samples as NeuS does, and sum
    them up.

    What passes all samples is given to the last one, so that a ray ends at the border of the box at the latest (ours;
    the published renderer leaves it without depth). Of rays that miss the box nothing is meant.
    """
    enter, leave, _ = span_in_box(rays, box.lower_m, box.upper_m, near_m)
    step = (leave - enter).clamp(min=0)[:, None] / samples
    depth_m = enter[:, None] + (torch.arange(samples, device=step.device) + jitter) * step  # [R, S]
    points_m = rays.origin_m + depth_m[..., None] * rays.directions[:, None]
    rows, shares = trilinear(box.places(points_m.flatten(0, 1)), box.shape)
    geometry = read(tables.geometry, rows, shares).view(*depth_m.shape, 4)
    length = rays.directions.norm(dim=-1, keepdim=True)
    slope = (geometry[..., 1:] @ (rays.directions / length)[..., None])[..., 0]
    weights = neus_weights(geometry[..., 0], slope, step * length, s, anneal)
    passed = 1 - weights.sum(dim=-1)
    weights = torch.cat([weights[:, :-1], weights[:, -1:] + passed[:, None]], dim=-1)
    # One bag of 8 S rows a ray: the looks of single samples are never made.
    every = (weights[..., None] * shares.view(*weights.shape, 8)).flatten(1)
    appearance = read(tables.appearance, rows.view(len(weights), -1), every)
    return RenderedRays((weights * depth_m).sum(dim=-1), depth_m, weights, passed, appearance[:, :3], appearance[:, 3:])
