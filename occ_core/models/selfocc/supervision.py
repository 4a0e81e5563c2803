"""Losses on the rendered rays of one camera, against its image, its class map and its neighbours in time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from occ_core.losses.mvs import mvs_photometric_error
from occ_core.losses.photometric import (
    NEAREST_M,
    WHOLE,
    minimum_error,
    photometric_error,
    reproject,
    sample_image,
)
from occ_core.models.selfocc.rendering import RenderedRays
from occ_core.taxonomy import UNLABELED

SMALLEST = 1e-6  # probability


class TargetView(NamedTuple):
    """One camera of one sample."""

    pixels: Tensor  # [h, w, 2], of the rays
    image: Tensor  # [1, 3, H, W], 0..1
    intrinsics: Tensor  # [1, 3, 3]
    sees: Tensor | None = None  # [H, W] bool: pixels that show the world; None: all

    def colours(self, image: Tensor) -> Tensor:  # [1, 3, h, w]
        """Colours of an image [1, 3, H, W] at the rays' pixels."""
        values, _ = sample_image(image, self.pixels.flatten(0, 1)[None])
        return values.unflatten(2, self.pixels.shape[:2])

    @property
    def shown(self) -> Tensor:  # [1, 1, h, w] bool
        """Whether each ray's pixel shows the world."""
        if self.sees is None:
            return self.pixels.new_ones(1, 1, *self.pixels.shape[:2], dtype=torch.bool)
        return nearest_values(self.sees, self.pixels).view(1, 1, *self.pixels.shape[:2])


def colour_loss(rays: RenderedRays, view: TargetView, target: Tensor) -> Tensor:
    """Mean photometric error of the rendered colours, where the image shows the world."""
    error = photometric_error(target, rendered_colours(rays, view))
    return (error * view.shown).sum() / view.shown.sum().clamp(min=1)


def rendered_colours(rays: RenderedRays, view: TargetView) -> Tensor:  # [1, 3, h, w]
    return rays.rgb.T.unflatten(1, view.pixels.shape[:2])[None]


def neighbour_loss(
    rays: RenderedRays,
    view: TargetView,
    neighbours: Tensor,  # [K, 3, H, W], 0..1
    neighbour_from_cam: Tensor,  # [K, 4, 4]
    mvs: bool,
) -> Tensor:
    """The least photometric error over the neighbours, with automask: of all samples (`mvs`), or at the rendered
    depth."""
    target = view.colours(view.image)
    error_of = _error_of_samples if mvs else _error_at_depth
    errors, valid, identity = [], [], []
    for image, pose in zip(neighbours[:, None], neighbour_from_cam[:, None], strict=True):
        error, seen = error_of(rays, view, target, image, pose)
        errors.append(error)
        valid.append(seen & view.shown)
        identity.append(photometric_error(target, view.colours(image)))
    return minimum_error(torch.cat(errors, 1), torch.cat(valid, 1), torch.cat(identity, 1))


def _error_of_samples(
    rays: RenderedRays, view: TargetView, target: Tensor, neighbour: Tensor, neighbour_from_cam: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():  # the proposals are given; only their weights learn
        proposals, inside = _warped(rays.sample_depth_m, view, neighbour, neighbour_from_cam)
    (h, w), samples = view.pixels.shape[:2], rays.weights.shape[1]
    weights = rays.weights.T.reshape(1, samples, h, w)
    proposals = proposals.view(1, 3, h, w, samples).movedim(-1, 2)
    inside = inside.view(1, h, w, samples).movedim(-1, 1)
    return mvs_photometric_error(target, proposals, inside, weights)


def _error_at_depth(
    rays: RenderedRays, view: TargetView, target: Tensor, neighbour: Tensor, neighbour_from_cam: Tensor
) -> tuple[Tensor, Tensor]:
    warped, inside = _warped(rays.depth_m[:, None], view, neighbour, neighbour_from_cam)
    h, w = view.pixels.shape[:2]
    return photometric_error(target, warped.view(1, 3, h, w)), inside.view(1, 1, h, w)


def _warped(
    depth_m: Tensor,  # [R, S] of each ray
    view: TargetView,
    neighbour: Tensor,  # [1, 3, H, W]
    neighbour_from_cam: Tensor,  # [1, 4, 4]
) -> tuple[Tensor, Tensor]:  # [1, 3, R * S], bool [1, R * S]
    """The neighbour's colours at these points, and whether the points are in its image."""
    pixels = view.pixels.flatten(0, 1).repeat_interleave(depth_m.shape[1], dim=0)[None]
    there, there_m = reproject(pixels, depth_m.reshape(1, -1), view.intrinsics, neighbour_from_cam)
    colours, inside = sample_image(neighbour, there)
    if view.sees is not None:
        shown, _ = sample_image(view.sees[None, None].float(), there.detach())
        inside = inside & (shown[:, 0] > WHOLE)
    return colours, inside & (there_m > NEAREST_M)


def ray_class_loss(
    rays: RenderedRays,
    class_map: Tensor,  # [R] uint8: class of each ray's pixel; the free id is sky, UNLABELED unknown
    pixel_weights: Tensor,  # [C]
    free_id: int,
) -> Tensor:
    """The weighted negative log-likelihood of the class in which rays end; for sky, of ending in nothing.

    Classes are rendered as probabilities (a mixture of the vertices' soft-maxes), so no soft-max follows; ours.
    """
    target = class_map.long()
    known = target != UNLABELED
    target = torch.where(known, target, free_id)
    weights = pixel_weights[target] * known
    column = torch.where(target > free_id, target - 1, target).clamp(max=rays.classes.shape[1] - 1)
    ends_in = rays.classes.gather(1, column[:, None])[:, 0]
    likelihood = torch.where(target == free_id, rays.passed, ends_in).clamp(min=SMALLEST)
    return -(weights * likelihood.log()).sum() / weights.sum().clamp(min=SMALLEST)


def nearest_values(
    values: Tensor,  # [H, W]
    pixels: Tensor,  # [h, w, 2]
) -> Tensor:  # [h * w]
    height, width = values.shape
    x, y = pixels.flatten(0, 1).round().long().unbind(-1)
    return values[y.clamp(0, height - 1), x.clamp(0, width - 1)]
