"""Where the cells are: index order [x, y, z] with x forward, y left, z up, in the ego frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.limits import MAX_CELLS


@dataclass(frozen=True)
class VoxelGrid:
    """A box of cubic cells.

    Attributes:
        origin_m: lower corner (x, y, z) of cell (0, 0, 0), metres.
        voxel_size_m: edge of a cell, metres.
        shape: cells along (x, y, z).
    """

    origin_m: tuple[float, float, float]
    voxel_size_m: float
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.origin_m) != 3 or not np.isfinite(self.origin_m).all():
            raise InvalidInput(f"grid origin_m must be three finite numbers, got {self.origin_m}")
        if not (np.isfinite(self.voxel_size_m) and 0 < self.voxel_size_m <= 100):
            raise InvalidInput(f"grid voxel_size_m must be in (0, 100], got {self.voxel_size_m}")
        if len(self.shape) != 3 or min(self.shape) < 1 or int(np.prod(np.array(self.shape, dtype=object))) > MAX_CELLS:
            raise InvalidInput(
                f"grid shape must be three positive counts of at most {MAX_CELLS} cells, got {self.shape}"
            )
        object.__setattr__(self, "origin_m", tuple(float(v) for v in self.origin_m))
        object.__setattr__(self, "voxel_size_m", float(self.voxel_size_m))
        object.__setattr__(self, "shape", tuple(int(v) for v in self.shape))

    @property
    def cells(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def upper_m(self) -> tuple[float, float, float]:
        """Upper corner (x, y, z), metres."""
        x, y, z = (o + n * self.voxel_size_m for o, n in zip(self.origin_m, self.shape, strict=True))
        return x, y, z

    def index_of(self, points_ego_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cell of each point.

        Args:
            points_ego_m: (N, 3) metres.

        Returns:
            indices int64 (N, 3), meaningful only where `inside`; inside bool (N,). Points outside are never clamped.
        """
        # Division, not multiplication by the reciprocal: the two differ at cell borders, and every part must agree.
        scaled = np.floor((np.asarray(points_ego_m, dtype=np.float64) - self.origin_m) / self.voxel_size_m)
        inside = np.asarray(((scaled >= 0) & (scaled < self.shape)).all(axis=-1))
        return np.where(inside[..., None], scaled, 0).astype(np.int64), inside

    def centers_m(self) -> np.ndarray:
        """Centres of all cells, float32 (X, Y, Z, 3), metres in the ego frame."""
        axes = [o + (np.arange(n) + 0.5) * self.voxel_size_m for o, n in zip(self.origin_m, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)

    def centers_of_m(self, cells: np.ndarray) -> np.ndarray:
        """Centres of the cells in a mask bool (X, Y, Z): float64 (N, 3), metres in the ego frame."""
        return np.array(self.origin_m) + (np.argwhere(cells) + 0.5) * self.voxel_size_m


OCC3D_GRID = VoxelGrid(origin_m=(-40.0, -40.0, -1.0), voxel_size_m=0.4, shape=(200, 200, 16))
"""Occ3D-nuScenes: 80 x 80 x 6.4 m around the ego."""

SEMANTIC_KITTI_GRID = VoxelGrid(origin_m=(0.0, -25.6, -2.0), voxel_size_m=0.2, shape=(256, 256, 32))
"""SemanticKITTI semantic scene completion as papers state it: 51.2 x 51.2 x 6.4 m ahead, in the LiDAR frame."""

SEMANTIC_KITTI_VOXELS = VoxelGrid(origin_m=(0.0, -25.6, -2.2), voxel_size_m=0.2, shape=(256, 256, 32))
"""Where the cells of its voxel files are, one cell lower than stated: the points of a scan fall into the cells that its
`.bin` names in this grid (IoU 0.93 to 0.95), not in the other (0.11). Projections that shall fit the labels need it."""
