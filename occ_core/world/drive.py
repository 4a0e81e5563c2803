"""The drive of the ego vehicle: its speed over time, and its pose on the road."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occ_core.world.actors import Trajectory
from occ_core.world.ground import Ground
from occ_core.world.roads import RIGHT, Road

STEP_S = 0.05
MARGIN_S = 3.0  # the drive is known this long before and after the scene
WHEELBASE_M, TRACK_M = 2.6, 1.6
BRAKE_M_S2, START_M_S2 = 2.2, 1.8


@dataclass(frozen=True, eq=False)
class DriveProfile:
    """Stations of the ego's rear axle: as driven, and as they would be without the halt."""

    times_s: np.ndarray
    station_m: np.ndarray
    free_station_m: np.ndarray
    halt_station_m: float | None

    def station_at(self, t_s) -> np.ndarray:
        return np.interp(t_s, self.times_s, self.station_m)

    def free_station_at(self, t_s) -> np.ndarray:
        return np.interp(t_s, self.times_s, self.free_station_m)


def plan_drive(rng: np.random.Generator, duration_s: float) -> DriveProfile:
    """5..12 m/s with slow changes; in a third of the drives a halt of some seconds, as at a red light."""
    times = np.arange(-MARGIN_S, duration_s + MARGIN_S + STEP_S / 2, STEP_S)
    speed = rng.uniform(6, 11.0) + rng.uniform(0.2, 1.0) * np.sin(times / rng.uniform(2, 4) + rng.uniform(0, 6))
    free = np.cumsum(speed) * STEP_S
    free -= np.interp(0.0, times, free)
    if duration_s < 12 or rng.random() > 0.35:
        return DriveProfile(times, free, free, None)
    stop, wait = rng.uniform(5.0, duration_s - 5.0), rng.uniform(2.0, 4.0)
    limit = np.maximum(np.maximum((stop - times) * BRAKE_M_S2, (times - stop - wait) * START_M_S2), 0.0)
    station = np.cumsum(np.minimum(speed, limit)) * STEP_S
    station -= np.interp(0.0, times, station)
    # The free drive is the same up to the braking, so that whoever drives ahead never falls back.
    ahead = free - free[0] + station[0]
    return DriveProfile(times, station, ahead, float(np.interp(stop + wait / 2, times, station)))


def ego_trajectory(drive: DriveProfile, road: Road, ground: Ground, lane: int) -> Trajectory:
    """Poses of the ego frame: on the ground below the middle of the rear axle, x forward."""
    offset = road.lane_offset_m(RIGHT, lane)
    rear = road.curve.point(drive.station_m, offset)
    yaw = road.curve.heading_at(drive.station_m)
    forward = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    poses = ground.poses_on(rear + forward * WHEELBASE_M / 2, yaw, WHEELBASE_M, TRACK_M)
    poses[:, :3, 3] -= poses[:, :3, 0] * WHEELBASE_M / 2
    return Trajectory(drive.times_s, poses)
