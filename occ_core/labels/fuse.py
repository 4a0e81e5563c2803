"""Fuses the evidence of several frames into one label: votes, passes, and the state of each cell."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from occ_core.geometry import inverse
from occ_core.grid import VoxelGrid
from occ_core.labels.lift import FrameEvidence
from occ_core.labels.recipes import Recipe
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import Taxonomy

FAR_M = 1000.0  # points farther than this are not drawn onto the grid's faces by a recipe that clamps


class Fuser:
    """Fuses the evidence of frames in the grid of one of them; it reuses its arrays (about 110 MB for Occ3D's grid)."""

    def __init__(self, recipe: Recipe, grid: VoxelGrid, taxonomy: Taxonomy):
        self.recipe, self.grid, self.taxonomy = recipe, grid, taxonomy
        self.moving = np.zeros(len(taxonomy), dtype=np.bool_)
        self.moving[list(taxonomy.dynamic_ids)] = True
        self.priority = np.array([name in recipe.priority for name in taxonomy.names])
        self._votes = np.zeros((grid.cells, len(taxonomy)), dtype=np.uint32)
        self._own_votes = np.zeros((grid.cells, len(taxonomy)), dtype=np.uint32)
        self._passes = np.zeros(grid.shape, dtype=np.uint32)

    def fuse(self, own: FrameEvidence, others: Sequence[FrameEvidence]) -> tuple[Occupancy, np.ndarray]:
        """Make the label of `own` with the help of `others`.

        Returns:
            Occupancy in the ego frame of `own`, with confidence: of an occupied cell, the winning class's points per
            point and pass; of a free one, passes per point and pass. And votes uint16 (X, Y, Z), points behind the
            winning class, 0 in cells that are not occupied.
        """
        self._votes[:] = 0
        self._own_votes[:] = 0
        self._passes[:] = own.passes
        everything = np.ones(len(self.taxonomy), dtype=np.bool_)
        self._add_votes(own, np.eye(4), everything, self._own_votes)
        self._votes += self._own_votes
        wanted = everything if self.recipe.moving == "checked" else ~self.moving
        for evidence in others:
            own_from_that = inverse(own.world_from_ego) @ evidence.world_from_ego
            self._add_votes(evidence, own_from_that, wanted, self._votes)
            add_resampled(self._passes, evidence.passes, inverse(own_from_that), self.grid)
        return self._decide(own.passes)

    def _add_votes(
        self, evidence: FrameEvidence, own_from_that: np.ndarray, wanted: np.ndarray, votes: np.ndarray
    ) -> None:
        _scatter(
            evidence.points_ego_m, evidence.class_id, evidence.count, np.ascontiguousarray(own_from_that[:3]),
            np.array(self.grid.origin_m), self.grid.voxel_size_m, np.array(self.grid.shape), wanted,
            self.recipe.clamp, votes,
        )  # fmt: skip

    def _decide(self, own_passes: np.ndarray) -> tuple[Occupancy, np.ndarray]:
        shape, recipe = self.grid.shape, self.recipe
        label = np.full(self.grid.cells, self.taxonomy.free_id, dtype=np.uint8)
        observed = np.zeros(self.grid.cells, dtype=np.bool_)
        confidence = np.zeros(self.grid.cells, dtype=np.float32)
        points = np.zeros(self.grid.cells, dtype=np.uint16)
        decide(
            self._votes, self._own_votes, self._passes.reshape(-1), own_passes.reshape(-1), self.moving, self.priority,
            recipe.moving == "checked", recipe.min_points, recipe.min_hit_share, recipe.free_hit_share,
            recipe.priority_share, label, observed, confidence, points,
        )  # fmt: skip
        occupancy = Occupancy(
            self.grid, self.taxonomy, label.reshape(shape), observed.reshape(shape), confidence.reshape(shape)
        )
        return occupancy, points.reshape(shape)


@numba.njit(cache=True, nogil=True)
def _scatter(points, class_id, count, own_from_that, origin, size, shape, wanted, clamp, votes):
    nx, ny, nz = shape[0], shape[1], shape[2]
    m = own_from_that
    for n in range(len(points)):
        what = class_id[n]
        if not wanted[what]:
            continue
        px, py, pz = np.float64(points[n, 0]), np.float64(points[n, 1]), np.float64(points[n, 2])
        x = (m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3] - origin[0]) / size
        y = (m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3] - origin[1]) / size
        z = (m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3] - origin[2]) / size
        if clamp and max(abs(x), abs(y), abs(z)) * size < FAR_M:
            x, y, z = min(max(x, 0.0), nx - 0.5), min(max(y, 0.0), ny - 0.5), min(max(z, 0.0), nz - 0.5)
        if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
            votes[(int(x) * ny + int(y)) * nz + int(z), what] += count[n]


def add_resampled(passes: np.ndarray, theirs: np.ndarray, that_from_own: np.ndarray, grid: VoxelGrid) -> None:
    """Add to each cell what another frame's grid holds at the cell's centre; nothing where the centre lies outside.

    Args:
        passes: uint32 (X, Y, Z), added to.
        theirs: uint16 (X, Y, Z), of the same grid in the other frame's ego frame.
        that_from_own: (4, 4).
    """
    # In units of cells, from indices to indices: the loop below is then three additions a cell.
    turn = that_from_own[:3, :3]
    center = np.array(grid.origin_m) + 0.5 * grid.voxel_size_m
    first = (turn @ center + that_from_own[:3, 3] - grid.origin_m) / grid.voxel_size_m
    _resample(passes, theirs, first, np.ascontiguousarray(turn))


@numba.njit(cache=True, nogil=True)
def _resample(passes, theirs, first, turn):
    nx, ny, nz = passes.shape
    for i in range(nx):
        for j in range(ny):
            x = first[0] + i * turn[0, 0] + j * turn[0, 1]
            y = first[1] + i * turn[1, 0] + j * turn[1, 1]
            z = first[2] + i * turn[2, 0] + j * turn[2, 1]
            # The column is near upright: both of its ends outside on one side means that all of it is.
            x1, y1, z1 = x + nz * turn[0, 2], y + nz * turn[1, 2], z + nz * turn[2, 2]
            if max(x, x1) < 0 or max(y, y1) < 0 or max(z, z1) < 0:
                continue
            if min(x, x1) >= nx or min(y, y1) >= ny or min(z, z1) >= nz:
                continue
            for k in range(nz):
                u, v, w = x + k * turn[0, 2], y + k * turn[1, 2], z + k * turn[2, 2]
                if 0 <= u < nx and 0 <= v < ny and 0 <= w < nz:
                    passes[i, j, k] += theirs[int(u), int(v), int(w)]


@numba.njit(cache=True, nogil=True)
def decide(
    votes, own_votes, passes, own_passes, moving, priority, checked, min_points, min_share, free_share, priority_share,
    label, observed, confidence, points,
):  # fmt: skip
    """Decide the state of each cell, into `label`, `observed`, `confidence`, `points` (all (cells,), label preset to
    free).

    1. A moving class takes the cell if the frame's own points of moving classes are enough, hold against the
       frame's own passes, and are no fewer than its own static ones: other frames saw the place without the object.
    2. Else the points of all frames must be enough and hold against the passes of all frames. Moving classes take
       part only where `checked`.
    3. Else it is free if rays passed it and points hardly contradict; else nobody knows.
    The class is that of most points; one of `priority` wins with `priority_share` of them. Ties go to the lower id.
    """
    classes = votes.shape[1]
    for c in range(votes.shape[0]):
        total, own_moving, own_static, window = 0, 0, 0, 0
        for n in range(classes):
            total += votes[c, n]
            if checked or not moving[n]:
                window += votes[c, n]
            if moving[n]:
                own_moving += own_votes[c, n]
            else:
                own_static += own_votes[c, n]
        if total == 0:
            if passes[c] > 0:
                observed[c], confidence[c] = True, 1.0
            continue
        winner, most = -1, 0
        seen = own_moving + own_passes[c]
        if own_moving >= max(min_points, own_static) and own_moving >= min_share * seen:
            winner, most = _vote(own_votes[c], moving, priority, priority_share * own_moving)
        else:
            seen = window + passes[c]
            if window >= min_points and window >= min_share * seen:
                used = np.ones(classes, np.bool_) if checked else ~moving
                winner, most = _vote(votes[c], used, priority, priority_share * window)
        if winner >= 0:
            label[c], observed[c], points[c] = winner, True, min(most, 65535)
            confidence[c] = most / seen
        elif passes[c] > 0 and total <= free_share * (total + passes[c]):
            observed[c], confidence[c] = True, passes[c] / (total + passes[c])


@numba.njit(cache=True, nogil=True)
def _vote(votes, used, priority, enough):
    """The winning class among those `used`, and its votes."""
    best, first = -1, -1
    for n in range(len(votes)):
        if used[n] and votes[n] > 0:
            if best < 0 or votes[n] > votes[best]:
                best = n
            if priority[n] and votes[n] >= enough and (first < 0 or votes[n] > votes[first]):
                first = n
    winner = first if first >= 0 else best
    return winner, votes[winner]
