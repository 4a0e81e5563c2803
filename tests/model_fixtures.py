"""A small network, a small rig and hand-made scenes for the tests of models, training and inference."""

from __future__ import annotations

import math

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.models.easyocc.config import EasyOccConfig

SMALL = EasyOccConfig(
    name="small",
    grid_origin_m=(-16.0, -16.0, -1.0),
    voxel_size_m=0.8,
    grid_shape=(40, 40, 8),
    input_width=128,
    input_height=64,
    depth_bins=16,
    depth_m=(1.0, 30.0),
    feature_channels=8,
    pillar_heights=4,
    neck_channels=16,
    bev_channels=(16, 24, 24),
    head_channels=24,
)

COARSE_NANO = SMALL.model_copy(
    update={"grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 5.0, "grid_shape": (16, 16, 2), "pillar_heights": 2}
)


def camera(name: str, yaw_deg: float, size=(320, 180), focal_px=200.0, at=(0.5, 0.1, 1.5), **lens) -> Camera:
    yaw = math.radians(yaw_deg)
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3] = turn @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # optical axes in a level body
    ego_from_cam[:3, 3] = at
    k = np.array([[focal_px, 0, (size[0] - 1) / 2], [0, focal_px, (size[1] - 1) / 2], [0, 0, 1]])
    return Camera(name, k, size, ego_from_cam, **lens)


def ring_rig(size=(320, 180)) -> Rig:
    """Four cameras around the car, with overlapping views."""
    return Rig(tuple(camera(name, yaw, size) for name, yaw in (("f", 0), ("l", 75), ("b", 180), ("r", -80))))
