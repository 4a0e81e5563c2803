"""Finds signs that truth or predictions mean something else although they can be scored: other ids, other axes.

A set whose ids or axes are others scores like a bad network, or, where nothing is free in either, like a perfect one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from occ_core.taxonomy import Taxonomy

BETTER = 1.5  # times its mIoU, and MORE points above it: with other axes a set fits that much better
MORE = 1.0
Axes = tuple[bool, tuple[int, ...]]  # x and y swapped; then which axes are mirrored


class FreeCells:
    """Counts samples in which no cell at all is free. In real ones nine cells of ten are."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy, self.samples = taxonomy, 0
        self.cells = {who: np.zeros(len(taxonomy), dtype=np.int64) for who in ("truth", "prediction")}
        self.without = dict.fromkeys(self.cells, 0)

    def add(self, matrix: np.ndarray) -> None:
        """Count one sample by the confusion matrix, (truth, prediction), of all of its cells."""
        self.samples += 1
        for who, axis in (("truth", 1), ("prediction", 0)):
            cells = matrix.sum(axis=axis)
            if not cells[self.taxonomy.free_id]:
                self.without[who] += 1
                self.cells[who] += cells

    def merge(self, other: FreeCells) -> None:
        """Add the counts of `other`."""
        self.samples += other.samples
        for who in self.cells:
            self.without[who] += other.without[who]
            self.cells[who] += other.cells[who]

    def warnings(self) -> list[str]:
        """One line each for truth and predictions if they have such samples."""
        lines, names, free = [], self.taxonomy.names, self.taxonomy.free_id
        for who, count in self.without.items():
            if count:
                most = int(self.cells[who].argmax())
                share = 100 * self.cells[who][most] / max(1, self.cells[who].sum())
                lines.append(
                    f"no cell is free (id {free}) in the {who} of {count} of {self.samples} samples, {share:.0f} % are "
                    f"{names[most]} ({most}): ids other than {self.taxonomy.name}'s? Then no score here means anything"
                )
        return lines


def other_axes(pairs: Iterable[tuple[np.ndarray, np.ndarray]], taxonomy: Taxonomy) -> str | None:
    """Say in one line which other order or direction of the axes fits much better; None if none does.

    Args:
        pairs: truth and prediction, uint8 (X, Y, Z), of some samples; all cells count.
    """
    occupied = list(taxonomy.occupied_ids)
    hits: dict[Axes, np.ndarray] = {}
    present = np.zeros(256, dtype=np.int64)
    for truth, predicted in pairs:
        cell = np.flatnonzero(truth != taxonomy.free_id)
        own = truth.ravel()[cell]
        present += np.bincount(truth.ravel(), minlength=256) + np.bincount(predicted.ravel(), minlength=256)
        for axes, moved in _moved(predicted):
            hit = own[np.ascontiguousarray(moved).ravel()[cell] == own]
            hits[axes] = hits.get(axes, 0) + np.bincount(hit, minlength=256)
    scores = {axes: _mean_iou(hit[occupied], present[occupied]) for axes, hit in hits.items()}
    if not scores:
        return None
    as_is, best = scores[False, ()], max(scores, key=lambda axes: scores[axes])
    if scores[best] < max(BETTER * as_is, as_is + MORE):
        return None
    return (
        f"{_named(best)}, the predictions would score {scores[best]:.1f} instead of {as_is:.1f} % mIoU on all cells: "
        "are their axes x forward, y left, z up?"
    )


def _moved(labels: np.ndarray) -> Iterator[tuple[Axes, np.ndarray]]:
    """Yield the same cells in every order and direction of axes that keeps their shape, with z last."""
    swaps = (False, True) if labels.shape[0] == labels.shape[1] else (False,)
    for swapped, *flips in product(swaps, (False, True), (False, True), (False, True)):
        axes = tuple(axis for axis, flip in enumerate(flips) if flip)
        yield (swapped, axes), np.flip(labels.transpose(1, 0, 2) if swapped else labels, axes)


def _mean_iou(hits: np.ndarray, present: np.ndarray) -> float:
    """The mean IoU in percent over the classes that occur; `present` counts cells of truth and of prediction."""
    there = present > 0
    return float(100 * (hits[there] / (present - hits)[there]).mean()) if there.any() else 0.0


def _named(axes: Axes) -> str:
    swapped, mirrored = axes
    parts = ["with x and y swapped"] if swapped else []
    parts += [f"mirrored in {' and '.join('xyz'[axis] for axis in mirrored)}"] if mirrored else []
    return ", ".join(parts)
