"""Scenes as EasyOcc nano's training reads them, made by hand."""

from __future__ import annotations

import numpy as np
from model_fixtures import SMALL, ring_rig

from occ_core.geometry import pose
from occ_core.models.easyocc.table import build_table
from occ_core.taxonomy import OCC3D
from occ_core.training.cache import SceneCache
from occ_core.training.rays import ray_targets

ROAD, CAR, WALL, FREE, UNSEEN = OCC3D.id_of("driveable_surface"), OCC3D.id_of("car"), OCC3D.id_of("manmade"), 17, 255
PERIOD_NS = 500_000_000


def hand_made(name: str, samples: int = 3, seed: int = 0) -> SceneCache:
    """Images whose brightness tells how far the wall ahead is, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rig = ring_rig()
    table = build_table(rig, SMALL)
    labels = np.full((samples, *SMALL.grid_shape), FREE, dtype=np.uint8)
    labels[..., 1] = ROAD
    images = rng.integers(0, 60, (samples, 4, 64, 128, 3), dtype=np.uint8)
    for i in range(samples):
        x = int(rng.integers(24, 38))
        labels[i, x:, :, 1:] = WALL
        labels[i, 22, 10 + i, 2] = CAR
        images[i] += np.uint8(5 * x)
    labels[:, :, :2] = UNSEEN
    rays = [ray_targets(label, rig, SMALL) for label in labels]
    depth, classes = (np.stack(part) for part in zip(*rays, strict=True))
    arrays = {"images": images, "present": np.ones((samples, 4), dtype=bool), "labels": labels, "depth": depth}
    arrays |= {"pixel_class": classes, "rig": np.zeros(samples, dtype=np.int64)}
    arrays |= {"stamp_ns": 10**18 + np.arange(samples) * PERIOD_NS, "world_from_ego": driven(samples)}
    arrays |= {key: value[None] for key, value in vars(table).items()}
    arrays |= {"origins_ego_m": np.stack([camera.ego_from_cam[:3, 3] for camera in rig])[None]}
    arrays |= {"own": np.zeros((1, 4, *SMALL.feature_size[::-1]), dtype=bool)}
    return SceneCache(name, [f"{name}-{i}" for i in range(samples)], arrays.__getitem__)


def driven(samples: int) -> np.ndarray:
    """world_from_ego (S, 4, 4) of a slow bend to the left, from somewhere in the world."""
    start = pose((100.0, -50.0, 0.0), (np.cos(0.6), 0.0, 0.0, np.sin(0.6)))
    step = pose((1.6, 0.0, 0.0), (np.cos(0.05), 0.0, 0.0, np.sin(0.05)))
    return np.stack([start @ np.linalg.matrix_power(step, i) for i in range(samples)])
