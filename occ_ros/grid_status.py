"""What the voxels of an answer are cells of, said in /diagnostics and read from there."""

from __future__ import annotations

from collections.abc import Mapping

from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid
from occ_core.models.config import require_feasible
from occ_core.taxonomy import TAXONOMIES, Taxonomy


def grid_values(grid: VoxelGrid, taxonomy: Taxonomy) -> dict[str, str]:
    """What the voxels of ~/occupancy are cells of, as values of the model's status."""
    return {
        "grid_origin_m": " ".join(map(str, grid.origin_m)),
        "voxel_size_m": str(grid.voxel_size_m),
        "grid_shape": " ".join(map(str, grid.shape)),
        "taxonomy": taxonomy.name,
    }


def grid_of(values: Mapping[str, str]) -> tuple[VoxelGrid, Taxonomy]:
    """What `grid_values` said.

    Raises:
        InvalidInput: it says no grid, or one that is too large.
    """
    try:
        origin, shape = (tuple(values[name].split()) for name in ("grid_origin_m", "grid_shape"))
        (x, y, z), (i, j, k) = map(float, origin), map(int, shape)
        grid = VoxelGrid((x, y, z), float(values["voxel_size_m"]), (i, j, k))
        taxonomy = TAXONOMIES[values["taxonomy"]]
    except (KeyError, ValueError) as error:
        raise InvalidInput(
            f"the node's diagnostics tell no grid of voxels ({type(error).__name__}: {error})"
        ) from error
    require_feasible(grid)
    return grid, taxonomy
