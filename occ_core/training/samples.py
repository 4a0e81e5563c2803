"""What training asks of the samples of any network, however they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from occ_core.training.keyframes import MomentSource
from occ_core.training.moments import Moment


class Samples(Protocol):
    """`Moments` read and decode each anew; `TabulatedMoments` read what is decoded and tabulated already.

    Attributes:
        sources: what they are read from.
        needs: what they hold, of `moments.NEEDS`.
        batch_size: samples in a batch of one process.
        order: number of the random stream of their order.
        counted_cells, counted_pixels: over how many, evenly chosen, classes are counted.
    """

    sources: list[MomentSource]
    needs: frozenset[str]
    order: int
    counted_cells: int
    counted_pixels: int

    @property
    def batch_size(self) -> int: ...

    @property
    def names(self) -> list[str]:
        """Of each moment, unique in its data set."""

    @property
    def labelled(self) -> list[int]:
        """Indices of those that have labels."""

    def __len__(self) -> int: ...

    def batch(self, keys: Sequence[tuple[int, int]]) -> Moment:
        """Samples by (number of the draw, index): one draw is always changed alike."""

    def of(self, kind: str) -> Samples:
        """The same data as samples of a phase, see `models.config.Phase`."""

    def labels(self, index: int) -> np.ndarray:
        """uint8 (X, Y, Z)."""

    def class_map(self, index: int) -> np.ndarray:
        """Classes of pixels, uint8 (N, height, width)."""

    def scene_of(self, index: int) -> object:
        """Which scene a moment is of."""

    def fewest_cameras(self) -> int:
        """Of the smallest rig."""

    def neighbour_gap_s(self) -> float | None:
        """See `Moments.neighbour_gap_s`."""

    def files(self) -> Iterable[Path]:
        """What will be read while the run goes on."""
