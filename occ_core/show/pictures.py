"""Still pictures: camera mosaic, voxels from above, prediction beside truth; RGB uint8."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import OccError
from occ_core.occupancy import Occupancy
from occ_core.show.solids import BACKGROUND_RGB, in_perspective

UNOBSERVED_RGB = (205, 205, 205)
INK_RGB = (40, 40, 40)


def from_above(occupancy: Occupancy, cell_px: int = 2) -> np.ndarray:
    """The topmost observed class of every column; forward is up, left is left. Brighter is higher.

    Returns:
        uint8 (X * cell_px, Y * cell_px, 3).
    """
    occupied = occupancy.occupied
    height = occupied.shape[2]
    top = height - 1 - occupied[:, :, ::-1].argmax(axis=2)
    label = np.take_along_axis(occupancy.labels, top[:, :, None], axis=2)[:, :, 0]
    shade = 0.65 + 0.35 * top / max(1, height - 1)
    image = occupancy.taxonomy.palette[label] * shade[:, :, None]
    image[~occupied.any(axis=2)] = BACKGROUND_RGB
    image[~occupied.any(axis=2) & ~occupancy.observed.any(axis=2)] = UNOBSERVED_RGB
    upright = image[::-1, ::-1].astype(np.uint8)
    return upright.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


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
            tiles.append(captioned(image, text))
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
    """One sheet: what the cameras saw, the predicted voxels, and the true ones; what is not known is left out.

    The truth has colours where its mask says that it was observed, and is grey elsewhere.
    """
    width = 1440
    rows = camera_rows(sorted(images))
    tile_w = width // len(rows[0])
    strips = [strip(title, width), mosaic(images, rows, (tile_w, tile_w * 9 // 16))]
    true = "true" if truth is None or not truth.is_masked else "true; grey: not observed"
    panels = [(name, voxels) for name, voxels in (("predicted", predicted), (true, truth)) if voxels is not None]
    views = []
    for name, occupancy in panels:
        panel_w = width // len(panels)
        view = in_perspective(occupancy, (panel_w, 480), with_hidden=occupancy is truth)
        above = cv2.resize(from_above(occupancy), (160, 160), interpolation=cv2.INTER_AREA)
        view[8:168, panel_w - 168 : panel_w - 8] = above
        _text(view, name, (14, 30), 0.65)
        views.append(view)
    if views:
        strips += [np.concatenate(views, axis=1), legend(panels[0][1], width)]
    return np.ascontiguousarray(np.concatenate(strips))


def legend(occupancy: Occupancy, width: int) -> np.ndarray:
    """A strip that names the colours of all classes but free."""
    ids = occupancy.taxonomy.occupied_ids
    columns = max(1, min(9, width // 158))
    strip = _blank(width, 22 * -(-len(ids) // columns) + 4)
    for number, class_id in enumerate(ids):
        x, y = number % columns * (width // columns) + 8, number // columns * 22 + 5
        cv2.rectangle(strip, (x, y), (x + 14, y + 14), occupancy.taxonomy.colors[class_id], -1)
        _text(strip, occupancy.taxonomy.names[class_id].replace("_", " "), (x + 20, y + 12), 0.4)
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
    _text(image, text, (10, 23), 0.55)
    return image


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """A copy with a name in its upper left corner, dark on a light ground."""
    image = image.copy()
    (w, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.42, 1)
    ground = image[4:24, 4 : w + 16]
    ground[:] = 0.25 * ground + 0.75 * np.array(BACKGROUND_RGB)
    _text(image, text, (10, 18), 0.42)
    return image


def _text(image: np.ndarray, text: str, at: tuple[int, int], scale: float) -> None:
    """Write into an image; `at` is where the first letter's foot stands. Drawn larger and shrunk: smooth letters."""
    finer = 4
    (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale * finer, 1)
    thick = max(1, round(1.2 * scale * finer))
    room = 2 * finer
    size = [-(-side // finer) * finer for side in (h + below + 2 * room, w + 2 * room)]
    ink = np.zeros(size, dtype=np.uint8)
    cv2.putText(ink, text, (room, room + h), cv2.FONT_HERSHEY_DUPLEX, scale * finer, 255, thick, cv2.LINE_AA)
    ink = np.asarray(cv2.resize(ink, (size[1] // finer, size[0] // finer), interpolation=cv2.INTER_AREA), np.uint8)
    x, y = at[0] - 2, at[1] - (room + h) // finer
    left, top = max(0, -x), max(0, -y)
    part = image[y + top : y + ink.shape[0], x + left : x + ink.shape[1]]
    share = ink[top : top + part.shape[0], left : left + part.shape[1], None] / 255
    part[:] = (1 - share) * part + share * np.array(INK_RGB)
