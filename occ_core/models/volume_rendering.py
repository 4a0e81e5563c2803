"""Renders the depth and classes that cameras would see in a volume of logits.

OccNeRF's rendering of probabilities (arXiv 2312.09243, section 3.2): each sample stops the ray with the probability of
being occupied. Where it differs: samples are spread evenly by cells of the contracted box, and a sample that stands for
d cells counts d times, so that neither the number of samples nor the direction of a ray changes what it meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from occ_core.losses.rendering import distortion
from occ_core.models.contraction import Contraction

KNOTS = 96  # points at which a ray's way through the box is measured


@dataclass(frozen=True)
class RaySampling:
    """Settings of how rays are sampled.

    Attributes:
        samples: along each ray.
        samples_per_class: samples that share one look-up of the classes; it divides `samples`.
        depth_m: where rays begin and end at the latest.
        rays_per_chunk: rays that are rendered at a time, which bounds the memory.
        checkpoint: render a chunk again in the backward pass instead of keeping what it needs.
    """

    samples: int
    samples_per_class: int
    depth_m: tuple[float, float]
    rays_per_chunk: int
    checkpoint: bool


class Rendered(NamedTuple):
    """What rays meet; depth is in metres along the optical axis if the directions are scaled so."""

    depth_m: Tensor  # [B, R]
    classes: Tensor  # [B, R, C] logits
    opacity: Tensor  # [B, R] probability to have ended before the last sample
    distortion: Tensor  # [B, R] in units of the box's half diagonal


def render(
    volume: Tensor,  # [B, C, X, Y, Z] logits, in the box of `contraction`
    free_id: int,
    contraction: Contraction,
    origins_m: Tensor,  # [B, R, 3]
    directions: Tensor,  # [B, R, 3]
    sampling: RaySampling,
    jitter: Tensor | None = None,  # [B, R] in 0..1: where in its interval each sample of a ray lies; None: midway
) -> Rendered:
    """Render all rays, in chunks."""
    if jitter is None:
        jitter = torch.full_like(origins_m[..., 0], 0.5)
    volume = volume.to(origins_m.dtype)  # under autocast it comes in half precision, too coarse to add up weights in
    again = sampling.checkpoint and volume.requires_grad
    samples = []
    for b in range(volume.shape[0]):
        chunks = []
        for rays in zip(*(x[b].split(sampling.rays_per_chunk) for x in (origins_m, directions, jitter)), strict=True):
            inputs = (volume[b], free_id, contraction, *rays, sampling)
            chunks.append(checkpoint(_render_rays, *inputs, use_reentrant=False) if again else _render_rays(*inputs))
        samples.append([torch.cat(parts) for parts in zip(*chunks, strict=True)])
    return Rendered(*(torch.stack(parts) for parts in zip(*samples, strict=True)))


def _render_rays(
    volume: Tensor,  # [C, X, Y, Z]
    free_id: int,
    contraction: Contraction,
    origins_m: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    jitter: Tensor,  # [R]
    sampling: RaySampling,
) -> Rendered:
    rays, s = len(origins_m), sampling.samples
    with torch.no_grad():
        depth_m, spacing = sample_depths(contraction, origins_m, directions, jitter, s, sampling.depth_m)
        points_m = origins_m.unsqueeze(1) + depth_m.unsqueeze(-1) * directions.unsqueeze(1)
        contracted = contraction.contract(points_m)  # [R, S, 3]
        inside = (contracted.abs() <= 1).all(-1)
        position = (torch.arange(s, device=volume.device) + 0.5) * spacing / _half_diagonal(contraction)  # [R, S]
        width = spacing / _half_diagonal(contraction)
    free_logit = sample_volume(volume[free_id : free_id + 1], contracted.reshape(-1, 3)).reshape(rays, s)
    occupied = torch.sigmoid(-free_logit) * inside * spacing
    weights, opacity = stop_weights(occupied)

    groups = s // sampling.samples_per_class
    middles = contracted.reshape(rays, groups, -1, 3).mean(2)
    logits = sample_volume(volume, middles.reshape(-1, 3)).reshape(rays, groups, -1)
    # Any class is rendered best by calling nothing free, so that way of learning is shut: where things are is learned
    # through the weights alone. Else all rays soon end at the camera.
    free = torch.arange(logits.shape[-1], device=logits.device) == free_id
    logits = torch.where(free, logits.detach(), logits)
    group_weights = weights.reshape(rays, groups, -1).sum(-1)
    classes = (group_weights.unsqueeze(-1) * logits).sum(1)
    return Rendered((weights * depth_m).sum(-1), classes, opacity, distortion(weights, position, width.expand(-1, s)))


def sample_depths(
    contraction: Contraction,
    origins_m: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    jitter: Tensor,  # [R] in 0..1
    samples: int,
    range_m: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Depths [R, samples] at equal distances, counted in cells of the box, and that distance, [R, 1] in cells.

    Only the way inside the box counts. A ray that never is in the box has all samples at one depth, 0 cells apart.
    """
    near, far = range_m
    share = torch.linspace(0, 1, KNOTS, dtype=origins_m.dtype, device=origins_m.device)
    knots_m = near + (far - near) * share**3  # denser where cells are
    points_m = origins_m.unsqueeze(1) + knots_m.unsqueeze(-1) * directions.unsqueeze(1)  # [R, KNOTS, 3]
    contracted = contraction.contract(points_m)
    inside = (contracted.abs() <= 1).all(-1)
    half_cells = contracted.new_tensor(contraction.shape) / 2
    step = (contracted.diff(dim=1) * half_cells).norm(dim=-1) * (inside[:, 1:] & inside[:, :-1])
    travelled = F.pad(step.cumsum(1), (1, 0))  # [R, KNOTS]
    spacing = travelled[:, -1:] / samples
    wanted = (torch.arange(samples, device=jitter.device) + jitter.unsqueeze(1)) * spacing  # [R, samples]
    after = torch.searchsorted(travelled, wanted, right=True).clamp(1, KNOTS - 1)
    before_cells, after_cells = travelled.gather(1, after - 1), travelled.gather(1, after)
    share = ((wanted - before_cells) / (after_cells - before_cells).clamp(min=1e-6)).clamp(0, 1)
    return torch.lerp(knots_m[after - 1], knots_m[after], share), spacing


def sample_volume(
    volume: Tensor,  # [C, X, Y, Z]
    contracted: Tensor,  # [P, 3] x, y, z within -1..1; what is outside takes the border's values
) -> Tensor:  # [P, C]
    """Interpolate trilinearly; the centre of cell i of n is at (2 i + 1) / n - 1."""
    grid = contracted.flip(-1).reshape(1, 1, 1, -1, 3)  # the last axis comes first in grid_sample
    values = F.grid_sample(volume.unsqueeze(0), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values.reshape(volume.shape[0], -1).T


def stop_weights(
    occupied: Tensor,  # [..., S] probability that the ray stops at each sample
) -> tuple[Tensor, Tensor]:
    """The share of the ray that stops at each sample, [..., S], summing to 1, and the share that stops before the last,
    [...].

    OccNeRF's "prob" rendering: growth of min(cumulative sum, 1); the last sample stops whatever comes so far.
    """
    reached = occupied.cumsum(-1).clamp(max=1)
    opacity = reached[..., -2]
    ends = torch.cat([reached[..., :-1], torch.ones_like(reached[..., -1:])], dim=-1)
    return ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1])), opacity


def _half_diagonal(contraction: Contraction) -> float:
    """Half of the box's diagonal, in cells."""
    return sum(n * n for n in contraction.shape) ** 0.5 / 2
