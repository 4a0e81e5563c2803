"""Targets of the ray losses: what each feature pixel's viewing ray meets first in a labelled grid."""

from __future__ import annotations

import numpy as np

from occ_core.camera import Rig
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.table import feature_rays
from occ_core.network_input.preprocess import Preprocess
from occ_core.taxonomy import UNLABELED

UNSEEN_ALLOWED_M = 0.6  # rays of label and of pixel differ: a short unobserved stretch says nothing


def ray_targets(
    labels: np.ndarray, rig: Rig, config: EasyOccConfig, step_m: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Run `march` along the rays of every feature pixel of a rig's cameras; returns depth bin and class, uint8 (N, h,
    w) each."""
    preprocess = Preprocess(config.input_width, config.input_height)
    cameras = [preprocess.camera(camera) for camera in rig]
    found = [march(labels, c.ego_from_cam[:3, 3], feature_rays(c, config), config, step_m) for c in cameras]
    depth, classes = (np.stack(maps) for maps in zip(*found, strict=True))
    return depth, classes


def march(
    labels: np.ndarray, origin_ego_m: np.ndarray, directions: np.ndarray, config: EasyOccConfig, step_m: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """March along rays through the labels, as far as cells were observed.

    Args:
        labels: uint8 (X, Y, Z), UNLABELED where unobserved.
        origin_ego_m: (3,), where all rays begin. directions: (h, w, 3), unit vectors in the ego frame.

    Returns:
        depth bin uint8 (h, w): where the first occupied cell is met, `depth_bins` if the ray leaves the grid free,
        UNLABELED if it gets lost in unobserved cells; class uint8 (h, w): of that cell, 255 where none was met.
    """
    h, w = directions.shape[:2]
    grid, free = config.grid, config.classes.free_id
    distance_m = np.arange(config.depth_edges_m[0], config.depth_edges_m[-1], step_m)
    starts = (np.asarray(origin_ego_m) - grid.origin_m) / grid.voxel_size_m
    ways = (directions.reshape(-1, 3).T / grid.voxel_size_m).astype(np.float32)  # in cells: single precision will do
    cell = np.zeros((h * w, len(distance_m)), dtype=np.int32)
    inside = np.ones(cell.shape, dtype=np.bool_)
    for start, way, n in zip(starts.astype(np.float32), ways, grid.shape, strict=True):
        at = np.floor(start + way[:, None] * distance_m.astype(np.float32)).astype(np.int32)
        inside &= at.view(np.uint32) < n  # negative ones are large
        cell = cell * n + at
    met = np.where(inside, labels.reshape(-1).take(cell, mode="clip"), np.uint8(free))
    unseen = met == UNLABELED
    occupied = (met != free) & ~unseen
    hits = occupied.any(axis=1)
    first = np.where(hits, occupied.argmax(axis=1), len(distance_m) - 1)
    before = (unseen & (np.arange(len(distance_m)) <= first[:, None])).sum(axis=1)
    lost = before * step_m > UNSEEN_ALLOWED_M
    bins = np.searchsorted(config.depth_edges_m, distance_m[first], "right") - 1
    depth = np.where(lost, UNLABELED, np.where(hits, bins, config.depth_bins)).astype(np.uint8)
    classes = np.full(h * w, UNLABELED, dtype=np.uint8)
    seen = np.flatnonzero(hits & ~lost)
    classes[seen] = met[seen, first[seen]]
    return depth.reshape(h, w), classes.reshape(h, w)
