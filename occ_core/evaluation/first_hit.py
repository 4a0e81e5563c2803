"""Finds what rays meet first in a grid, and where they enter and leave that cell. It needs numba; `first_cells_plain`
is its plain twin."""

from __future__ import annotations

import numba
import numpy as np

from occ_core.grid import VoxelGrid
from occ_core.traversal import enter_slab, entry_cell


def first_hits(
    labels: np.ndarray, free_id: int, grid: VoxelGrid, origins_m: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The class of the first cell on each ray that is not free, and where the ray leaves it; see `first_cells`."""
    classes, _, leave_m = first_cells(labels, free_id, grid, origins_m, directions)
    return classes, leave_m


def first_cells(
    labels: np.ndarray, free_id: int, grid: VoxelGrid, origins_m: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the first cell on each ray that is not free.

    Args:
        labels: uint8 (X, Y, Z).
        free_id: the class that rays pass.
        origins_m: float (R, 3), where the rays start, in the grid's frame, inside the grid or not.
        directions: float (R, 3), of unit length.

    Returns:
        classes uint8 (R,), of that cell, `free_id` where there is none; enter_m, leave_m float64 (R,), the distances at
        which the ray enters that cell, 0 from within, and leaves it, inf where there is none.
    """
    starts = (np.asarray(origins_m, dtype=np.float64) - grid.origin_m) / grid.voxel_size_m
    classes = np.full(len(starts), free_id, dtype=np.uint8)
    span = np.full((len(starts), 2), np.inf)
    slopes = np.ascontiguousarray(directions, dtype=np.float64)
    _walk(np.ascontiguousarray(labels).reshape(-1), free_id, np.array(grid.shape), starts, slopes, classes, span)
    enter_m, leave_m = span.T * grid.voxel_size_m
    return classes, enter_m, leave_m


@numba.njit(cache=True, nogil=True)
def _walk(labels, free_id, shape, starts, slopes, classes, span):
    """Traverse cells after Amanatides and Woo (1987). Through an edge or a corner z goes first, then y."""
    nx, ny, nz = shape[0], shape[1], shape[2]
    for ray in range(len(starts)):
        x, y, z = starts[ray, 0], starts[ray, 1], starts[ray, 2]
        dx, dy, dz = slopes[ray, 0], slopes[ray, 1], slopes[ray, 2]
        enter = max(enter_slab(x, dx, nx), enter_slab(y, dy, ny), enter_slab(z, dz, nz))
        if enter == np.inf:
            continue
        i = entry_cell(x + enter * dx, dx, nx)
        j = entry_cell(y + enter * dy, dy, ny)
        k = entry_cell(z + enter * dz, dz, nz)
        if i < 0 or j < 0 or k < 0:
            continue
        ax = 1 / abs(dx) if dx != 0 else np.inf
        ay = 1 / abs(dy) if dy != 0 else np.inf
        az = 1 / abs(dz) if dz != 0 else np.inf
        tx = ((i + 1 if dx > 0 else i) - x) / dx if dx != 0 else np.inf
        ty = ((j + 1 if dy > 0 else j) - y) / dy if dy != 0 else np.inf
        tz = ((k + 1 if dz > 0 else k) - z) / dz if dz != 0 else np.inf
        left_x, left_y = nx - i if dx > 0 else i + 1, ny - j if dy > 0 else j + 1
        left_z = nz - k if dz > 0 else k + 1
        step_x, step_y, step_z = ny * nz if dx > 0 else -ny * nz, nz if dy > 0 else -nz, 1 if dz > 0 else -1
        cell = (i * ny + j) * nz + k
        while labels[cell] == free_id:
            if tz <= tx and tz <= ty:
                left_z -= 1
                if left_z == 0:
                    break
                cell += step_z
                enter = tz
                tz += az
            elif ty <= tx:
                left_y -= 1
                if left_y == 0:
                    break
                cell += step_y
                enter = ty
                ty += ay
            else:
                left_x -= 1
                if left_x == 0:
                    break
                cell += step_x
                enter = tx
                tx += ax
        if labels[cell] != free_id:
            classes[ray] = labels[cell]
            span[ray, 0], span[ray, 1] = enter, min(tx, ty, tz)


def first_cells_plain(
    labels: np.ndarray, free_id: int, grid: VoxelGrid, origins_m: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same as `first_cells`, by sorting where each ray crosses the planes between cells. It is slow."""
    classes = np.full(len(origins_m), free_id, dtype=np.uint8)
    enter_m, leave_m = np.full((2, len(origins_m)), np.inf)
    for ray, (origin, direction) in enumerate(zip(origins_m, directions, strict=True)):
        crossings = [np.zeros(1)]
        for axis in range(3):
            planes = grid.origin_m[axis] + grid.voxel_size_m * np.arange(grid.shape[axis] + 1)
            if direction[axis] != 0:
                crossings.append((planes - origin[axis]) / direction[axis])
        at = np.unique(np.concatenate(crossings))
        at = at[at >= 0]
        middle = origin + (at[1:, None] + at[:-1, None]) / 2 * direction
        index, inside = grid.index_of(middle)
        met = np.flatnonzero(inside & (labels[tuple(index.T)] != free_id))
        if len(met):
            classes[ray] = labels[tuple(index[met[0]])]
            enter_m[ray], leave_m[ray] = at[met[0] : met[0] + 2]
    return classes, enter_m, leave_m
