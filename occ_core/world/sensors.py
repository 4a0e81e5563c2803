"""The sensors of nuScenes' car, six cameras and a spinning LiDAR, and when sensors of any robot fire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.geometry import Array

KEYFRAME_S = 0.5
CAMERA_PER_KEYFRAME = 6  # 12 Hz
LIDAR_PER_KEYFRAME = 10  # 20 Hz
FULL_SIZE = (1600, 900)

# Mounting (x, y, z metres), yaw in degrees (left positive), focal length in px at 1600 x 900, and how long before the
# LiDAR stamp the camera fires, in microseconds: the sweep passes the cameras one by one (as measured in scene-0061).
CAMERAS = {
    "CAM_FRONT": ((1.70, 0.016, 1.51), 0.3, 1266.0, 35491),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -56.0, 1261.0, 27612),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.5, 1272.0, 43107),
    "CAM_BACK": ((0.03, 0.003, 1.58), 179.7, 809.0, 10426),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.58), 108.5, 1257.0, 528),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -109.5, 1260.0, 20058),
}
NUMBERED = tuple(f"CAM_{i}" for i in range(8))  # cameras of random rigs
LIDAR = "LIDAR_TOP"
LIDAR_EGO_M = (0.94, 0.0, 1.84)
BEAMS, AZIMUTHS = 32, 1084
ELEVATION_DEG = (-30.67, 10.67)
LIDAR_MAX_M, LIDAR_MIN_M = 100.0, 1.5


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Rotation about z, then y, then x, radians."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return about_z @ about_y @ about_x


def mounted(position_m: Sequence[float] | Array, yaw_pitch_roll: Array) -> Array:
    """ego_from_cam (4, 4) of a camera that looks along x when not turned; radians, pitch down positive."""
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3] = _rotation(*yaw_pitch_roll) @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    ego_from_cam[:3, 3] = position_m
    return ego_from_cam


def nuscenes_rig(size: tuple[int, int], seed: int) -> Rig:
    """Six cameras around the car; each `seed` is another car, calibrated slightly differently.

    Args:
        size: (width, height) px of the images. Another aspect than 16:9 cuts off the top, as users of nuScenes do.
    """
    rng = np.random.default_rng((seed, 101))
    cameras = []
    for name, (position, yaw_deg, focal, _) in CAMERAS.items():
        turn = np.radians([yaw_deg, 0.6, 0.0] + rng.normal(0, (0.5, 0.4, 0.3)))
        ego_from_cam = mounted(position + rng.normal(0, 0.008, 3), turn)
        f = focal * (1 + rng.normal(0, 0.004))
        cx, cy = np.array([810.0, 487.0]) + rng.normal(0, 8, 2)
        full = Camera(name, np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]]), FULL_SIZE, ego_from_cam)
        height = round(size[0] * FULL_SIZE[1] / FULL_SIZE[0])
        scaled = full.resized((size[0], height))
        cameras.append(scaled if height == size[1] else scaled.cropped(0, height - size[1], size))
    return Rig(tuple(cameras))


def ego_from_lidar(seed: int, position_m: Sequence[float] | Array = LIDAR_EGO_M) -> Array:
    """Pose of the LiDAR (x right, y forward, z up) on the robot, (4, 4)."""
    rng = np.random.default_rng((seed, 102))
    matrix = np.eye(4)
    tilt = np.radians(rng.normal(0, 0.4, 3))
    matrix[:3, :3] = _rotation(*tilt) @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    matrix[:3, 3] = position_m + rng.normal(0, 0.005, 3)
    return matrix


def lidar_directions() -> tuple[Array, Array]:
    """Unit directions float64 (BEAMS * AZIMUTHS, 3) in the LiDAR frame, azimuth by azimuth, and beam number int32."""
    elevation = np.radians(np.linspace(*ELEVATION_DEG, BEAMS))
    # The sweep starts behind the car's left and turns clockwise seen from above, as a Velodyne on nuScenes' car does.
    azimuth = np.radians(-np.arange(AZIMUTHS) * 360.0 / AZIMUTHS - 90.0)
    a, e = np.meshgrid(azimuth, elevation, indexing="ij")
    directions = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=-1).reshape(-1, 3)
    return directions, np.tile(np.arange(BEAMS, dtype=np.int32), AZIMUTHS)


def start_s() -> float:
    """City time of the first keyframe: late enough that no camera fires before time 0."""
    return 0.1


def camera_stamps_us(
    lag_us: int, keyframes: int, sweeps: bool, per_keyframe: int = CAMERA_PER_KEYFRAME
) -> list[tuple[int, int, bool]]:
    """For one camera's images in order: (stamp from time 0 in microseconds, its keyframe, whether it is a keyframe).

    Args:
        lag_us: how long before the LiDAR stamp it fires.
        per_keyframe: images from one keyframe to the next, with `sweeps`.
    """
    stamps = []
    for k in range(keyframes):
        at = round((start_s() + k * KEYFRAME_S) * 1e6) - lag_us
        if sweeps and k:
            stamps += _between(at, k, per_keyframe)
        stamps.append((at, k, True))
    return stamps


def lidar_stamps_us(keyframes: int, sweeps: bool) -> list[tuple[int, int, bool]]:
    """The same as `camera_stamps_us`, for the LiDAR."""
    stamps = []
    for k in range(keyframes):
        at = round((start_s() + k * KEYFRAME_S) * 1e6)
        if sweeps and k:
            stamps += _between(at, k, LIDAR_PER_KEYFRAME)
        stamps.append((at, k, True))
    return stamps


def _between(at_us: int, keyframe: int, per_keyframe: int) -> list[tuple[int, int, bool]]:
    """Stamps of the sweeps since the last keyframe; they belong to the keyframe that follows them."""
    step = KEYFRAME_S * 1e6 / per_keyframe
    return [(at_us - round(step * i), keyframe, False) for i in range(per_keyframe - 1, 0, -1)]
