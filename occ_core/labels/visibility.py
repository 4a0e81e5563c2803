"""Counts which cells rays pass, which is the only evidence that a cell is free."""

from __future__ import annotations

import numba
import numpy as np

from occ_core.grid import VoxelGrid
from occ_core.traversal import enter_slab, entry_cell


def ray_step_px(focal_px: float, grid: VoxelGrid) -> int:
    """The step in pixels, along both axes, between pixels that cast a ray: two rays a cell at the far face of the
    grid."""
    far_m = float(np.abs([grid.origin_m[:2], grid.upper_m[:2]]).max())
    return max(1, round(focal_px * grid.voxel_size_m / (2 * far_m)))


def add_passes(
    passes: np.ndarray,
    rays: np.ndarray,
    depth_m: np.ndarray,
    casts: np.ndarray,
    ego_from_cam: np.ndarray,
    grid: VoxelGrid,
    weight: int,
) -> None:
    """Count the rays that pass each cell: those that enter the cell and leave it again before their end.

    A ray that starts in a cell counts there.

    Args:
        passes: uint32 (X, Y, Z), added to.
        rays: float32 (h, w, 2), x and y of viewing directions with z = 1 in the camera frame.
        depth_m: float32 (h, w), where each ray ends, along the optical axis; inf: it does not.
        casts: bool (h, w), pixels that have a ray.
        ego_from_cam: (4, 4).
        weight: what each ray counts: the number of pixels that it stands for.
    """
    cam = np.ascontiguousarray(ego_from_cam[:3], dtype=np.float64)
    start = (cam[:, 3] - grid.origin_m) / grid.voxel_size_m
    turn = np.ascontiguousarray(cam[:, :3] / grid.voxel_size_m)
    rays, depth_m, casts = (np.ascontiguousarray(array) for array in (rays, depth_m, casts))
    _cast(passes.reshape(-1), np.array(grid.shape), rays, depth_m, casts, start, turn, np.uint32(weight))


@numba.njit(cache=True, nogil=True)
def _cast(passes, shape, rays, depth, casts, start, turn, weight):
    """Traversal after Amanatides and Woo (1987), in cells; the ray's parameter is the depth in metres."""
    nx, ny, nz = shape[0], shape[1], shape[2]
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            if not casts[row, column]:
                continue
            end = np.float64(depth[row, column])
            rx, ry = np.float64(rays[row, column, 0]), np.float64(rays[row, column, 1])
            dx = turn[0, 0] * rx + turn[0, 1] * ry + turn[0, 2]
            dy = turn[1, 0] * rx + turn[1, 1] * ry + turn[1, 2]
            dz = turn[2, 0] * rx + turn[2, 1] * ry + turn[2, 2]
            ax = 1 / abs(dx) if dx != 0 else np.inf
            ay = 1 / abs(dy) if dy != 0 else np.inf
            az = 1 / abs(dz) if dz != 0 else np.inf
            enter = max(enter_slab(start[0], dx, nx), enter_slab(start[1], dy, ny), enter_slab(start[2], dz, nz))
            if enter >= end:
                continue
            i = entry_cell(start[0] + enter * dx, dx, nx)
            j = entry_cell(start[1] + enter * dy, dy, ny)
            k = entry_cell(start[2] + enter * dz, dz, nz)
            if i < 0 or j < 0 or k < 0:
                continue
            tx = ((i + 1 if dx > 0 else i) - start[0]) / dx if dx != 0 else np.inf
            ty = ((j + 1 if dy > 0 else j) - start[1]) / dy if dy != 0 else np.inf
            tz = ((k + 1 if dz > 0 else k) - start[2]) / dz if dz != 0 else np.inf
            left_x, left_y = nx - i if dx > 0 else i + 1, ny - j if dy > 0 else j + 1
            left_z = nz - k if dz > 0 else k + 1
            step_x, step_y, step_z = ny * nz if dx > 0 else -ny * nz, nz if dy > 0 else -nz, 1 if dz > 0 else -1
            cell = (i * ny + j) * nz + k
            while True:
                if tx <= ty and tx <= tz:
                    if tx > end:
                        break
                    passes[cell] += weight
                    left_x -= 1
                    if left_x == 0:
                        break
                    cell += step_x
                    tx += ax
                elif ty <= tz:
                    if ty > end:
                        break
                    passes[cell] += weight
                    left_y -= 1
                    if left_y == 0:
                        break
                    cell += step_y
                    ty += ay
                else:
                    if tz > end:
                        break
                    passes[cell] += weight
                    left_z -= 1
                    if left_z == 0:
                        break
                    cell += step_z
                    tz += az
