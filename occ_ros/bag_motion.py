"""How the vehicle moves in a bag: one pose a stamp, and velocities."""

from __future__ import annotations

import cv2
import numpy as np

from occ_core.geometry import inverse
from occ_core.sources.nuscenes_tables import SensorRecord

TWIST_SPAN_NS = 50_000_000
"""Velocities come from poses at least this far before and after: closer ones show the rounding of the poses."""


def one_pose_a_stamp(records: list[SensorRecord]) -> tuple[dict[int, np.ndarray], float]:
    """stamp_ns -> world_from_ego, and how far (m) poses of one stamp are apart: /tf can hold one pose a stamp only."""
    found: dict[int, list[np.ndarray]] = {}
    for record in records:
        found.setdefault(record.stamp_ns, []).append(record.world_from_ego)
    poses, apart_m = {}, 0.0
    for stamp_ns, several in found.items():
        spread = max(float(np.abs(other - several[0])[:3].max()) for other in several)
        poses[stamp_ns] = several[0] if spread < 1e-9 else _mean_pose(several)
        apart_m = max(apart_m, *(float(np.linalg.norm((other - several[0])[:3, 3])) for other in several))
    return poses, apart_m


def _mean_pose(several: list[np.ndarray]) -> np.ndarray:
    mean = np.mean(several, axis=0)
    u, _, vt = np.linalg.svd(mean[:3, :3])
    mean[:3, :3] = u @ vt  # nearest rotation: the chordal mean
    return mean


def velocities_of(poses: dict[int, np.ndarray]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(linear m/s, angular rad/s) in base_link at each stamp, by finite differences of the poses around it."""
    stamps = np.array(sorted(poses))
    velocities = {}
    for stamp_ns in stamps.tolist():
        before = int(stamps[max(np.searchsorted(stamps, stamp_ns - TWIST_SPAN_NS, side="right") - 1, 0)])
        after = int(stamps[min(np.searchsorted(stamps, stamp_ns + TWIST_SPAN_NS), len(stamps) - 1)])
        if before == after:
            velocities[stamp_ns] = (np.zeros(3), np.zeros(3))
            continue
        seconds = (after - before) / 1e9
        start, end = poses[before], poses[after]
        linear = poses[stamp_ns][:3, :3].T @ (end[:3, 3] - start[:3, 3]) / seconds
        turned = (inverse(start) @ end)[:3, :3]
        velocities[stamp_ns] = (linear, cv2.Rodrigues(turned)[0].reshape(3) / seconds)
    return velocities
