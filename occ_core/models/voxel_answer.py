"""The answer of a camera network."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class VoxelAnswer(NamedTuple):
    """One byte each of class, confidence and state for every cell, as in EasyOcc nano's `Answer`.

    labels: uint8 [B, X, Y, Z], class ids; a cell that is not observed is labelled free. confidence: uint8, 255 x the
    probability of being occupied (of an occupied cell) or free; 0 where not observed. observed: uint8, 0 or 1.
    """

    labels: Tensor
    confidence: Tensor
    observed: Tensor
