"""Layouts of our point clouds as numpy structured types; no ROS import, so that bag writer and nodes share them."""

from __future__ import annotations

import numpy as np

from occ_core.grid import VoxelGrid
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import Taxonomy

LIDAR_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("ring", "<u2")])
"""A LiDAR return in the sensor frame."""

VOXEL_POINT = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("confidence", "<f4"), ("label", "u1")]
)
"""Centre of an occupied voxel; `rgb` is 0x00RRGGBB as RViz reads it."""

TRUTH_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "u1"), ("mask", "u1")])
"""Centre of a voxel that is occupied or observed; mask bit 0: seen by a camera, bit 1: by LiDAR.
A voxel that is not listed is free and unobserved, so the cloud is the whole Occ3D label."""

PLACE_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
"""A place and nothing else."""

COLUMN_POINT = np.dtype(
    {
        "names": ["x", "y", "z", "confidence", "label"],
        "formats": ["<f4", "<f4", "<f4", "<f4", "u1"],
        "offsets": [0, 4, 8, 12, 16],
        "itemsize": 20,
    }
)
"""What a column of voxels is to who drives there; of one that nobody observed x, y and z are not a number."""

# numpy type -> sensor_msgs/PointField datatype constant
POINT_FIELD_TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def fields_of(layout: np.dtype) -> list[tuple[str, int, int]]:
    """For each field (name, byte offset, sensor_msgs/PointField datatype)."""
    assert layout.fields is not None
    return [(name, field[1], POINT_FIELD_TYPES[field[0].str[1:]]) for name, field in layout.fields.items()]


def voxel_points(occupancy: Occupancy, cells: np.ndarray | None = None) -> np.ndarray:
    """Occupied voxels as VOXEL_POINT (N,).

    Args:
        cells: bool (X, Y, Z), only these; None: all that are occupied.
    """
    cell = np.flatnonzero(occupancy.occupied if cells is None else cells)  # six times faster than nonzero
    labels = occupancy.labels.ravel()[cell]
    points = _centers(occupancy.grid, np.unravel_index(cell, occupancy.grid.shape), VOXEL_POINT)
    red, green, blue = occupancy.taxonomy.palette.astype(np.uint32).T
    points["rgb"] = (red << 16 | green << 8 | blue)[labels]
    points["confidence"] = 1.0 if occupancy.confidence is None else occupancy.confidence.ravel()[cell]
    points["label"] = labels
    return points


def truth_points(occupancy: Occupancy) -> np.ndarray:
    """Occupied or observed voxels as TRUTH_POINT (N,)."""
    mask = occupancy.observed.astype(np.uint8)
    if occupancy.mask_lidar is not None:
        mask |= np.where(occupancy.mask_lidar, np.uint8(2), np.uint8(0))
    index = np.nonzero((mask > 0) | (occupancy.labels != occupancy.taxonomy.free_id))
    points = _centers(occupancy.grid, index, TRUTH_POINT)
    points["label"] = occupancy.labels[index]
    points["mask"] = mask[index]
    return points


def occupancy_of(points: np.ndarray, grid: VoxelGrid, taxonomy: Taxonomy) -> Occupancy:
    """Rebuild the grid that `voxel_points` or `truth_points` listed; points outside the grid are dropped.

    From VOXEL_POINT the whole grid counts as observed: that cloud lists what is occupied and nothing else. Its
    confidence is 0 in cells that are not listed.
    """
    xyz = np.stack([points["x"], points["y"], points["z"]], axis=-1)
    (ix, iy, iz), inside = (array.T for array in grid.index_of(xyz))
    index = ix[inside], iy[inside], iz[inside]
    labels = np.full(grid.shape, taxonomy.free_id, dtype=np.uint8)
    labels[index] = points["label"][inside]
    if "mask" not in (points.dtype.names or ()):
        confidence = None
        if "confidence" in (points.dtype.names or ()):
            confidence = np.zeros(grid.shape, dtype=np.float32)
            confidence[index] = points["confidence"][inside]
        return Occupancy(grid, taxonomy, labels, np.ones(grid.shape, dtype=bool), confidence)
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[index] = points["mask"][inside]
    return Occupancy(grid, taxonomy, labels, mask & 1 > 0, mask_lidar=mask & 2 > 0)


def _centers(grid: VoxelGrid, index: tuple[np.ndarray, ...], layout: np.dtype) -> np.ndarray:
    points = np.zeros(len(index[0]), dtype=layout)
    for name, origin, cells in zip("xyz", grid.origin_m, index, strict=True):
        points[name] = origin + (cells + 0.5) * grid.voxel_size_m
    return points
