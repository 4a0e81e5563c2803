"""Weighs the grid's logit of a cell against its viewing ray's, fitted on scenes that trained neither.

On scenes that the image network has learned its depth is better than on new ones, and the bird's-eye network, which
learns there what to make of it, takes it for better than it is. So the two are weighed again where both are new to
them: one logistic regression for each height, as in stacked generalization (Wolpert, Neural Networks 1992).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from occ_core.models.easyocc.logits import NEVER
from occ_core.models.easyocc.thresholds import LabelledSamples, in_sight, labels_of

if TYPE_CHECKING:
    from occ_core.models.easyocc.model import EasyOcc

ROUNDS = 30  # iterations of Newton's method, at most
HALVINGS = 12  # of one step
RIDGE = 0.01  # as a share of the number of cells: with few cells the weights stay near the trained ones


@torch.no_grad()
def fit_balance(model: EasyOcc, samples: LabelledSamples) -> None:
    """Fit the model's `balance` on cells in sight; without samples, grid and ray count as training left them."""
    heights = model.config.grid_shape[2]
    model.balance.copy_(torch.tensor([[1.0], [1.0], [0.0]]).repeat(1, heights))
    rows: list[list[np.ndarray]] = [[] for _ in range(heights)]
    sequential = model.sequential()
    for inputs, targets in samples:
        grid, ray = (part[0].numpy() for part in grid_and_ray_logits(model, sequential.hidden(inputs).columns))
        seen = in_sight(inputs, targets, model.config) & (ray > NEVER)
        occupied = labels_of(targets) != model.config.classes.free_id
        for z, mine in enumerate(rows):
            at = seen[..., z]
            mine.append(np.stack([grid[at, z], ray[at, z], occupied[at, z]]))
    if not rows[0]:
        return
    fitted = [regress(*np.concatenate(mine, axis=1).astype(np.float64)) for mine in rows]
    model.balance.copy_(torch.from_numpy(np.stack(fitted, axis=1)))


def grid_and_ray_logits(model: EasyOcc, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of occupied that grid and viewing ray give each cell, [..., Z] each; NEVER where no ray comes."""
    heights = model.config.grid_shape[2]
    hazard, reached, _ = columns[..., -3 * heights :].chunk(3, dim=-1)
    grid = model.to_occupied(model.head(columns[..., : -3 * heights]))
    return grid, torch.where(reached > 0, model.hazard_weight * hazard, NEVER)


def regress(grid: np.ndarray, ray: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Find (weight of grid, weight of ray, constant) that make the cells (K,) most likely; neither weight is
    negative.

    By projected Newton steps (Bertsekas, SIAM J. Control Optim. 1982), each halved until it makes the cells likelier:
    where hardly a cell is occupied, a full step can lead far away, and never back.
    """
    start = np.array([1.0, 1.0, 0.0])
    features = np.stack([grid, ray, np.ones_like(grid)])
    stiff = RIDGE * max(1, len(grid))

    def unlikely(weights: np.ndarray) -> float:
        logit = weights @ features
        return float((np.logaddexp(0, logit) - occupied * logit).sum() + stiff / 2 * ((weights - start) ** 2).sum())

    weights = start.copy()
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(weights @ features, -30, 30)))
        slope = features @ (p - occupied) + stiff * (weights - start)
        bend = (features * (p * (1 - p))) @ features.T + stiff * np.eye(3)
        moves = (weights > 0) | (slope < 0) | np.array([False, False, True])
        step = np.zeros(3)
        step[moves] = np.linalg.solve(bend[np.ix_(moves, moves)], slope[moves])
        now = unlikely(weights)
        for share in 0.5 ** np.arange(HALVINGS):
            trial = weights - share * step
            trial[:2] = np.maximum(trial[:2], 0)
            if unlikely(trial) < now:
                weights = trial
                break
        else:  # as good as it gets
            break
    return weights
