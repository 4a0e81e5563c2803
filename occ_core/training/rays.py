"""What each feature pixel's viewing ray meets first in a labelled grid: targets of the ray losses."""

from __future__ import annotations

import numpy as np

from occ_core.camera import Rig
from occ_core.inference.preprocess import Preprocess
from occ_core.inference.table import feature_rays
from occ_core.losses.ray import IGNORE
from occ_core.models.easyocc.config import EasyOccConfig

UNSEEN_ALLOWED_M = 0.6  # rays of label and of pixel differ: a short unobserved stretch says nothing


def ray_targets(
    labels: np.ndarray, rig: Rig, config: EasyOccConfig, step_m: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """March along every feature pixel's ray through the labels, as far as they were observed.

    Args:
        labels: uint8 (X, Y, Z), 255 where unobserved.

    Returns:
        depth bin uint8 (N, h, w): where the first occupied cell is met, `depth_bins` if the ray leaves the grid free,
        255 if it gets lost in unobserved cells; class uint8 (N, h, w): of that cell, 255 where none was met.
    """
    preprocess = Preprocess(config.input_width, config.input_height)
    w, h = config.feature_size
    far = config.depth_edges_m[-1]
    distance_m = np.arange(config.depth_edges_m[0], far, step_m)
    depth = np.full((len(rig), h * w), IGNORE, dtype=np.uint8)
    classes = np.full((len(rig), h * w), IGNORE, dtype=np.uint8)
    free = config.classes.free_id
    for i, camera in enumerate(rig):
        rays = feature_rays(preprocess.camera(camera), config).reshape(-1, 1, 3)
        points = camera.ego_from_cam[:3, 3] + rays * distance_m[:, None]
        index, inside = config.grid.index_of(points.reshape(-1, 3))
        met = np.full(len(index), free, dtype=np.uint8)
        met[inside] = labels[tuple(index[inside].T)]
        met = met.reshape(h * w, -1)
        occupied = (met != free) & (met != IGNORE)
        hits = occupied.any(axis=1)
        first = np.where(hits, occupied.argmax(axis=1), met.shape[1])
        unseen = np.cumsum(met == IGNORE, axis=1)
        before = unseen[np.arange(len(first)), np.minimum(first, met.shape[1] - 1)]
        lost = before * step_m > UNSEEN_ALLOWED_M
        bins = np.searchsorted(config.depth_edges_m, distance_m[np.minimum(first, len(distance_m) - 1)], "right") - 1
        depth[i] = np.where(lost, IGNORE, np.where(hits, bins, config.depth_bins))
        seen = hits & ~lost
        classes[i, seen] = met[seen, first[seen]]
    return depth.reshape(len(rig), h, w), classes.reshape(len(rig), h, w)
