"""Class and depth of pixels as colours, by themselves or laid over their image; RGB uint8."""

from __future__ import annotations

import cv2
import numpy as np

from occ_core.taxonomy import OCC3D, Taxonomy

SKY_RGB = (170, 205, 235)
UNKNOWN_RGB = (128, 128, 128)
FAR_M = 80.0
COVER = 0.65  # of a colour laid over an image


def color_classes(class_id: np.ndarray, taxonomy: Taxonomy = OCC3D) -> np.ndarray:
    """uint8 (h, w, 3) in the colours of the taxonomy; its free class is the sky, ids outside it are grey."""
    palette = np.full((256, 3), UNKNOWN_RGB, dtype=np.uint8)
    palette[: len(taxonomy)] = taxonomy.palette
    palette[taxonomy.free_id] = SKY_RGB
    return palette[class_id]


def color_depth(depth_m: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3), near is bright; the sky (inf) and unknown depths (NaN) are black."""
    finite = np.isfinite(depth_m)
    near = 1 - np.log1p(np.clip(np.where(finite, depth_m, FAR_M), 0, FAR_M)) / np.log1p(FAR_M)
    image = cv2.applyColorMap((255 * near).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1].copy()
    image[~finite] = 0
    return image


def over_image(image: np.ndarray, colors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Colours laid over an image where they mean something.

    Args:
        image: uint8 (H, W, 3).
        colors: uint8 (h, w, 3), stretched to the image's size.
        known: bool (h, w).
    """
    size = (image.shape[1], image.shape[0])
    colors = cv2.resize(colors, size, interpolation=cv2.INTER_NEAREST)
    share = COVER * cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)[:, :, None]
    return (share * colors + (1 - share) * image).astype(np.uint8)
