"""What probability a logit of being occupied is told as: a scale and an offset for each height, fitted at the end.

The balance keeps the weights of a height near what training made of them, and is fitted on the cells in sight. What is
told as confidence is of others, those that the network calls observed, some of which it only guesses. So the logit is
read anew (Platt 1999; a temperature, Guo et al., arXiv 1706.04599, is the same without the offset): on the scenes that
the thresholds are fitted on, after them, and for confidence alone. No label changes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from occ_core.losses.ray import IGNORE
from occ_core.models.easyocc.balance import regress
from occ_core.models.easyocc.thresholds import Judged, answers

if TYPE_CHECKING:
    from occ_core.models.easyocc.model import EasyOcc

PRIOR_CELLS = 10.0  # scale 1 and offset 0 count as so many cells: a height that is hardly seen keeps its logits


def as_it_is(heights: int) -> Tensor:
    """Scale and offset, [2, heights], that leave logits alone."""
    return torch.tensor([[1.0], [0.0]]).repeat(1, heights)


@torch.no_grad()
def fit_confidence(model: EasyOcc, moments: Judged) -> None:
    """Set the model's `confidence_fit` to what makes the labelled cells that it calls observed most likely, given its
    balance and threshold of these; without moments, logits are told as they are."""
    heights = model.config.grid_shape[2]
    rows: list[list[np.ndarray]] = [[] for _ in range(heights)]
    for _, labels, cells in answers(model, moments):
        logit, observed = cells.occupied[0].numpy(), cells.observed[0].numpy() > float(model.seen)
        counted, occupied = observed & (labels != IGNORE), labels != model.config.classes.free_id
        for z, mine in enumerate(rows):
            at = counted[..., z]
            mine.append(np.stack([logit[at, z], occupied[at, z]]))
    model.confidence_fit.copy_(as_it_is(heights))
    for z, mine in enumerate(rows):
        if mine:
            logit, occupied = np.concatenate(mine, axis=1).astype(np.float64)
            scale, _, offset = regress(logit, np.zeros_like(logit), occupied, PRIOR_CELLS)
            model.confidence_fit[:, z] = torch.tensor([scale, offset])
