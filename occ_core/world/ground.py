"""The ground: a raster of heights, classes and materials, and its triangle mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from occ_core.errors import InvalidInput
from occ_core.world.solids import Mesh

TILE = 64  # raster steps along one root square of the mesh
MESH_TOLERANCE_M = 0.012


@dataclass(frozen=True, eq=False)
class Ground:
    """Raster over the whole scene, world frame.

    Attributes:
        origin_m: (x, y) of the raster's lower corner; cell (i, j) has its centre at origin + (i + 0.5, j + 0.5) * cell.
        cell_m: edge of a cell.
        height_m: float32 (nx, ny) at cell centres; between them bilinear, beyond the raster its border value.
        class_id: uint8 (nx, ny), Occ3D; a point has the class of the cell it is in.
        material: uint8 (nx, ny), see `occ_core.world.materials`.
    """

    origin_m: tuple[float, float]
    cell_m: float
    height_m: np.ndarray
    class_id: np.ndarray
    material: np.ndarray

    def height_at(self, xy_m: np.ndarray) -> np.ndarray:
        """Heights float64 (N,) at world points (N, 2)."""
        xy = np.ascontiguousarray(np.asarray(xy_m, dtype=np.float64).reshape(-1, 2))
        return _heights(self.height_m, self.origin_m[0], self.origin_m[1], self.cell_m, xy)

    def cell_of(self, xy_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of the cell that each point (N, 2) is in; beyond the raster the nearest cell."""
        ij = np.floor((np.asarray(xy_m, dtype=np.float64).reshape(-1, 2) - self.origin_m) / self.cell_m).astype(
            np.int64
        )
        ij = np.clip(ij, 0, np.array(self.height_m.shape) - 1)
        return ij[:, 0], ij[:, 1]

    def class_at(self, xy_m: np.ndarray) -> np.ndarray:
        """Classes uint8 (N,) at world points (N, 2)."""
        return self.class_id[self.cell_of(xy_m)]

    def material_at(self, xy_m: np.ndarray) -> np.ndarray:
        """Materials uint8 (N,) at world points (N, 2)."""
        return self.material[self.cell_of(xy_m)]

    def poses_on(self, xy_m: np.ndarray, yaw: np.ndarray, length_m: float, width_m: float) -> np.ndarray:
        """World poses (K, 4, 4) of a body whose four corners stand on the ground, at (K, 2), heading (K,)."""
        xy, yaw = np.asarray(xy_m, dtype=np.float64), np.asarray(yaw, dtype=np.float64)
        cos, sin = np.cos(yaw), np.sin(yaw)
        forward, left = np.stack([cos, sin], axis=1), np.stack([-sin, cos], axis=1)
        a, b = forward * length_m / 2, left * width_m / 2
        corners = xy + np.stack([a + b, a - b, b - a, -a - b])
        front_left, front_right, back_left, back_right = self.height_at(corners).reshape(4, -1)
        x_axis = np.column_stack([forward, (front_left + front_right - back_left - back_right) / (2 * length_m)])
        x_axis /= np.linalg.norm(x_axis, axis=1, keepdims=True)
        y_axis = np.column_stack([left, (front_left - front_right + back_left - back_right) / (2 * width_m)])
        z_axis = np.cross(x_axis, y_axis)
        z_axis /= np.linalg.norm(z_axis, axis=1, keepdims=True)
        poses = np.tile(np.eye(4), (len(xy), 1, 1))
        poses[:, :3, :3] = np.stack([x_axis, np.cross(z_axis, x_axis), z_axis], axis=2)
        poses[:, :3, 3] = np.column_stack([xy, (front_left + front_right + back_left + back_right) / 4])
        return poses

    def mesh(self) -> Mesh:
        """Right-triangulated irregular network (Evans, Kirkpatrick, Townsend 2001): few triangles where the ground is
        even, every raster step at kerbs, no cracks; within `MESH_TOLERANCE_M` of the raster's heights at its nodes.
        """
        nx, ny = self.height_m.shape
        if (nx - 1) % TILE or (ny - 1) % TILE:
            raise InvalidInput(f"ground raster must have a multiple of {TILE} plus 1 cells a side, got {nx} x {ny}")
        triangles = _triangulate(self.height_m.astype(np.float64), MESH_TOLERANCE_M)
        nodes, faces = np.unique(triangles.reshape(-1), return_inverse=True)
        i, j = np.divmod(nodes, ny)
        xy = np.array(self.origin_m) + (np.stack([i, j], axis=1) + 0.5) * self.cell_m
        vertices = np.column_stack([xy, self.height_m[i, j]]).astype(np.float32)
        return Mesh(vertices, faces.reshape(-1, 3).astype(np.int32), np.full(len(triangles), -1, np.int32))


def _triangulate(height: np.ndarray, tolerance: float) -> np.ndarray:
    """Node indices (F, 3) of the triangles, counter-clockwise seen from above."""
    error = _split_errors(height)
    nx, ny = height.shape
    i, j = np.meshgrid(np.arange(0, nx - 1, TILE), np.arange(0, ny - 1, TILE), indexing="ij")
    even = ((i + j) // TILE % 2 == 0).ravel()
    corner = np.stack([i.ravel(), j.ravel()], axis=1)
    a = corner + np.where(even[:, None], (0, 0), (TILE, 0))
    b = corner + np.where(even[:, None], (TILE, TILE), (0, TILE))
    right = corner + np.where(even[:, None], (TILE, 0), (TILE, TILE))
    left = corner + np.where(even[:, None], (0, TILE), (0, 0))
    # A triangle is (start and end of its hypotenuse, right angle), counter-clockwise.
    todo = np.concatenate([np.stack([b, a, right], axis=1), np.stack([a, b, left], axis=1)])
    done = []
    while len(todo):
        a, b, c = todo[:, 0], todo[:, 1], todo[:, 2]
        middle = (a + b) // 2
        divisible = ((a + b) % 2 == 0).all(axis=1)
        split = divisible & (error[middle[:, 0], middle[:, 1]] > tolerance)
        done.append(todo[~split])
        a, b, c, middle = a[split], b[split], c[split], middle[split]
        todo = np.concatenate([np.stack([c, a, middle], axis=1), np.stack([b, c, middle], axis=1)])
    triangles = np.concatenate(done)
    return triangles[..., 0] * ny + triangles[..., 1]


def _split_errors(height: np.ndarray) -> np.ndarray:
    """For each node, the largest error of any triangle that stays whole if it is not split at this node."""
    error = np.zeros_like(height)
    size = 2
    while size <= TILE:
        half = size // 2
        _edge_errors(height, error, size, half)
        _edge_errors(height.T, error.T, size, half)
        # Square centres: the diagonal from the parent square's centre to its corner alternates.
        h = height[::size, ::size]
        rising = (h[:-1, :-1] + h[1:, 1:]) / 2
        falling = (h[1:, :-1] + h[:-1, 1:]) / 2
        i, j = np.indices(rising.shape)
        own = np.abs(height[half::size, half::size] - np.where((i + j) % 2 == 0, rising, falling))
        edge_x, edge_y = error[half::size, ::size], error[::size, half::size]
        error[half::size, half::size] = np.maximum.reduce([own, edge_x[:, :-1], edge_x[:, 1:], edge_y[:-1], edge_y[1:]])
        size *= 2
    return error


def _edge_errors(height: np.ndarray, error: np.ndarray, size: int, half: int) -> None:
    """Errors at the midpoints of edges of length `size` along the first axis."""
    ends = height[::size, ::size]
    worst = np.abs(height[half::size, ::size] - (ends[:-1] + ends[1:]) / 2)
    if half > 1:  # the four smaller squares around the midpoint must not be split unless this edge is
        quarter = half // 2
        inner = error[quarter::half, quarter::half]  # centres of the squares of edge `half`
        pair = np.maximum(inner[0::2], inner[1::2])
        worst[:, 1:] = np.maximum(worst[:, 1:], pair[:, 1::2])
        worst[:, :-1] = np.maximum(worst[:, :-1], pair[:, 0::2])
    error[half::size, ::size] = worst


@numba.njit(cache=True, inline="always")
def bilinear(height, x0, y0, cell, x, y):
    """Height at a world point."""
    nx, ny = height.shape
    u = min(max((x - x0) / cell - 0.5, 0.0), nx - 1.000001)
    v = min(max((y - y0) / cell - 0.5, 0.0), ny - 1.000001)
    i, j = int(u), int(v)
    fu, fv = u - i, v - j
    low = height[i, j] * (1 - fv) + height[i, j + 1] * fv
    high = height[i + 1, j] * (1 - fv) + height[i + 1, j + 1] * fv
    return low * (1 - fu) + high * fu


@numba.njit(cache=True)
def _heights(height, x0, y0, cell, xy):
    out = np.empty(len(xy))
    for n in range(len(xy)):
        out[n] = bilinear(height, x0, y0, cell, xy[n, 0], xy[n, 1])
    return out
