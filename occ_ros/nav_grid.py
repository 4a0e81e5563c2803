"""nav_msgs/OccupancyGrid for Nav2: a height band seen from above, each class at its cost."""

from __future__ import annotations

from array import array

import numpy as np
from nav_msgs.msg import OccupancyGrid

from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid
from occ_core.mapping.costs import column_costs, column_costs_in_world
from occ_core.occupancy import Occupancy
from occ_core.transforms import TransformTree
from occ_ros.messages import header_of
from occ_ros.runtime import Parameter

GRID_PARAMETERS = (
    Parameter("grid_frame", "", "Frame of ~/grid: base_frame (also if empty), or a fixed one such as odom or map."),
    Parameter(
        "grid_class_costs", [""], "Costs in ~/grid as 'class:cost', 0 (free) .. 100 (obstacle), such as terrain:30; "
        "unless named, ground costs 0 and everything else 100.", dynamic=True,
    ),
)  # fmt: skip


def grid_message(
    costs: np.ndarray,  # int8 [X, Y]: -1 unknown, 0 free .. 100 obstacle
    grid: VoxelGrid,
    ground_z_m: float,
    stamp_ns: int,
    frame_id: str,
) -> OccupancyGrid:
    """Columns of `grid` as a message; its axes are those of `frame_id`, the orientation of its origin is never turned.

    Args:
        ground_z_m: height to draw it at; planners do not use it.

    Raises:
        InvalidInput: one cost a column is needed.
    """
    if costs.shape != grid.shape[:2] or costs.dtype != np.int8:
        raise InvalidInput(f"costs must be int8 {grid.shape[:2]}, got {costs.dtype} {costs.shape}")
    message = OccupancyGrid(header=header_of(stamp_ns, frame_id))
    message.info.map_load_time = message.header.stamp
    message.info.resolution = grid.voxel_size_m
    message.info.width, message.info.height = grid.shape[0], grid.shape[1]
    origin = message.info.origin
    origin.position.x, origin.position.y, origin.position.z = *grid.origin_m[:2], ground_z_m
    origin.orientation.w = 1.0
    data = array("b")
    data.frombytes(np.ascontiguousarray(costs.T).data)  # row-major: x runs first
    message.data = data
    return message


def answer_grid(
    occupancy: Occupancy,
    stamp_ns: int,
    base_frame: str,
    grid_frame: str,
    tree: TransformTree,
    band_m: tuple[float, float],
    costs: np.ndarray,  # int8 [256], see `class_costs`
) -> OccupancyGrid:
    """One answer seen from above, in its own frame or along the axes of a fixed one.

    Args:
        grid_frame: empty: `base_frame`.
        band_m: heights above the origin of `base_frame`.

    Raises:
        MissingTransform: from `base_frame` to `grid_frame` at the stamp.
        InvalidInput: no cell lies in the band.
    """
    if grid_frame.lstrip("/") in ("", base_frame.lstrip("/")):
        return grid_message(column_costs(occupancy, band_m, costs), occupancy.grid, 0.0, stamp_ns, base_frame)
    world_from_base = tree.lookup(grid_frame, base_frame, stamp_ns)
    cells, grid = column_costs_in_world(occupancy, world_from_base, band_m, costs)
    return grid_message(cells, grid, float(world_from_base[2, 3]), stamp_ns, grid_frame)
