"""What a 2D planner gets: one cost a column of a height band."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.geometry import apply
from occ_core.grid import VoxelGrid
from occ_core.mapping.lattice import resampled
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import TAXONOMIES, Taxonomy

UNKNOWN, OBSTACLE = -1, 100  # as nav_msgs/OccupancyGrid has them; 0 is free


def class_costs(taxonomy: Taxonomy, entries: Iterable[str] = ()) -> np.ndarray:
    """int8 (256,): cost of each class id. Ground is 0, everything else 100, where `entries` do not say otherwise.

    Args:
        entries: "class:cost", cost 0..100; classes of other known taxonomies are ignored, so that one list serves all.

    Raises:
        InvalidInput: naming the entry.
    """
    costs = np.full(256, OBSTACLE, dtype=np.int8)
    costs[[taxonomy.free_id, *taxonomy.ground_ids]] = 0
    known = {name for each in TAXONOMIES.values() for name in each.names}
    for entry in entries:
        name, _, text = entry.partition(":")
        name, text = name.strip(), text.strip()
        if not entry.strip():
            continue  # ROS has no empty list of texts
        if name not in known | set(taxonomy.names) or name == taxonomy.names[taxonomy.free_id]:
            raise InvalidInput(f"grid class cost '{entry}': no class '{name}'; known: {', '.join(taxonomy.names)}")
        if not text.isascii() or not text.isdigit() or int(text) > OBSTACLE:
            raise InvalidInput(f"grid class cost '{entry}' must be 'class:cost' with a cost of 0..{OBSTACLE}")
        if name in taxonomy.names:
            costs[taxonomy.id_of(name)] = int(text)
    return costs


def levels_in_band(grid: VoxelGrid, band_m: tuple[float, float]) -> slice:
    """The levels of cells whose centres are in a band of heights.

    Raises:
        InvalidInput: there is none.
    """
    z_m = grid.origin_m[2] + (np.arange(grid.shape[2]) + 0.5) * grid.voxel_size_m
    levels = np.flatnonzero((z_m >= band_m[0]) & (z_m <= band_m[1]))
    if not len(levels):
        low, high = (f"{value:.2f}" for value in band_m)
        raise InvalidInput(f"grid band {low}..{high} m holds no voxel centre of {z_m[0]:.2f}..{z_m[-1]:.2f} m")
    return slice(int(levels[0]), int(levels[-1]) + 1)


def column_costs(
    occupancy: Occupancy,
    band_m: tuple[float, float],
    costs: np.ndarray,  # int8 [256], see `class_costs`
) -> np.ndarray:
    """int8 (X, Y): the highest cost of what was observed in the band; -1 where nothing of it was.

    Raises:
        InvalidInput: no cell lies in the band.
    """
    levels = levels_in_band(occupancy.grid, band_m)
    cell_costs = np.where(occupancy.observed[..., levels], costs[occupancy.labels[..., levels]], np.int8(UNKNOWN))
    return cell_costs.max(axis=2)


def column_costs_in_world(
    occupancy: Occupancy,
    world_from_ego: np.ndarray,  # [4, 4]
    band_m: tuple[float, float],  # above the ego frame's origin
    costs: np.ndarray,  # int8 [256]
) -> tuple[np.ndarray, VoxelGrid]:
    """Like `column_costs`, on a grid along the axes of the world.

    Nav2's costmaps take the position of a grid's origin but not its rotation, and want it on a whole multiple of the
    resolution; so the answer is sampled anew, each cell from the one that holds its centre.

    Returns:
        costs int8 (X, Y), and their grid in the world frame; of its height only the band.
    """
    world_grid = _band_around(occupancy.grid, world_from_ego, levels_in_band(occupancy.grid, band_m))
    in_world = resampled(occupancy, world_from_ego, world_grid)
    return column_costs(in_world, (-np.inf, np.inf), costs), world_grid


def _band_around(grid: VoxelGrid, world_from_ego: np.ndarray, levels: slice) -> VoxelGrid:
    """Columns at whole multiples of the voxel size that hold the turned grid; its levels, as high over the robot."""
    ends = np.stack([grid.origin_m, grid.upper_m])
    corners_ego_m = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(8, 3)
    corners_m = apply(world_from_ego, corners_ego_m)
    first = np.floor(corners_m.min(axis=0) / grid.voxel_size_m + 1e-6)
    last = np.ceil(corners_m.max(axis=0) / grid.voxel_size_m - 1e-6)
    x, y, _ = (first * grid.voxel_size_m).tolist()
    z = float(world_from_ego[2, 3]) + grid.origin_m[2] + levels.start * grid.voxel_size_m
    nx, ny, _ = (int(n) for n in last - first)
    return VoxelGrid((x, y, z), grid.voxel_size_m, (nx, ny, levels.stop - levels.start))
