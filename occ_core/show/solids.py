"""Voxels as solid bodies in perspective: shaded faces, darker in corners, drawn from far to near; RGB uint8."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from occ_core.grid import VoxelGrid
from occ_core.occupancy import Occupancy

BACKGROUND_RGB = (250, 250, 250)
HIDDEN_RGB = (222, 222, 222)
NEAREST_M = 1.0  # from the eye; what is nearer is not drawn
FINER = 2  # drawn this many times larger and then shrunk, for edges without steps
OUTLINED_PX = 5.0  # cells at least this wide have an outline
OUTLINE = 0.86  # of a face's light
CORNER = 0.3  # share of the light that a face loses where all cells around it stand out
WALL_LEVELS = 3  # lower than this nothing is taken for a house
LOWEST = 0.85  # light on the lowest cells of the grid, of that on the highest

# Light on the faces that look along (axis, sign): a high sun ahead and to the right.
LIGHT = {(0, -1): 0.78, (0, 1): 0.86, (1, -1): 0.92, (1, 1): 0.82, (2, -1): 0.7, (2, 1): 1.0}


class Eye(NamedTuple):
    """Where one looks from and to, (x, y, z) in metres in the frame of the grid; the picture's up is the frame's z."""

    at_m: np.ndarray
    towards_m: np.ndarray
    focal: float = 0.95  # of the picture's height


def behind(grid: VoxelGrid) -> Eye:
    """From above and behind (-x) the grid's middle, so that all of it is seen."""
    low, high = np.array(grid.origin_m), np.array(grid.upper_m)
    middle_m, wide_m = (low + high) / 2 * (1, 1, 0), (high - low)[0]
    return Eye(middle_m + wide_m * np.array([-0.65, 0.0, 0.425]), middle_m + wide_m * np.array([0.05, 0.0, 0.0]))


def in_perspective(
    occupancy: Occupancy, size: tuple[int, int] = (800, 600), eye: Eye | None = None, with_hidden: bool = False
) -> np.ndarray:
    """The occupied cells that were observed, as cubes.

    Args:
        size: (width, height) of the picture, px.
        eye: default: `behind` the grid.
        with_hidden: in grey also what `hidden` finds, of truth that says more than was observed.

    Returns:
        uint8 (height, width, 3).
    """
    w, h = size[0] * FINER, size[1] * FINER
    eye = eye or behind(occupancy.grid)
    solid, palette = occupancy.occupied, occupancy.taxonomy.palette
    labels = occupancy.labels
    if with_hidden:
        grey = hidden(occupancy)
        labels = np.where(grey, np.uint8(len(palette)), labels)
        solid, palette = solid | grey, np.concatenate([palette, np.array([HIDDEN_RGB], np.uint8)])
    corners_m, colors = _faces(occupancy.grid, solid, palette[labels], eye.at_m)
    pixels, depth_m = projected(corners_m, eye, (w, h))
    ahead = depth_m.min(axis=1) > NEAREST_M
    inside = (pixels.max(axis=1) > 0).all(axis=1) & (pixels.min(axis=1) < (w, h)).all(axis=1)
    chosen = ahead & inside
    wide = occupancy.grid.voxel_size_m * eye.focal * h / depth_m.max(axis=1) >= OUTLINED_PX * FINER
    canvas = np.full((h, w, 3), BACKGROUND_RGB, dtype=np.uint8)
    fixed = np.round(pixels[chosen] * 16).astype(np.int32)
    dark = (colors[chosen] * OUTLINE).tolist()
    for quad, color, line, outlined in zip(fixed, colors[chosen].tolist(), dark, wide[chosen].tolist(), strict=True):
        cv2.fillConvexPoly(canvas, quad, color, cv2.LINE_8, 4)
        if outlined:
            cv2.polylines(canvas, [quad], True, line, 1, cv2.LINE_8, 4)
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)


def hidden(occupancy: Occupancy) -> np.ndarray:
    """bool (X, Y, Z): cells that nobody observed and that are occupied or lie within walls.

    Within walls is where no path on the cell's level, over free cells and ground, leads to an observed cell, on
    `WALL_LEVELS` levels or more. Labels mark the walls of a house and not what is inside: without this it has no roof.
    A level of which nothing open was observed, as below the ground, has no inside.
    """
    taxonomy, occupied = occupancy.taxonomy, occupancy.labels != occupancy.taxonomy.free_id
    open_ids = [taxonomy.free_id, *taxonomy.ground_ids]
    is_open = np.isin(occupancy.labels, open_ids)
    within, standing = np.zeros_like(occupied), np.zeros_like(occupied)
    for level in range(occupied.shape[2]):
        seen = (is_open & occupancy.observed)[:, :, level]
        if seen.any():
            count, part = cv2.connectedComponents(is_open[:, :, level].astype(np.uint8), connectivity=4)
            outside = np.zeros(count, dtype=bool)
            outside[part[seen]] = True
            within[:, :, level] = is_open[:, :, level] & ~outside[part]
    for bottom in range(occupied.shape[2] - WALL_LEVELS + 1):
        levels = slice(bottom, bottom + WALL_LEVELS)
        standing[:, :, levels] |= within[:, :, levels].all(axis=2, keepdims=True)
    return (occupied | standing) & ~occupancy.observed


def _faces(grid: VoxelGrid, solid: np.ndarray, rgb: np.ndarray, eye_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (N, 4, 3) in metres and colours (N, 3) of uncovered faces that look at the eye, from far to near.

    Of two cells the one that hides the other lies no farther from the eye along any axis, so the sum over the axes
    puts faces in an order in which none is painted over by one behind it.
    """
    padded = np.pad(solid, 1)
    at = (eye_m - grid.origin_m) / grid.voxel_size_m  # in cells
    corners, colors, distances = [], [], []
    for (axis, sign), light in LIGHT.items():
        around = _beside(padded, axis, sign)
        index = np.argwhere(solid & ~around[1])
        facing = sign * (at[axis] - index[:, axis] - (sign > 0)) > 0
        index = index[facing]
        shade = light * (1 - CORNER * around[0][tuple(index.T)] / 8)
        shade = shade * (LOWEST + (1 - LOWEST) * index[:, 2] / max(1, solid.shape[2] - 1))
        corners.append(grid.origin_m + (index[:, None] + _square(axis, sign)) * grid.voxel_size_m)
        colors.append(rgb[tuple(index.T)] * shade[:, None])
        distances.append(np.abs(index + 0.5 - at).sum(axis=1))
    order = np.argsort(-np.concatenate(distances), kind="stable")
    return np.concatenate(corners)[order], np.concatenate(colors)[order]


def _beside(padded: np.ndarray, axis: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the layer before each cell's face: how many of the eight cells around the next one are solid, and if it is.

    Args:
        padded: bool (X + 2, Y + 2, Z + 2).

    Returns:
        uint8 and bool (X, Y, Z).
    """
    layer = np.roll(padded, -sign, axis)
    others = [other for other in range(3) if other != axis]
    count = np.zeros(padded.shape, dtype=np.uint8)
    for first in (-1, 0, 1):
        for second in (-1, 0, 1):
            if first or second:
                count += np.roll(layer, (first, second), others)
    inner = (slice(1, -1),) * 3
    return count[inner], layer[inner]


def _square(axis: int, sign: int) -> np.ndarray:
    """The four corners, in order around it, of a unit cube's face that looks along an axis."""
    square = np.zeros((4, 3))
    square[:, [other for other in range(3) if other != axis]] = [(0, 0), (1, 0), (1, 1), (0, 1)]
    square[:, axis] = sign > 0
    return square


def projected(points_m: np.ndarray, eye: Eye, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (..., 2) and depths (...) in metres of points (..., 3) as the eye sees them."""
    forward = (eye.towards_m - eye.at_m) / np.linalg.norm(eye.towards_m - eye.at_m)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    points = (points_m - eye.at_m) @ np.stack([right, np.cross(forward, right), forward], axis=1)
    w, h = size
    scale = eye.focal * h / np.maximum(points[..., 2:], 1e-3)
    return points[..., :2] * scale + (w / 2, h / 2), points[..., 2]
