"""Rendered depth beside the truth: one row a camera."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from occ_core.evaluation.depth import RenderedView

NEAR_M, FAR_M = 2.0, 60.0
WIDTH_PX = 420  # of each of the three pictures in a row


def depth_picture(views: Sequence[RenderedView]) -> np.ndarray:
    """Image, rendered depth and true depth of each camera; near is red, far is blue.

    Returns:
        RGB uint8 (h, w, 3).
    """
    return np.concatenate([_row(view) for view in views])


def _row(view: RenderedView) -> np.ndarray:
    height = round(WIDTH_PX * view.image.shape[0] / view.image.shape[1])
    size = (WIDTH_PX, height)
    image = cv2.resize(view.image, size, interpolation=cv2.INTER_LINEAR)
    rendered = colored(cv2.resize(view.depth_m, size, interpolation=cv2.INTER_NEAREST))
    truth = image // 3
    scale = np.array(size) / (view.image.shape[1], view.image.shape[0])
    order = np.argsort(-view.truth_m)  # near ones over far ones
    for (x, y), color in zip((view.pixels[order] + 0.5) * scale, colored(view.truth_m[order]), strict=True):
        cv2.circle(truth, (int(x), int(y)), 2, color.tolist(), -1)
    return np.concatenate([image, rendered, truth], axis=1)


def colored(depth_m: np.ndarray) -> np.ndarray:
    """RGB uint8 (..., 3) of depths (...), even steps of inverse depth."""
    inverse = (1 / np.clip(depth_m, NEAR_M, FAR_M) - 1 / FAR_M) / (1 / NEAR_M - 1 / FAR_M)
    levels = np.rint(255 * np.nan_to_num(inverse) ** 0.5).astype(np.uint8)
    flat = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return flat.reshape(*levels.shape, 3)
