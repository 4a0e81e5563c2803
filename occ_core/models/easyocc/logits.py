"""The intermediate results of EasyOcc nano on the way from images to cells."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NEVER = -30.0  # logit of what cannot be; finite, so that arithmetic with it is


class Views(NamedTuple):
    """What the images alone predict for each feature pixel's viewing ray."""

    features: Tensor  # [N, C, h, w]
    hazard_logits: Tensor  # [N, D, h, w]: does the ray end in this depth bin, if it comes so far?
    pixel_logits: Tensor  # [N, classes, h, w]: in what does it end?


class Lifted(NamedTuple):
    """The images' predictions and features, gathered into the grid."""

    geometry: Tensor  # [B, X, Y, 2 Z]: pairs of what its ray says of each cell: hazard, reached
    context: Tensor  # [B, heights * C, X / 2, Y / 2]


class Hidden(NamedTuple):
    """All results before the cells; the losses on rays read them too."""

    columns: Tensor  # [B, X, Y, C + 2 Z]: bird's-eye features, and what its ray says of each cell: hazard, reached
    views: Views
    state: Tensor | None  # [B, memory channels + 1, X / 2, Y / 2] for the frame after; None: there is no memory


class CellLogits(NamedTuple):
    """Logits of the cells."""

    occupied: Tensor  # [..., Z]: if a camera sees the cell, is something in it?
    classes: Tensor  # [..., Z, classes - 1]: if so, what? (without the free class)
    ends: Tensor  # [..., Z] bool: is the cell where its viewing ray ends, see `ends_in`?
    observed: Tensor  # [..., Z]: does a camera see it, or is it hidden? NEVER outside all images


def ends_in(
    reached: Tensor,  # the probability that a ray comes to a cell
    ends_here: Tensor,  # and that it ends in it
    survival: Tensor,  # []
) -> Tensor:
    """Whether a cell lies in the depth bin, one of its ray, in which the ray is taken to end: that in which the
    probability that it comes farther falls to `survival`.

    Where a wall is, is uncertain by many cells, and none of them may be probable. That there is one is not, so it is
    put where it most likely is rather than nowhere.
    """
    return (reached > survival) & (ends_here > reached - survival)
