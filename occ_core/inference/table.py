"""The look-up table of a rig: which feature pixel and which depth bin along its ray each cell of the grid falls on.

The table is an input of the network, so one set of weights serves every vehicle and a new calibration costs one rebuild
of the table. It goes through `Camera.project`, so distorted and fisheye lenses need nothing special.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.geometry import apply, inverse
from occ_core.inference.preprocess import Preprocess
from occ_core.models.easyocc.config import STRIDE, EasyOccConfig


@dataclass(frozen=True, eq=False)
class Table:
    """Inputs of the network that depend on the calibration alone; N cameras, feature map h x w, D depth bins.

    Attributes:
        voxel_index: int32 (X * Y * Z,) into (N, h, w, D); N * h * w * D where no camera looks.
        pillar_index: int32 (X/2 * Y/2 * heights,) into (N, h, w); N * h * w where no camera looks.
        rays: float32 (N, 4, h, w): unit viewing direction in the ego frame, focal length in px / 1000.
    """

    voxel_index: np.ndarray
    pillar_index: np.ndarray
    rays: np.ndarray


class Tables:
    """Tables of the rigs met last; rarely more than one, with each set of missing cameras."""

    KEPT = 16

    def __init__(self, config: EasyOccConfig) -> None:
        self.config = config
        self._tables: OrderedDict[tuple[str, frozenset[str]], Table] = OrderedDict()

    def of(self, rig: Rig, missing: frozenset[str]) -> Table:
        """The table, built now (about a second) if it was not asked for before."""
        key = rig.fingerprint, missing
        if key not in self._tables:
            self._tables[key] = build_table(rig, self.config, missing)
            if len(self._tables) > self.KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


def build_table(rig: Rig, config: EasyOccConfig, missing: frozenset[str] = frozenset()) -> Table:
    """The table of a rig whose images have the rig's sizes; `missing` cameras see nothing."""
    preprocess = Preprocess(config.input_width, config.input_height)
    cameras = [preprocess.camera(camera) for camera in rig]
    seeing = [camera.name not in missing for camera in cameras]
    grid = config.grid
    pixel, distance_m = _central_pixel(grid.centers_m().reshape(-1, 3), cameras, seeing, config)
    d = config.depth_bins
    depth_bin = np.searchsorted(config.depth_edges_m, distance_m, side="right") - 1
    w, h = config.feature_size
    unseen = len(cameras) * h * w
    voxel_index = np.where((pixel < unseen) & (depth_bin >= 0) & (depth_bin < d), pixel * d + depth_bin, unseen * d)
    pillar_index, _ = _central_pixel(_pillar_centers(config), cameras, seeing, config)
    rays = np.ascontiguousarray(np.stack([_rays(camera, config) for camera in cameras]))
    return Table(voxel_index.astype(np.int32), pillar_index.astype(np.int32), rays)


def _pillar_centers(config: EasyOccConfig) -> np.ndarray:
    """float32 (X/2 * Y/2 * heights, 3) metres."""
    grid, shape = config.grid, config.pillar_grid_shape
    sizes = [n * grid.voxel_size_m / m for n, m in zip(grid.shape, shape, strict=True)]
    axes = [o + (np.arange(m) + 0.5) * s for o, m, s in zip(grid.origin_m, shape, sizes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)


def _central_pixel(
    points_ego_m: np.ndarray, cameras: list[Camera], seeing: list[bool], config: EasyOccConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Feature pixel that sees each point, int64 (K,), and its distance from that camera, (K,).

    Where several cameras see a point, the one whose image centre is nearest: there lenses are sharp and views whole.
    """
    w, h = config.feature_size
    pixel = np.full(len(points_ego_m), len(cameras) * h * w, dtype=np.int64)
    distance_m = np.zeros(len(points_ego_m))
    best = np.full(len(points_ego_m), np.inf)
    for i, camera in enumerate(cameras):
        if not seeing[i]:
            continue
        points_cam_m = apply(inverse(camera.ego_from_cam), points_ego_m)
        front = np.flatnonzero(points_cam_m[:, 2] > 0)
        uv, visible = camera.project(points_cam_m[front])
        index, uv = front[visible], uv[visible]
        off_center = np.abs(uv[:, 0] + 0.5 - camera.size[0] / 2)
        closer = off_center < best[index]
        index, uv = index[closer], uv[closer]
        best[index] = off_center[closer]
        column, row = np.floor((uv + 0.5) / STRIDE).astype(np.int64).T
        pixel[index] = (i * h + np.clip(row, 0, h - 1)) * w + np.clip(column, 0, w - 1)
        distance_m[index] = np.linalg.norm(points_cam_m[index], axis=1)
    return pixel, distance_m


def feature_rays(camera: Camera, config: EasyOccConfig) -> np.ndarray:
    """Unit viewing directions in the ego frame through the centres of the feature pixels, float64 (h, w, 3)."""
    w, h = config.feature_size
    u, v = np.meshgrid(np.arange(w), np.arange(h))
    centers = np.stack([u, v], axis=-1).reshape(-1, 2) * STRIDE + (STRIDE - 1) / 2
    rays = camera.rays(centers)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return (rays @ camera.ego_from_cam[:3, :3].T).reshape(h, w, 3)


def _rays(camera: Camera, config: EasyOccConfig) -> np.ndarray:
    direction = feature_rays(camera, config).transpose(2, 0, 1)
    focal = np.full_like(direction[:1], camera.intrinsics[0, 0] / 1000)
    return np.concatenate([direction, focal]).astype(np.float32)


def mirrored(table: Table, config: EasyOccConfig) -> Table:
    """The table of the rig's mirror image (left and right of the ego swapped), for images flipped left to right."""
    w, h = config.feature_size
    n = len(table.rays)

    def flip(index: np.ndarray, shape: tuple[int, int, int], bins: int) -> np.ndarray:
        index = index.reshape(shape)[:, ::-1].reshape(-1)
        pixel, depth_bin = np.divmod(index, bins)
        flipped = (pixel - pixel % w + (w - 1 - pixel % w)) * bins + depth_bin
        return np.where(index == n * h * w * bins, index, flipped).astype(np.int32)

    rays = table.rays[..., ::-1].copy()
    rays[:, 1] *= -1
    return Table(
        flip(table.voxel_index, config.grid_shape, config.depth_bins),
        flip(table.pillar_index, config.pillar_grid_shape, 1),
        rays,
    )
