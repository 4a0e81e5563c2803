"""The motion of the vehicle in a bag: one pose for each stamp, and velocities."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from occ_core.geometry import inverse
from occ_core.sources.nuscenes_tables import SensorRecord

SAME_POSE = 1e-6  # metres, and entries of the rotation: closer than any sensor knows
TWIST_SPAN_NS = 50_000_000
"""Velocities come from poses at least this far before and after: closer ones show the rounding of the poses."""


def one_pose_a_stamp(records: list[SensorRecord]) -> list[SensorRecord]:
    """Return the records; where sensors of one stamp have different ego poses, some stamps are moved by a few
    nanoseconds.

    /tf holds one pose a stamp, and data sets give stamps in microseconds: below them is room. The first LiDAR keeps its
    stamp, which is its sample's too.
    """
    groups: dict[int, list[np.ndarray]] = {}
    moved = []
    for record in sorted(records, key=lambda record: record.modality != "lidar"):
        poses = groups.setdefault(record.stamp_ns, [])
        same = (np.abs(pose - record.world_from_ego)[:3].max() < SAME_POSE for pose in poses)
        which = next((k for k, is_same in enumerate(same) if is_same), None)
        if which is None:
            which = len(poses)
            poses.append(record.world_from_ego)
        moved.append(replace(record, stamp_ns=record.stamp_ns + which))
    return sorted(moved, key=lambda record: (record.stamp_ns, record.channel))


def velocities_of(poses: dict[int, np.ndarray]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(linear m/s, angular rad/s) in base_link at each stamp, by finite differences of the poses around it."""
    # Stamps between microseconds are of other sensors at the same time, see one_pose_a_stamp.
    stamps = np.array(sorted(stamp_ns for stamp_ns in poses if stamp_ns % 1000 == 0))
    velocities = {}
    for stamp_ns in poses:
        before = int(stamps[max(int(np.searchsorted(stamps, stamp_ns - TWIST_SPAN_NS, side="right")) - 1, 0)])
        after = int(stamps[min(int(np.searchsorted(stamps, stamp_ns + TWIST_SPAN_NS)), len(stamps) - 1)])
        if after - before < TWIST_SPAN_NS:
            velocities[stamp_ns] = (np.zeros(3), np.zeros(3))
            continue
        seconds = (after - before) / 1e9
        start, end = poses[before], poses[after]
        linear = poses[stamp_ns][:3, :3].T @ (end[:3, 3] - start[:3, 3]) / seconds
        turned = (inverse(start) @ end)[:3, :3]
        velocities[stamp_ns] = (linear, cv2.Rodrigues(turned)[0].reshape(3) / seconds)
    return velocities
