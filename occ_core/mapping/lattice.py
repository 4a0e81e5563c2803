"""Maps the cells of one grid to those of another one that is moved and turned against it: each to the cell that holds
its centre."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from occ_core.geometry import apply, inverse
from occ_core.grid import VoxelGrid
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import UNLABELED

FRACTION_BITS = 20


class Lattice(NamedTuple):
    """Place of a grid's cell centres in the seen grid: the sum of one row of each table is the place of a cell.

    A rigid transform is affine, so that three small tables hold it for all cells. Whole numbers, in 2**-20 of a seen
    cell, shift to its index faster than floats round, and the same on every machine.
    """

    x: np.ndarray  # int64 [X, 3]
    y: np.ndarray  # int64 [Y, 3]
    z: np.ndarray  # int64 [Z, 3]


def lattice_of(
    seen_grid: VoxelGrid,
    ego_from_world: np.ndarray,  # [4, 4]
    world_grid: VoxelGrid,
) -> Lattice:
    """Compute where the cells of `world_grid` lie in `seen_grid`, which is in the ego frame."""
    ratio = world_grid.voxel_size_m / seen_grid.voxel_size_m
    tables = [np.arange(n)[:, None] * ratio * ego_from_world[:3, axis] for axis, n in enumerate(world_grid.shape)]
    first_ego_m = apply(ego_from_world, np.array(world_grid.origin_m) + world_grid.voxel_size_m / 2)
    tables[0] = tables[0] + (first_ego_m - seen_grid.origin_m) / seen_grid.voxel_size_m
    return Lattice(*(np.round(table * (1 << FRACTION_BITS)).astype(np.int64) for table in tables))


def seen_of(occupancy: Occupancy) -> np.ndarray:
    """The class ids, uint8 (X, Y, Z), UNLABELED where nobody looked."""
    return np.where(occupancy.observed, occupancy.labels, np.uint8(UNLABELED))


def sample(
    seen: np.ndarray,  # uint8 [A, B, C]
    lattice: Lattice,
) -> np.ndarray:
    """For each cell the value of the seen cell that holds its centre, uint8 (X, Y, Z); UNLABELED outside."""
    inside = np.ones((len(lattice.x), len(lattice.y), len(lattice.z)), dtype=bool)
    index = []
    for axis, size in enumerate(seen.shape):
        at = (lattice.x[:, None, axis] + lattice.y[None, :, axis])[:, :, None] + lattice.z[:, axis]
        at >>= FRACTION_BITS
        inside &= (at >= 0) & (at < size)
        index.append(np.clip(at, 0, size - 1))
    return np.where(inside, seen[tuple(index)], np.uint8(UNLABELED))


def resampled(
    occupancy: Occupancy,
    world_from_ego: np.ndarray,  # [4, 4]
    world_grid: VoxelGrid,
) -> Occupancy:
    """One answer on a grid of the world frame; cells that its own grid does not reach are not observed."""
    found = sample(seen_of(occupancy), lattice_of(occupancy.grid, inverse(world_from_ego), world_grid))
    observed = found != UNLABELED
    free_id = np.uint8(occupancy.taxonomy.free_id)
    return Occupancy(world_grid, occupancy.taxonomy, np.where(observed, found, free_id), observed)
