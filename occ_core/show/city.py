"""A picture of one simulated keyframe: what the cameras saw, beside the exact classes, depths and voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import InvalidInput
from occ_core.images import read_rgb
from occ_core.occupancy import load_occ3d
from occ_core.show.maps import color_classes, color_depth
from occ_core.show.pictures import camera_rows, from_above, legend, mosaic
from occ_core.show.solids import in_perspective
from occ_core.world.saved import keyframes, load_truth


def sheet(out: Path, scene: str | None, sample: int) -> np.ndarray:
    """One picture, uint8 (h, w, 3), of keyframe number `sample` of a scene (default: the first)."""
    found = [entry for entry in keyframes(out) if scene is None or entry[0] == scene]
    found = [entry for entry in found if entry[0] == found[0][0]]
    if not found:
        raise InvalidInput(f"{out} has no scene '{scene}'")
    if not 0 <= sample < len(found):
        raise InvalidInput(f"--sample must be 0..{len(found) - 1} for {found[0][0]}, got {sample}")
    name, token, files = found[sample]
    images, classes, depths = {}, {}, {}
    for channel, path in files.items():
        images[channel] = read_rgb(path)
        depth_m, class_id = load_truth(out, name, token, channel)
        classes[channel], depths[channel] = color_classes(class_id), color_depth(depth_m)
    occupancy = load_occ3d(out / "gts" / name / token / "labels.npz")
    width, rows = 1920, camera_rows(sorted(images))
    aspect = min(h / w for h, w, _ in (image.shape for image in images.values()))
    tile, small = (640, round(640 * aspect)), (320, round(320 * aspect))
    truth = np.concatenate([_filled(mosaic(maps, rows, small), width // 2) for maps in (classes, depths)], axis=1)
    voxels = np.full((480, width, 3), 250, dtype=np.uint8)
    above = from_above(replace(occupancy, observed=np.ones_like(occupancy.observed)))
    voxels[40:440, 40 : 40 + above.shape[1]] = above
    voxels[:, 560:1360] = in_perspective(occupancy, (800, 480), with_hidden=True)
    both = cv2.resize(_masks(occupancy), (400, 400), interpolation=cv2.INTER_NEAREST)
    voxels[40:440, 1440:1840] = both
    return np.concatenate([_filled(mosaic(images, rows, tile), width), truth, voxels, legend(occupancy, width)])


def _filled(picture: np.ndarray, width: int) -> np.ndarray:
    """White to the right of what is narrower."""
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=250)


def _masks(occupancy) -> np.ndarray:
    """From above: what share of each column was observed by cameras (red) and by LiDAR (green)."""
    image = np.zeros((*occupancy.grid.shape[:2], 3), dtype=np.uint8)
    image[..., 0] = 255 * occupancy.observed.mean(axis=2)
    if occupancy.mask_lidar is not None:
        image[..., 1] = 255 * occupancy.mask_lidar.mean(axis=2)
    return image[::-1, ::-1].copy()
