"""How the vehicle moves in a bag: one pose a stamp, and velocities."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from occ_core.geometry import inverse
from occ_core.sources.nuscenes_tables import SensorRecord

TWIST_SPAN_NS = 50_000_000
"""Velocities come from poses at least this far before and after: closer ones show the rounding of the poses."""


def one_pose_a_stamp(records: list[SensorRecord]) -> list[SensorRecord]:
    """The same records; where sensors of one stamp have different ego poses, some stamps moved by a few nanoseconds.

    /tf holds one pose a stamp, and data sets give stamps in microseconds: below them is room. A LiDAR keeps its stamp,
    which is its sample's too.
    """
    groups: dict[int, list[np.ndarray]] = {}
    moved = []
    for record in sorted(records, key=lambda record: record.modality != "lidar"):
        poses = groups.setdefault(record.stamp_ns, [])
        which = next((k for k, pose in enumerate(poses) if np.abs(pose - record.world_from_ego)[:3].max() < 1e-9), None)
        if which is None:
            which = len(poses)
            poses.append(record.world_from_ego)
        moved.append(replace(record, stamp_ns=record.stamp_ns + which))
    return sorted(moved, key=lambda record: (record.stamp_ns, record.channel))


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
