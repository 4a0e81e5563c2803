"""Still pictures: camera mosaic, voxels from above and in perspective, prediction beside truth; RGB uint8."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import OccError
from occ_core.grid import VoxelGrid
from occ_core.occupancy import Occupancy

UNOBSERVED_RGB = (205, 205, 205)
BACKGROUND_RGB = (250, 250, 250)
INK_RGB = (40, 40, 40)

# Faces of a unit cube that a viewer above, behind (-x) and right (-y) of the scene can see, with their shade of grey.
_FACES = (
    (np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]]), (0, 0, 1), 1.0),
    (np.array([[0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]]), (-1, 0, 0), 0.72),
    (np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]]), (0, -1, 0), 0.86),
    (np.array([[0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]]), (0, 1, 0), 0.86),
)


def from_above(occupancy: Occupancy, cell_px: int = 2) -> np.ndarray:
    """The topmost class of every column; forward is up, left is left. Brighter is higher.

    Returns:
        uint8 (X * cell_px, Y * cell_px, 3).
    """
    occupied = occupancy.labels != occupancy.taxonomy.free_id
    height = occupied.shape[2]
    top = height - 1 - occupied[:, :, ::-1].argmax(axis=2)
    label = np.take_along_axis(occupancy.labels, top[:, :, None], axis=2)[:, :, 0]
    shade = 0.65 + 0.35 * top / max(1, height - 1)
    image = occupancy.taxonomy.palette[label] * shade[:, :, None]
    image[~occupied.any(axis=2)] = BACKGROUND_RGB
    image[~occupied.any(axis=2) & ~occupancy.observed.any(axis=2)] = UNOBSERVED_RGB
    upright = image[::-1, ::-1].astype(np.uint8)
    return upright.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


def in_perspective(occupancy: Occupancy, size: tuple[int, int] = (800, 600)) -> np.ndarray:
    """The occupied cells as cubes, seen from above and behind the grid's middle.

    Args:
        size: (width, height) of the picture, px.

    Returns:
        uint8 (height, width, 3).
    """
    w, h = size
    canvas = _blank(w, h)
    occupied = occupancy.labels != occupancy.taxonomy.free_id
    eye, target = eye_and_target_m(occupancy.grid)
    quads, distance_m, colors = _visible_faces(occupancy, occupied, eye_m=eye)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    cam_from_world = np.stack([right, -np.cross(right, forward), forward])
    points = (quads - eye) @ cam_from_world.T  # [N, 4, 3]
    near = points[..., 2].min(axis=1) > 1.0
    focal = 0.95 * h
    pixels = points[..., :2] / np.maximum(points[..., 2:], 1e-3) * focal + (w / 2, h / 2)
    order = np.flatnonzero(near)[np.argsort(-distance_m[near])]
    corners = np.round(pixels * 16).astype(np.int32)
    for face in order:  # painter's algorithm: far to near
        color = tuple(int(c) for c in colors[face])
        cv2.fillConvexPoly(canvas, corners[face], color, cv2.LINE_AA, shift=4)
    return canvas


def eye_and_target_m(grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray]:
    """Where one stands to see a whole grid, above and behind its middle, and where one looks: (3,) each, ego frame."""
    low, high = np.array(grid.origin_m), np.array(grid.upper_m)
    middle, wide = (low + high) / 2 * (1, 1, 0), (high - low)[0]
    return middle + wide * np.array([-0.65, 0.0, 0.425]), middle + wide * np.array([0.05, 0.0, 0.0])


def _visible_faces(
    occupancy: Occupancy, occupied: np.ndarray, eye_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners (N, 4, 3) in metres, distance (N,), colour (N, 3) of cube faces that look at the eye, uncovered."""
    padded = np.pad(occupied, 1)
    grid, quads, distances, colors = occupancy.grid, [], [], []
    for corners, normal, shade in _FACES:
        x, y, z = normal
        covered = padded[
            1 + x : padded.shape[0] - 1 + x, 1 + y : padded.shape[1] - 1 + y, 1 + z : padded.shape[2] - 1 + z
        ]
        index = np.stack(np.nonzero(occupied & ~covered), axis=1)
        lower_m = np.array(grid.origin_m) + index * grid.voxel_size_m
        center_m = lower_m + (0.5 + 0.5 * np.array(normal)) * grid.voxel_size_m
        facing = ((eye_m - center_m) * normal).sum(axis=1) > 0
        index, lower_m, center_m = index[facing], lower_m[facing], center_m[facing]
        quads.append(lower_m[:, None] + corners * grid.voxel_size_m)
        distances.append(np.linalg.norm(center_m - eye_m, axis=1))
        light = shade * (0.8 + 0.2 * (index[:, 2] + 1) / occupied.shape[2])
        colors.append(occupancy.taxonomy.palette[occupancy.labels[tuple(index.T)]] * light[:, None])
    return np.concatenate(quads), np.concatenate(distances), np.concatenate(colors)


def mosaic(images: Mapping[str, np.ndarray], rows: Sequence[Sequence[str]], tile: tuple[int, int]) -> np.ndarray:
    """Cameras side by side, each with its name; a camera without an image is a grey tile that says so.

    Args:
        images: camera name -> RGB uint8.
        rows: camera names of each row.
        tile: (width, height) of one image in the mosaic, px.
    """
    lines, columns = [], max(len(row) for row in rows)
    for row in rows:
        tiles = []
        for name in row:
            if name in images:
                image = cv2.resize(images[name], tile, interpolation=cv2.INTER_AREA)
            else:
                image = np.full((tile[1], tile[0], 3), 128, dtype=np.uint8)
            text = name if name in images else f"{name}: no image"
            cv2.putText(image, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
            cv2.putText(image, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
            tiles.append(image)
        tiles += [_blank(*tile)] * (columns - len(row))
        lines.append(np.concatenate(tiles, axis=1))
    return np.concatenate(lines, axis=0)


def camera_rows(names: Sequence[str]) -> list[list[str]]:
    """Rows for `mosaic`: front cameras above back cameras where names say so, three a row otherwise."""
    order = {"FRONT_LEFT": 0, "FRONT": 1, "FRONT_RIGHT": 2, "BACK_LEFT": 3, "BACK": 4, "BACK_RIGHT": 5}
    position = {name: order.get(name.upper().removeprefix("CAM_"), 6) for name in names}
    ordered = sorted(names, key=lambda name: (position[name], name))
    return [ordered[i : i + 3] for i in range(0, len(ordered), 3)]


def compare(
    images: Mapping[str, np.ndarray], predicted: Occupancy | None, truth: Occupancy | None, title: str
) -> np.ndarray:
    """One sheet: what the cameras saw, the predicted voxels, and the true ones; what is not known is left out."""
    width = 1440
    rows = camera_rows(sorted(images))
    tile_w = width // len(rows[0])
    strips = [strip(title, width), mosaic(images, rows, (tile_w, tile_w * 9 // 16))]
    panels = [(name, voxels) for name, voxels in (("predicted", predicted), ("true", truth)) if voxels is not None]
    views = []
    for name, occupancy in panels:
        panel_w = width // len(panels)
        view = in_perspective(occupancy, (panel_w, 480))
        above = cv2.resize(from_above(occupancy), (160, 160), interpolation=cv2.INTER_AREA)
        view[8:168, panel_w - 168 : panel_w - 8] = above
        _text(view, name, (14, 30), 0.8)
        views.append(view)
    if views:
        strips += [np.concatenate(views, axis=1), legend(panels[0][1], width)]
    return np.ascontiguousarray(np.concatenate(strips))


def legend(occupancy: Occupancy, width: int) -> np.ndarray:
    """A strip that names the colours of all classes but free."""
    ids = occupancy.taxonomy.occupied_ids
    columns = 9
    strip = _blank(width, 26 * -(-len(ids) // columns))
    for place, class_id in enumerate(ids):
        x, y = place % columns * (width // columns) + 8, place // columns * 26 + 5
        cv2.rectangle(strip, (x, y), (x + 16, y + 16), occupancy.taxonomy.colors[class_id], -1)
        _text(strip, occupancy.taxonomy.names[class_id].replace("_", " "), (x + 22, y + 13), 0.42)
    return strip


def save_png(path: Path, image_rgb: np.ndarray) -> None:
    """Write a PNG atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise OccError(f"{path}: OpenCV could not encode an image of shape {image_rgb.shape}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data.tobytes())
    os.replace(temporary, path)


def _blank(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND_RGB, dtype=np.uint8)


def strip(text: str, width: int) -> np.ndarray:
    """A title over a sheet, uint8 (34, width, 3)."""
    image = _blank(width, 34)
    _text(image, text, (10, 23), 0.6)
    return image


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """A copy with a name in its upper left corner."""
    image = image.copy()
    cv2.putText(image, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, BACKGROUND_RGB, 3, cv2.LINE_AA)
    _text(image, text, (8, 20), 0.5)
    return image


def _text(image: np.ndarray, text: str, at: tuple[int, int], scale: float) -> None:
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, INK_RGB, 1, cv2.LINE_AA)
