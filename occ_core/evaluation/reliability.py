"""Checks whether confidence is right: of cells called occupied, or free, with 70 %, seven in ten should be.

Counted are cells that the prediction calls observed and a camera does observe in the truth. Right is a cell called
occupied that is occupied, by whatever class, or called free that is free: that is what the confidence is of.
The expected calibration error (ECE; Guo et al., arXiv 1706.04599) is the mean distance of confidence and share that is
right, over BINS bins of confidence, each weighed by its cells. Free cells are many and easy, so it is also given apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D, Taxonomy

BINS = 10  # of equal width
EDGES_M = (0, 10, 20, 40)  # of the bands of distance from the ego along the ground; the last one goes on
BANDS = tuple(f"{low}-{high}m" for low, high in zip(EDGES_M, EDGES_M[1:], strict=False))
LEVELS = 256  # confidence is a byte


class Reliability:
    """Counts cells, and those that are right, by what they are called, band and confidence.

    Args:
        taxonomy, grid: of truth and predictions.
    """

    def __init__(self, taxonomy: Taxonomy = OCC3D, grid: VoxelGrid = OCC3D_GRID) -> None:
        self.taxonomy, self.samples = taxonomy, 0
        shape = len(taxonomy), len(BANDS), LEVELS
        self.cells, self.right = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        x_m, y_m = (
            o + (np.arange(n) + 0.5) * grid.voxel_size_m for o, n in zip(grid.origin_m[:2], grid.shape[:2], strict=True)
        )
        band = np.digitize(np.hypot(x_m[:, None], y_m), EDGES_M[1:-1])
        self._band = np.broadcast_to(band[..., None], grid.shape)

    def add(self, truth: Occupancy, predicted: np.ndarray, observed: np.ndarray, confidence: np.ndarray) -> None:
        """Count one sample.

        Args:
            truth: with `observed` as the cameras' mask.
            predicted: uint8 (X, Y, Z) class ids. observed: bool (X, Y, Z).
            confidence: uint8 (X, Y, Z), 255 x probability of what the cell is called, occupied or free.

        Raises:
            InvalidInput: shapes or types differ from these, or a label is no class.
        """
        if confidence.dtype != np.uint8 or confidence.shape != truth.labels.shape:
            raise InvalidInput(
                f"confidence must be uint8 {truth.labels.shape}, got {confidence.dtype} {confidence.shape}"
            )
        counted, free = observed & truth.observed, self.taxonomy.free_id
        called = predicted[counted].astype(np.int64)
        if called.size and called.max() >= len(self.taxonomy):
            raise InvalidInput(f"prediction holds label {called.max()}, limit {len(self.taxonomy) - 1}")
        bin_index = (called * len(BANDS) + self._band[counted]) * LEVELS + confidence[counted]
        right = (called == free) == (truth.labels[counted] == free)
        for counts, bin_indices in ((self.cells, bin_index), (self.right, bin_index[right])):
            counts += np.bincount(bin_indices, minlength=counts.size).reshape(counts.shape)
        self.samples += 1

    def merge(self, other: Reliability) -> None:
        """Add the counts of `other`."""
        self.cells += other.cells
        self.right += other.right
        self.samples += other.samples

    def report(self) -> dict[str, Any]:
        """For `all`, `occupied` and `free` cells, as they are called, and for occupied ones also `per_range` and
        `per_class`: the number of cells, and in percent mean confidence, share right and ece, None without cells.
        `bins` of `occupied` and `free`, from 0 on, have the same without ece. `samples` is their number."""
        occupied, free = list(self.taxonomy.occupied_ids), self.taxonomy.free_id
        either = {"occupied": occupied, "free": [free]}
        return {
            "samples": self.samples,
            "all": self._row(slice(None)),
            **{name: self._row(ids) for name, ids in either.items()},
            "per_range": {band: self._row(occupied, at) for at, band in enumerate(BANDS)},
            "per_class": {self.taxonomy.names[c]: self._row([c]) for c in occupied},
            "bins": {name: self._bins(ids) for name, ids in either.items()},
        }

    def _row(self, ids: Any, band: Any = slice(None)) -> dict[str, Any]:
        cells, right = (part[ids][:, band].reshape(-1, LEVELS).sum(0) for part in (self.cells, self.right))
        return _shares(cells, right) | {"ece": expected_calibration_error(cells, right)}

    def _bins(self, ids: list[int]) -> list[dict[str, Any]]:
        cells, right = (part[ids].sum((0, 1)) for part in (self.cells, self.right))
        bins = bins_of_levels()
        return [_shares(np.where(bins == i, cells, 0), np.where(bins == i, right, 0)) for i in range(BINS)]


def bins_of_levels() -> np.ndarray:
    """The bin, 0..BINS - 1, of each confidence, int64 (LEVELS,); full confidence is in the last bin."""
    return np.minimum(np.arange(LEVELS) * BINS // (LEVELS - 1), BINS - 1)


def expected_calibration_error(cells: np.ndarray, right: np.ndarray) -> float | None:
    """The error in percent, from counts by confidence, (LEVELS,) each; None without cells."""
    off = np.bincount(bins_of_levels(), cells * np.arange(LEVELS) / (LEVELS - 1) - right, minlength=BINS)
    return float(100 * np.abs(off).sum() / cells.sum()) if cells.any() else None


def _shares(cells: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Mean confidence and share right, from counts by confidence, (LEVELS,) each."""
    count = int(cells.sum())
    said = (cells * np.arange(LEVELS)).sum() / (LEVELS - 1)
    shares = {"confidence": said, "right": right.sum()}
    return {"cells": count, **{name: float(100 * n / count) if count else None for name, n in shares.items()}}
