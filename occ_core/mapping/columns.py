"""What layers of a planner's costmap take: of each column the cell that decides, and how far the ground is free."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from occ_core.clouds import COLUMN_POINT, PLACE_POINT
from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid
from occ_core.mapping.costs import OBSTACLE, UNKNOWN, levels_in_band
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import UNLABELED

FINEST_M = 0.05  # costmaps are hardly finer, and a cloud has (cell / finest) ** 2 points a column


class Columns(NamedTuple):
    """An answer from above.

    Attributes:
        grid: of the cells.
        level: int16 (X, Y), of the cell that decides; -1: nothing of the column was observed in the band.
        label: uint8 (X, Y), its class, which may be free; UNLABELED.
        confidence: float32 (X, Y), of that class, 0..1; 0 where nothing was observed.
        cost: int8 (X, Y), what ~/grid says: the highest cost of the band, -1 where nothing of it was observed.
    """

    grid: VoxelGrid
    level: np.ndarray
    label: np.ndarray
    confidence: np.ndarray
    cost: np.ndarray

    @property
    def obstacle(self) -> np.ndarray:
        """bool (X, Y): nothing can drive there."""
        return self.cost == OBSTACLE

    @property
    def passable(self) -> np.ndarray:
        """bool (X, Y): observed, and no obstacle."""
        return (self.cost != UNKNOWN) & (self.cost != OBSTACLE)


def columns_of(
    occupancy: Occupancy,
    band_m: tuple[float, float],
    costs: np.ndarray,  # int8 [256], see `costs.class_costs`
) -> Columns:
    """The cell of each column that says what it is to who drives there.

    In the band of heights it is the cell of the highest cost; of equal ones an occupied cell, then the most confident,
    then the lowest. Where the band is free it is the topmost occupied cell beneath it, which is the ground.

    Raises:
        InvalidInput: no cell lies in the band.
    """
    band = levels_in_band(occupancy.grid, band_m)
    confidence = np.ones(occupancy.grid.shape, np.float32) if occupancy.confidence is None else occupancy.confidence
    occupied = occupancy.occupied
    cost = np.where(occupancy.observed, costs[occupancy.labels], np.int8(UNKNOWN))[..., band]
    rank = 4.0 * cost + 2.0 * occupied[..., band] + np.clip(confidence[..., band], 0.0, 1.0)
    level = (rank.argmax(axis=2) + band.start).astype(np.int16)
    beneath = occupied[..., : band.start]
    if beneath.shape[2]:
        topmost = beneath.shape[2] - 1 - beneath[..., ::-1].argmax(axis=2)
        level = np.where(occupied[..., band].any(axis=2) | ~beneath.any(axis=2), level, topmost).astype(np.int16)
    highest = cost.max(axis=2)
    seen = highest != UNKNOWN
    at = np.maximum(level, 0)[..., None].astype(np.intp)
    label = np.take_along_axis(occupancy.labels, at, axis=2)[..., 0]
    sure = np.take_along_axis(confidence, at, axis=2)[..., 0].astype(np.float32)
    return Columns(
        occupancy.grid,
        np.where(seen, level, np.int16(-1)),
        np.where(seen, label, np.uint8(UNLABELED)),
        np.where(seen, sure, np.float32(0)),
        highest,
    )


def points_a_side(voxel_size_m: float, costmap_m: float) -> int:
    """Points along a cell's side so that each cell of a costmap that fine has one; a costmap of 0 m: one.

    Raises:
        InvalidInput: the costmap is finer than FINEST_M.
    """
    if costmap_m == 0:
        return 1
    if not costmap_m >= FINEST_M:
        raise InvalidInput(f"costmap resolution must be 0 (the voxels') or at least {FINEST_M} m, got {costmap_m}")
    return max(1, math.ceil(voxel_size_m / costmap_m - 1e-6))


def column_image(columns: Columns, a_side: int) -> np.ndarray:
    """All columns as COLUMN_POINT (X * a_side, Y * a_side), ego frame: as an image, forward is up and left is left.

    A point of a column of which nothing was observed is not a number, its label UNLABELED.
    """
    grid = columns.grid
    points = np.zeros((grid.shape[0] * a_side, grid.shape[1] * a_side), dtype=COLUMN_POINT)
    fine_m = grid.voxel_size_m / a_side
    points["x"] = (grid.origin_m[0] + (np.arange(points.shape[0]) + 0.5) * fine_m)[:, None]
    points["y"] = (grid.origin_m[1] + (np.arange(points.shape[1]) + 0.5) * fine_m)[None, :]
    z_m = grid.origin_m[2] + (columns.level + 0.5) * grid.voxel_size_m
    for name, values in (("z", z_m), ("confidence", columns.confidence), ("label", columns.label)):
        points[name] = values.repeat(a_side, axis=0).repeat(a_side, axis=1)
    unseen = points["label"] == UNLABELED
    for name in "xyz":
        points[name][unseen] = np.nan
    return points[::-1, ::-1]


def obstacle_points(columns: Columns, a_side: int) -> np.ndarray:
    """Columns that nothing can drive through, as COLUMN_POINT (N,), ego frame."""
    return column_image(columns, a_side)[columns.obstacle.repeat(a_side, axis=0).repeat(a_side, axis=1)[::-1, ::-1]]


def free_ends(columns: Columns, a_side: int, from_m: float, z_m: float) -> np.ndarray:
    """Ends of straight lines from the ego frame's origin that lead through passable columns alone, PLACE_POINT (N,).

    Around the robot its cameras see nothing, so lines begin at `from_m`; one that is not passable there is left out.
    At the grid's far corner they are half a cell of the costmap apart, so that each of its cells is on one.

    Args:
        a_side: cells of the costmap along a column's side.
        z_m: height of the ends, so that they pass a layer's limits of height.
    """
    directions, along_m, column = _lines(columns.grid, a_side, from_m)
    if not column.size:
        return np.zeros(0, dtype=PLACE_POINT)
    free = np.append(columns.passable.ravel(), False)[column]
    steps = np.where(free.all(axis=1), free.shape[1], (~free).argmax(axis=1))
    lines = np.flatnonzero(steps)
    ends = np.empty(len(lines), dtype=PLACE_POINT)
    ends["x"], ends["y"] = (directions[lines] * along_m[steps[lines] - 1, None]).T
    ends["z"] = z_m
    return ends


@functools.lru_cache(maxsize=1)
def _lines(grid: VoxelGrid, a_side: int, from_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions (N, 2) of all lines, distances (S,) along them, and the columns there: int32 (N, S), X * Y outside."""
    far_m = float(np.linalg.norm(np.abs([grid.origin_m[:2], grid.upper_m[:2]]).max(axis=0)))
    angles = np.linspace(0, 2 * np.pi, math.ceil(4 * np.pi * far_m * a_side / grid.voxel_size_m), endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    along_m = np.arange(from_m, far_m, grid.voxel_size_m / 4)
    x, y = (
        np.floor((along_m * directions[:, axis, None] - grid.origin_m[axis]) / grid.voxel_size_m).astype(np.int32)
        for axis in (0, 1)
    )
    inside = (x >= 0) & (x < grid.shape[0]) & (y >= 0) & (y < grid.shape[1])
    return directions, along_m, np.where(inside, x * grid.shape[1] + y, np.int32(grid.shape[0] * grid.shape[1]))
