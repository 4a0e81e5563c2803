"""Finds where a ray enters a grid, for all walks from cell to cell. It needs numba."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, inline="always")
def enter_slab(start, slope, cells):
    """Where along the ray the slab 0..cells begins; 0 from within, inf if it never does."""
    if 0 <= start < cells:
        return 0.0
    if slope == 0:
        return np.inf
    t = (-start if slope > 0 else cells - start) / slope
    return t if t >= 0 else np.inf


@numba.njit(cache=True, nogil=True, inline="always")
def entry_cell(at, slope, cells):
    """Cell of the entry point, which rounding may have put a hair outside the face; -1 where it missed the slab."""
    index = int(np.floor(at))
    if index == cells and slope < 0 and at - cells < 1e-6:
        return cells - 1
    if index == -1 and slope > 0 and at > -1e-6:
        return 0
    return index if 0 <= index < cells else -1
