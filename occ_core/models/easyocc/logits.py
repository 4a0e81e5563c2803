"""The intermediate results of EasyOcc nano on the way from images to cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEVER = -30.0  # logit of what cannot be; finite, so that arithmetic with it is
WITHIN = 0.15  # of a ray's length, to either side
PASSES = 0.5  # probability of coming to the last bin


class Views(NamedTuple):
    """What the images alone predict for each feature pixel's viewing ray."""

    features: Tensor  # [N, C, h, w]
    hazard_logits: Tensor  # [N, D, h, w]: does the ray end in this depth bin, if it comes so far?
    pixel_logits: Tensor  # [N, classes, h, w]: in what does it end?


class Lifted(NamedTuple):
    """The images' predictions and features, gathered into the grid."""

    geometry: Tensor  # [B, X, Y, 2 Z]: pairs of what its ray says of each cell: hazard, reached
    ends: Tensor  # [B, X, Y, Z]: 1 where the cell's ray is taken to end, see `ray_ends`, else 0
    context: Tensor  # [B, heights * C, X / 2, Y / 2]


class Hidden(NamedTuple):
    """All results before the cells; the losses on rays read them too."""

    columns: Tensor  # [B, X, Y, C + 3 Z]: bird's-eye features, and what its ray says of each cell: hazard, reached, end
    views: Views
    state: Tensor | None  # [B, memory channels + 1, X / 2, Y / 2] for the frame after; None: there is no memory


class CellLogits(NamedTuple):
    """Logits of the cells."""

    occupied: Tensor  # [..., Z]: if a camera sees the cell, is something in it?
    classes: Tensor  # [..., Z, classes - 1]: if so, what? (without the free class)
    ends: Tensor  # [..., Z] bool: is the cell where its viewing ray ends, see `ray_ends`?
    observed: Tensor  # [..., Z]: does a camera see it, or is it hidden? NEVER outside all images


def end_window(edges_m: np.ndarray) -> Tensor:
    """The weights [D, D] with which `reached` of a ray's bins gives, for each bin, the probability that the ray ends
    within WITHIN of its distance.

    Args:
        edges_m: borders of the bins, (D + 1,). Between them, `reached` is taken to fall linearly, and after the last
            of them a ray is not followed.
    """
    starts_m, middles_m = edges_m[:-1], (edges_m[1:] + edges_m[:-1]) / 2
    eye = np.eye(len(starts_m))
    before, after = (
        np.stack([np.interp(middles_m * share, starts_m, unit) for unit in eye]) for share in (1 - WITHIN, 1 + WITHIN)
    )
    return torch.from_numpy(before - after).float()


def ray_ends(
    reached: Tensor,  # [K, D], the probability that each ray comes to each bin
    window: Tensor,  # [D, D], of `end_window`
) -> Tensor:  # [K, D]: 1 in the bin where a ray is taken to end, else 0
    """Put the end of each ray into the one bin around which most of its probability lies; a ray that more likely
    than not comes to the last bin ends nowhere.

    Where a wall is, is uncertain by many cells, and none of them may be probable. That there is one is not, so it is
    put where it most likely is rather than nowhere. The window is what counts as the same place: it widens with the
    distance, as uncertainty does.
    """
    bins = torch.arange(reached.shape[1], dtype=torch.int32, device=reached.device)
    around = window.T @ reached.T  # [D, K]: runtimes find the largest faster with many rays beside each other
    ends = around.argmax(dim=0)[:, None].int() == bins
    return ends.float() * (1 - (reached[:, -1:] > PASSES).float())
