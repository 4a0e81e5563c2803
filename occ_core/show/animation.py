"""A drive as an animated WebP: what the cameras see, what is predicted of it, and the map that the predictions make."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from occ_core.errors import InvalidInput, MissingInput, need
from occ_core.files import write_atomically
from occ_core.geometry import apply
from occ_core.mapping.rolling_map import RollingMap
from occ_core.occupancy import Occupancy
from occ_core.show.album import spread
from occ_core.show.pictures import BACKGROUND_RGB, INK_RGB, camera_rows, captioned, legend, mosaic
from occ_core.show.predicted_frames import PredictedFrames
from occ_core.show.solids import Eye, in_perspective, projected

MOST_FRAMES = 60  # some 3 MB
WIDTH, VIEW_HEIGHT = 960, 330  # px
QUALITY = 45  # of WebP, 0..100
LONGEST_MS = 1500  # a frame stays; so long does the last one, so that one sees where the drive begins again
EYE_EGO_M, TOWARDS_EGO_M = (-19.0, 0.0, 13.0), (6.5, 0.0, 0.0)
ARROW_EGO_M = np.array([(2.4, 0, 0), (-1.4, 1.2, 0), (-0.6, 0, 0), (-1.4, -1.2, 0)])  # the robot, on the ground


def write_animation(frames: PredictedFrames, path: Path) -> None:
    """Write an animation of the frames that have a prediction, at the speed of the drive; see `MOST_FRAMES`.

    Args:
        path: ends with .webp.

    Raises:
        InvalidInput: another ending, or nobody said where the robot was, which the map needs.
        MissingInput: no frame has a prediction. CannotWrite. MissingPackage: Pillow is not installed.
    """
    if path.suffix != ".webp":
        raise InvalidInput(f"an animation is a .webp file, not {path}")
    image = need("PIL.Image", "viz")
    pictures, stamps_ns = [], []
    for stamp_ns, picture in drawn(frames):
        stamps_ns.append(stamp_ns)
        pictures.append(image.fromarray(picture))
    if not pictures:
        raise MissingInput(f"{frames.title}: no frame has a prediction to show")
    durations_ms = [*np.clip(np.diff(stamps_ns) // 1_000_000, 1, LONGEST_MS).tolist(), LONGEST_MS]
    buffer = io.BytesIO()
    first, *rest = pictures
    first.save(
        buffer, "WEBP", save_all=True, append_images=rest, duration=durations_ms, loop=0, quality=QUALITY, method=4
    )
    write_atomically(path, buffer.getvalue())


def drawn(frames: PredictedFrames) -> Iterator[tuple[int, np.ndarray]]:
    """Stamp in ns and picture, RGB uint8 (h, w, 3), of frames evenly spread; all are fused, scene by scene."""
    shown = set(spread(range(len(frames)), MOST_FRAMES))
    rolling_map: RollingMap | None = None
    scene = ""
    for index in track(range(len(frames)), description="animation", transient=True):
        frame, predicted, _ = frames[index]
        if predicted is None:
            continue
        if not frame.has_pose:
            raise InvalidInput(f"{frames.title}: nobody says where the robot was; a map needs its poses")
        if rolling_map is None or frame.scene != scene:
            rolling_map, scene = RollingMap(predicted.grid, predicted.taxonomy), frame.scene
        rolling_map.fuse(predicted, frame.world_from_ego, frame.stamp_ns)
        if index in shown:
            yield frame.stamp_ns, sheet(frame.images, predicted, rolling_map.occupancy(), frame.world_from_ego)


def sheet(
    images: dict[str, np.ndarray], predicted: Occupancy, fused: Occupancy, world_from_ego: np.ndarray
) -> np.ndarray:
    """One picture: cameras and classes above, the frame's voxels and the map below, both seen from behind the robot.

    Args:
        fused: in the world frame.
        world_from_ego: (4, 4) at the frame's stamp.
    """
    rows = camera_rows(sorted(images))
    tile_w = WIDTH // len(rows[0])
    views = [
        _view(predicted, np.eye(4), "predicted from these images"),
        _view(fused, world_from_ego, "predictions fused along the drive"),
    ]
    parts = [mosaic(images, rows, (tile_w, tile_w * 9 // 16)), np.concatenate(views, axis=1), legend(predicted, WIDTH)]
    return np.concatenate(parts)


def _view(occupancy: Occupancy, grid_from_ego: np.ndarray, name: str) -> np.ndarray:
    """The voxels and the robot among them, seen from behind it; the picture's up is the grid's z."""
    size = (WIDTH // 2, VIEW_HEIGHT)
    at_m, towards_m = apply(grid_from_ego, np.array([EYE_EGO_M, TOWARDS_EGO_M]))
    eye = Eye(at_m, towards_m)
    image = in_perspective(occupancy, size, eye)
    pixels, _ = projected(apply(grid_from_ego, ARROW_EGO_M), eye, size)
    arrow = np.round(pixels * 16).astype(np.int32)
    cv2.fillPoly(image, [arrow], INK_RGB, cv2.LINE_AA, 4)
    cv2.polylines(image, [arrow], True, BACKGROUND_RGB, 1, cv2.LINE_AA, 4)
    return captioned(image, name)
