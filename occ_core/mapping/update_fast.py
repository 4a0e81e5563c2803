"""`update_plain` in one pass over the map, compiled by numba; it holds no lock of Python's while it runs."""

from __future__ import annotations

import numba
import numpy as np

from occ_core.mapping.lattice import FRACTION_BITS, Lattice
from occ_core.mapping.update import MapCells, Step
from occ_core.taxonomy import UNLABELED


def update_fast(cells: MapCells, seen: np.ndarray, lattice: Lattice, is_dynamic: np.ndarray, step: Step) -> None:
    """The same as `update_plain`, to the last bit."""
    floats = np.array(step[:7], dtype=np.float32)
    low, high = lattice.z.min(axis=0), lattice.z.max(axis=0)
    _update(*cells, seen, *lattice, low, high, is_dynamic, floats, step.max_votes, step.free_id)


@numba.njit(cache=True, nogil=True)
def _update(log_odds, label, votes, seen, at_x, at_y, at_z, low, high, is_dynamic, floats, max_votes, free_id):
    hit, miss, dynamic_weight, lowest, highest, keep, dynamic_keep = floats
    nx, ny, nz = log_odds.shape
    for x in range(nx):
        for y in range(ny):
            u, v, w = at_x[x, 0] + at_y[y, 0], at_x[x, 1] + at_y[y, 1], at_x[x, 2] + at_y[y, 2]
            reached = _reached(u, v, low, high, seen.shape)
            for z in range(nz):
                was = label[x, y, z]
                odds = log_odds[x, y, z]
                if odds != 0:
                    odds *= dynamic_keep if is_dynamic[was] else keep
                    log_odds[x, y, z] = odds
                if not reached:
                    continue
                found = _found(seen, u + at_z[z, 0], v + at_z[z, 1], w + at_z[z, 2])
                if found == UNLABELED:
                    continue
                if found == free_id:
                    odds = max(odds + (miss * dynamic_weight if is_dynamic[was] else miss), lowest)
                    if odds < 0 and was != free_id:
                        votes[x, y, z, :] = 0
                        label[x, y, z] = free_id
                else:
                    odds = min(odds + (hit * dynamic_weight if is_dynamic[found] else hit), highest)
                    label[x, y, z] = _vote(votes[x, y, z], found, was, max_votes, free_id)
                log_odds[x, y, z] = odds


@numba.njit(cache=True, nogil=True, inline="always")
def _reached(u, v, low, high, size):
    """Whether a column can lie in the seen grid at all: most of a map around a robot does not."""
    one = 1 << FRACTION_BITS
    return u + high[0] >= 0 and u + low[0] < size[0] * one and v + high[1] >= 0 and v + low[1] < size[1] * one


@numba.njit(cache=True, nogil=True, inline="always")
def _found(seen, u, v, w):
    i, j, k = u >> FRACTION_BITS, v >> FRACTION_BITS, w >> FRACTION_BITS
    # Seen without its sign a negative number is huge: one comparison for both ends.
    inside = np.uint64(i) < np.uint64(seen.shape[0])
    inside &= np.uint64(j) < np.uint64(seen.shape[1])
    inside &= np.uint64(k) < np.uint64(seen.shape[2])
    return seen[np.uint64(i), np.uint64(j), np.uint64(k)] if inside else np.uint8(UNLABELED)


@numba.njit(cache=True, nogil=True, inline="always")
def _vote(votes, class_id, was, max_votes, free_id):
    """See `update._vote`; returns the label."""
    if votes[class_id] >= max_votes:
        for other in range(len(votes)):
            if other != class_id and votes[other] > 0:
                votes[other] -= 1
    else:
        votes[class_id] += 1
    return class_id if was == free_id or votes[class_id] > votes[was] else was
