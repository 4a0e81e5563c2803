"""Makes the LiDAR input of networks, for training and prediction alike: one cloud in the ego frame of one time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.frame import FULL_INTENSITY, LidarSweep
from occ_core.geometry import apply, inverse

COLUMNS = ("x_m", "y_m", "z_m", "intensity", "age_s")
MIN_RANGE_M = 1.0  # nearer points are the vehicle itself, or beams without a return
OWN_BODY_M = 3.0  # where points are judged by: nearer returns may be of the own vehicle, which no label holds


def lidar_points(
    sweeps: Sequence[LidarSweep],
    stamp_ns: int,
    world_from_ego: np.ndarray,  # (4, 4) at stamp_ns
    limit: int,
) -> np.ndarray:
    """Bring sweeps into the ego frame at `stamp_ns`, each by its own pose.

    Points within MIN_RANGE_M of their sensor are left out. A newest sweep without others is no cloud: older ones never
    stand in for it. Of more than `limit`, as many are kept, drawn alike over the whole cloud and always the same ones:
    every n-th would be every n-th beam.

    Args:
        sweeps: in any order, none at all included.
        limit: points at most.

    Returns:
        float32 (P, 5), by COLUMNS: x, y, z in metres in the ego frame at `stamp_ns`; intensity 0..1; age in seconds,
        0 of a sweep later than `stamp_ns`.

    Raises:
        InvalidInput: a point is not finite; says of which sweep.
    """
    clouds = [_in_ego(sweep, stamp_ns, inverse(world_from_ego)) for sweep in sweeps]
    stamps = [sweep.stamp_ns for sweep in sweeps]
    if not clouds or not len(clouds[stamps.index(max(stamps))]):
        return np.zeros((0, len(COLUMNS)), dtype=np.float32)
    points = np.concatenate(clouds)
    if len(points) <= limit:
        return points
    return points[np.sort(np.random.default_rng(0).choice(len(points), limit, replace=False))]


def absent_points() -> np.ndarray:
    """What a network that takes a cloud is given if there is none, float32 (1, 5): a row of padding."""
    return np.full((1, len(COLUMNS)), np.nan, dtype=np.float32)


def require_finite(points_m: np.ndarray, what: str) -> None:
    """Refuse a sweep with NaN or infinity among its points (N, 3).

    Raises:
        InvalidInput: `what`, and how many.
    """
    if lost := int((~np.isfinite(points_m).all(axis=1)).sum()):
        raise InvalidInput(f"{what}: {lost} of {len(points_m)} points are not finite")


def _in_ego(sweep: LidarSweep, stamp_ns: int, ego_from_world: np.ndarray) -> np.ndarray:
    """One sweep as float32 (N, 5)."""
    require_finite(sweep.points_lidar_m, f"LiDAR sweep at {sweep.stamp_ns} ns")
    far = np.linalg.norm(sweep.points_lidar_m, axis=1) >= MIN_RANGE_M
    points = np.empty((int(far.sum()), len(COLUMNS)), dtype=np.float32)
    ego_from_lidar = ego_from_world @ sweep.world_from_ego @ sweep.ego_from_lidar
    points[:, :3] = apply(ego_from_lidar, sweep.points_lidar_m[far].astype(np.float64))
    points[:, 3] = np.clip(np.nan_to_num(sweep.intensity[far]) / FULL_INTENSITY, 0, 1)
    points[:, 4] = max(0, stamp_ns - sweep.stamp_ns) / 1e9
    return points
