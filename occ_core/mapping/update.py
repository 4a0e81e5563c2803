"""One frame's answer into the cells of a map, in plain numpy: what `update_fast` does, cell for cell the same.

Both take the map in storage order; `lattice` says where each plane of storage lies in the seen grid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from occ_core.mapping.lattice import Lattice, sample
from occ_core.taxonomy import UNLABELED


class MapCells(NamedTuple):
    """A map's memory, in storage order."""

    log_odds: np.ndarray  # float32 [X, Y, Z]
    label: np.ndarray  # uint8 [X, Y, Z]: the class with most votes; free where there is none
    votes: np.ndarray  # uint8 [X, Y, Z, C]


class Step(NamedTuple):
    """What one frame adds; see `MapSettings`."""

    hit: float
    miss: float
    dynamic_weight: float  # of hits of classes that can move, and of misses in their cells
    lowest: float
    highest: float
    keep: float  # factor of the log-odds for the time that has passed
    dynamic_keep: float
    max_votes: int
    free_id: int


def update_plain(
    cells: MapCells,
    seen: np.ndarray,  # uint8 [A, B, C], class ids, UNLABELED where nobody looked
    lattice: Lattice,
    is_dynamic: np.ndarray,  # bool [classes]
    step: Step,
) -> None:
    """Decay everything, then add a hit, a miss or nothing to each cell, by the seen cell that holds its centre."""
    log_odds, label, votes = cells
    moving = is_dynamic[label]
    log_odds *= np.where(moving, np.float32(step.dynamic_keep), np.float32(step.keep))
    found = sample(seen, lattice)
    free = found == step.free_id
    occupied = (found != UNLABELED) & ~free
    weight = np.float32(1), np.float32(step.dynamic_weight)
    missed = np.float32(step.miss) * np.where(moving[free], weight[1], weight[0])
    log_odds[free] = np.maximum(log_odds[free] + missed, np.float32(step.lowest))
    cleared = free & (log_odds < 0)
    votes[cleared], label[cleared] = 0, step.free_id
    added = np.float32(step.hit) * np.where(is_dynamic[found[occupied]], weight[1], weight[0])
    log_odds[occupied] = np.minimum(log_odds[occupied] + added, np.float32(step.highest))
    _vote(label, votes, np.nonzero(occupied), found[occupied], step)


def _vote(
    label: np.ndarray, votes: np.ndarray, index: tuple[np.ndarray, ...], class_id: np.ndarray, step: Step
) -> None:
    """One vote each; where a class has all it can have, the others lose one instead, so that a change can win."""
    before = votes[index]  # [N, C]
    rows = np.arange(len(class_id))
    full = before[rows, class_id] >= step.max_votes
    after = np.where(full[:, None], np.maximum(before, 1) - 1, before).astype(np.uint8)
    after[rows, class_id] = np.minimum(before[rows, class_id].astype(np.int64) + 1, step.max_votes)
    votes[index] = after
    old = label[index]
    wins = (old == step.free_id) | (after[rows, class_id] > after[rows, old])
    label[index] = np.where(wins, class_id, old)
