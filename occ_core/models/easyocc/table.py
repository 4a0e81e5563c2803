"""The look-up table of a rig: for each cell of the grid, the feature pixel and the depth bin along its ray.

The table is an input of the network, so one set of weights serves every vehicle and a new calibration costs one rebuild
of the table. It goes through `Camera.project`, so distorted and fisheye lenses need nothing special.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.geometry import apply, inverse
from occ_core.models.easyocc.config import STRIDE, EasyOccConfig
from occ_core.network_input.preprocess import Preprocess

RAY_CHANNELS = 6  # of `Table.rays`
GROUND = 4  # of these: 1 / distance to the ground
NEAREST = 1.0  # 1 / m
LOWEST_M = 0.1  # a camera below is taken to be so high: of its rays' ground nothing can be said


@dataclass(frozen=True, eq=False)
class Table:
    """The inputs of the network that depend on the calibration alone, for N cameras, feature maps h x w and D depth
    bins.

    Attributes:
        voxel_index: int32 (X * Y * Z,) into (N, h, w, D); N * h * w * D where no camera looks.
        pillar_index: int32 (X/2 * Y/2 * heights,) into (N, h, w); N * h * w where no camera looks.
        rays: float32 (N, RAY_CHANNELS, h, w): unit viewing direction in the ego frame; focal length in px / 1000;
            1 / distance, in 1 / m, at which the ray meets the ground z = 0, from 0 (never) to NEAREST; height of the
            camera above that ground in m.
    """

    voxel_index: np.ndarray
    pillar_index: np.ndarray
    rays: np.ndarray


class TableCache:
    """Keeps the tables of the rigs met last (rarely more than one), for each set of missing cameras."""

    KEPT = 16

    def __init__(self, config: EasyOccConfig) -> None:
        self.config = config
        self._tables: OrderedDict[tuple[str, frozenset[str]], Table] = OrderedDict()
        self._views: tuple[str, RigViews] | None = None  # of the rig met last

    def of(self, rig: Rig, missing: frozenset[str]) -> Table:
        """Return a table, building it if it is new: a rig takes about a second, the same rig with other cameras missing
        a tenth of that."""
        key = rig.fingerprint, missing
        if key not in self._tables:
            if self._views is None or self._views[0] != rig.fingerprint:
                self._views = rig.fingerprint, RigViews(rig, self.config)
            self._tables[key] = self._views[1].table(missing)
            if len(self._tables) > self.KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


def build_table(rig: Rig, config: EasyOccConfig, missing: frozenset[str] = frozenset()) -> Table:
    """Build the table of a rig whose images have the rig's sizes; `missing` cameras see nothing."""
    return RigViews(rig, config).table(missing)


@dataclass(frozen=True, eq=False)
class VisiblePoints:
    """The K points that one camera sees.

    Attributes:
        point: int32 (K,), which points.
        pixel: int32 (K,), the feature pixel on which each falls, counted over all cameras.
        off_center: float64 (K,), its distance in columns from the image's centre.
        distance_m: float64 (K,), from the camera.
    """

    point: np.ndarray
    pixel: np.ndarray
    off_center: np.ndarray
    distance_m: np.ndarray


class RigViews:
    """What each camera of a rig sees of the grid; computing this is the slow part of a table."""

    def __init__(self, rig: Rig, config: EasyOccConfig) -> None:
        preprocess = Preprocess(config.input_width, config.input_height)
        cells_m, pillars_m = config.grid.centers_m(), _pillar_centers_m(config)
        self._config, self._names = config, rig.names
        self._cells = [_view(cells_m, camera, i, config) for i, camera in enumerate(rig)]
        self._pillars = [_view(pillars_m, camera, i, config) for i, camera in enumerate(rig)]
        self._counts = cells_m[..., 0].size, pillars_m[..., 0].size
        self._rays = np.ascontiguousarray(np.stack([_rays(preprocess.camera(camera), config) for camera in rig]))

    def table(self, missing: frozenset[str] = frozenset()) -> Table:
        """The table with `missing` cameras, which see nothing."""
        config, d = self._config, self._config.depth_bins
        w, h = config.feature_size
        unseen = len(self._names) * h * w
        seeing = [i for i, name in enumerate(self._names) if name not in missing]
        pixel, distance_m = _central_pixel([self._cells[i] for i in seeing], self._counts[0], unseen)
        depth_bin = np.searchsorted(config.depth_edges_m, distance_m, side="right") - 1
        voxel_index = np.where((pixel < unseen) & (depth_bin >= 0) & (depth_bin < d), pixel * d + depth_bin, unseen * d)
        pillar_index, _ = _central_pixel([self._pillars[i] for i in seeing], self._counts[1], unseen)
        return Table(voxel_index.astype(np.int32), pillar_index.astype(np.int32), self._rays)


def _pillar_centers_m(config: EasyOccConfig) -> np.ndarray:
    """Centres of the pillars' cells in metres, float32 (X/2, Y/2, heights, 3)."""
    grid, shape = config.grid, config.pillar_grid_shape
    sizes = [n * grid.voxel_size_m / m for n, m in zip(grid.shape, shape, strict=True)]
    axes = [o + (np.arange(m) + 0.5) * s for o, m, s in zip(grid.origin_m, shape, sizes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def _view(centers_ego_m: np.ndarray, camera: Camera, number: int, config: EasyOccConfig) -> VisiblePoints:
    """Find which cells of a grid, with centres (X, Y, Z, 3), the `number`th camera of a rig sees, and where.

    The network's input lacks the top of most images. What an image shows there is taken to be what stands below it: a
    cell gets pixel and depth of the highest cell of its column that the input shows. Walls, trees and poles go on.
    """
    w, h = config.feature_size
    size = np.array([config.input_width, config.input_height])
    resized, left, top = Preprocess(*size.tolist()).plan(camera.size)
    points_cam_m = apply(inverse(camera.ego_from_cam), centers_ego_m.reshape(-1, 3))
    uv, in_image = camera.resized(resized).project(points_cam_m)
    uv -= left, top
    with np.errstate(invalid="ignore"):
        in_input = in_image & ((uv > -0.5) & (uv < size - 0.5)).all(axis=1)
    shown, point = _as_below(in_input, in_image, centers_ego_m.shape[:3])
    uv = uv[shown]
    column, row = np.floor((uv + 0.5) / STRIDE).astype(np.int64).T
    pixel = (number * h + np.clip(row, 0, h - 1)) * w + np.clip(column, 0, w - 1)
    off_center = np.abs(uv[:, 0] + 0.5 - config.input_width / 2)
    return VisiblePoints(
        point.astype(np.int32), pixel.astype(np.int32), off_center, np.linalg.norm(points_cam_m[shown], axis=1)
    )


def _as_below(in_input: np.ndarray, in_image: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Cells that the image shows, and for each the highest cell of its column, up to itself, that the input shows.

    Returns:
        flat indices (K,) of the shown cells, and of those that they stand for.
    """
    heights = np.arange(shape[2])
    highest = np.maximum.accumulate(np.where(in_input.reshape(shape), heights, -1), axis=2)
    point = np.flatnonzero(in_image.reshape(shape) & (highest >= 0))
    return point - point % shape[2] + highest.reshape(-1)[point], point


def _central_pixel(views: list[VisiblePoints], points: int, unseen: int) -> tuple[np.ndarray, np.ndarray]:
    """For each point the feature pixel that sees it, int64 (points,), `unseen` if none does, and its distance,
    (points,).

    Where several cameras see a point, the one whose image centre is nearest: there lenses are sharp and views whole.
    """
    pixel, distance_m, best = np.full(points, unseen, dtype=np.int64), np.zeros(points), np.full(points, np.inf)
    for view in views:
        closer = view.off_center < best[view.point]
        point = view.point[closer]
        best[point] = view.off_center[closer]
        pixel[point], distance_m[point] = view.pixel[closer], view.distance_m[closer]
    return pixel, distance_m


def feature_rays(camera: Camera, config: EasyOccConfig) -> np.ndarray:
    """Unit viewing directions in the ego frame through the centres of the feature pixels, float64 (h, w, 3)."""
    w, h = config.feature_size
    u, v = np.meshgrid(np.arange(w), np.arange(h))
    centers = np.stack([u, v], axis=-1).reshape(-1, 2) * STRIDE + (STRIDE - 1) / 2
    rays, _ = camera.directions(centers)
    return (rays @ camera.ego_from_cam[:3, :3].T).reshape(h, w, 3)


def _rays(camera: Camera, config: EasyOccConfig) -> np.ndarray:
    direction = feature_rays(camera, config).transpose(2, 0, 1)
    focal = np.full_like(direction[:1], camera.intrinsics[0, 0] / 1000)
    return _with_ground(direction, focal, np.full_like(focal, camera.ego_from_cam[2, 3]))


def _with_ground(direction: np.ndarray, focal: np.ndarray, height_m: np.ndarray) -> np.ndarray:
    ground = np.clip(-direction[2:3] / np.maximum(height_m, LOWEST_M), 0, NEAREST)
    return np.concatenate([direction, focal, ground, height_m]).astype(np.float32)


def zoomed_rays(
    rays: np.ndarray,  # (RAY_CHANNELS, h, w)
    rows: np.ndarray,  # (h,), of `rays`, where the part's feature pixels have their centres
    columns: np.ndarray,  # (w,)
    zoom: float,
) -> np.ndarray:
    """`Table.rays` of one camera for a part of its image, scaled up by `zoom` to the size of the whole."""
    u, v = (grid.astype(np.float32) for grid in np.meshgrid(columns, rows))
    direction = np.stack([cv2.remap(channel, u, v, cv2.INTER_LINEAR) for channel in rays[:3]])
    direction = direction / np.linalg.norm(direction, axis=0)
    return _with_ground(direction, rays[3:4] * np.float32(zoom), rays[5:6])


def leaning_rays(
    rays: np.ndarray,  # (RAY_CHANNELS, h, w)
    lean_rad: np.ndarray,  # (2,), about the axes x and y, small
    height_scale: float,
) -> np.ndarray:
    """`Table.rays` of one camera as a robot has them that leans, or on a slope; distances stay."""
    about_x, about_y = lean_rad
    turn = np.array([[1, 0, about_y], [0, 1, -about_x], [-about_y, about_x, 1]])
    direction = np.einsum("ij,jhw->ihw", turn, rays[:3])
    return _with_ground(direction / np.linalg.norm(direction, axis=0), rays[3:4], rays[5:6] * np.float32(height_scale))


def mirrored(table: Table, config: EasyOccConfig) -> Table:
    """The table of the rig's mirror image (left and right of the ego swapped), for images flipped left to right."""
    w, h = config.feature_size
    n = len(table.rays)

    def flip(index: np.ndarray, shape: tuple[int, int, int], bins: int) -> np.ndarray:
        index = index.reshape(shape)[:, ::-1].reshape(-1)
        pixel, depth_bin = np.divmod(index, bins)
        flipped = (pixel - pixel % w + (w - 1 - pixel % w)) * bins + depth_bin
        return np.where(index == n * h * w * bins, index, flipped).astype(np.int32)

    return Table(
        flip(table.voxel_index, config.grid_shape, config.depth_bins),
        flip(table.pillar_index, config.pillar_grid_shape, 1),
        mirrored_rays(table.rays),
    )


def mirrored_rays(
    rays: np.ndarray,  # (..., RAY_CHANNELS, h, w)
) -> np.ndarray:
    """`Table.rays` for images flipped left to right, as a mirrored rig has them."""
    rays = rays[..., ::-1].copy()
    rays[..., 1, :, :] *= -1
    return rays


def turned(table: Table, quarters: int, config: EasyOccConfig) -> Table:
    """The table of the rig on a robot that is turned clockwise by `quarters`; the world around it turns the other way.

    Raises:
        InvalidInput: the grid is not a square around the ego.
    """
    x, y, _ = config.grid_shape
    if x != y or any(
        2 * origin != -n * config.voxel_size_m for origin, n in zip(config.grid_origin_m, (x, y), strict=False)
    ):
        raise InvalidInput(f"only a square grid around the ego can be turned, got {config.grid}")

    def turn(index: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(index.reshape(shape), quarters)).reshape(-1)

    rays = table.rays.copy()
    for _ in range(quarters % 4):
        rays[:, 0], rays[:, 1] = -rays[:, 1], rays[:, 0].copy()
    return Table(turn(table.voxel_index, config.grid_shape), turn(table.pillar_index, config.pillar_grid_shape), rays)
