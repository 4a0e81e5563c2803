"""State of the LiDAR input, and what is wrong with it in one sentence, the most specific cause first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from occ_ros.cameras import ERROR, FUTURE_NS, PROFILE, WARN, Surroundings

CLOUD_TYPE = "PointCloud2"


@dataclass
class LidarTopic:
    """The LiDAR as the node sees it.

    Attributes:
        received, rejected: sweeps that came, and those that could not be used.
        joined: answers that a sweep was part of.
        sweep_error: why the last sweep could not be used; empty if it could.
        apart: why none of the sweeps belongs to the last set of images; empty if one did.
        transform_error: why the last sweep could not be placed in the base frame; empty if it could.
        odometry_error: why past sweeps could not be brought to the present; empty if they could, or none was asked.
        arrival_s: when the last sweep came (monotonic clock).
        stamp_ns: of the last sweep.
        age_ns: of the last sweep when it came, by the node's clock.
    """

    topic: str
    received: int = 0
    rejected: int = 0
    joined: int = 0
    sweep_error: str = ""
    apart: str = ""
    transform_error: str = ""
    odometry_error: str = ""
    arrival_s: float | None = None
    stamp_ns: int = 0
    age_ns: int = 0

    def came(self, stamp_ns: int, clock_ns: int, now_s: float) -> None:
        """A sweep came, at `clock_ns` of the node's clock (0: it stands still) and `now_s` of a monotonic one."""
        self.received += 1
        self.arrival_s, self.stamp_ns = now_s, stamp_ns
        self.age_ns = clock_ns - stamp_ns

    def reject(self, why: str) -> None:
        """The last sweep cannot be used."""
        self.rejected += 1
        self.sweep_error = why

    def forget(self) -> None:
        """Nobody asks what the LiDAR sees, so what was wrong at the last time need not be true any more."""
        self.sweep_error = self.apart = self.transform_error = self.odometry_error = ""

    def silent_s(self, now_s: float) -> float:
        """Time since the last sweep; infinite before the first."""
        return np.inf if self.arrival_s is None else now_s - self.arrival_s


def lidar_problems(lidar: LidarTopic, around: Surroundings) -> list[tuple[int, str]]:
    """(diagnostic level, one sentence) of all that is wrong; errors first, among them the most specific first."""
    found = [*_connection(lidar, around), *_sweeps(lidar, around)]
    if lidar.transform_error:
        found.append((ERROR, lidar.transform_error))
    if lidar.odometry_error:
        found.append((WARN, f"only the newest sweep is used: {lidar.odometry_error}"))
    return sorted(found, key=lambda problem: -problem[0])  # stable


def _connection(lidar: LidarTopic, around: Surroundings) -> Iterator[tuple[int, str]]:
    topic, silent_s = lidar.topic, lidar.silent_s(around.now_s)
    if silent_s <= around.stale_s:
        return
    if not around.types and lidar.arrival_s is None:
        yield ERROR, f"no publisher on {topic}"
    elif around.types and CLOUD_TYPE not in around.types:
        yield ERROR, f"{topic} has type {', '.join(sorted(around.types))}, not {CLOUD_TYPE}"
    elif around.reliable_only:
        yield ERROR, f"{topic} is published best effort, the node asks for reliable: set image_reliability:=best_effort"
    elif lidar.arrival_s is None:
        yield ERROR, f"no sweep on {topic}, though it has a publisher: is the LiDAR running?"
    else:
        why = "its publisher is silent, or its sweeps get lost" if around.types else "its publisher is gone"
        yield WARN, f"no sweep for {silent_s:.1f} s (limit {around.stale_s} s): {why}"


def _sweeps(lidar: LidarTopic, around: Surroundings) -> Iterator[tuple[int, str]]:
    if lidar.arrival_s is None:
        return
    alive = lidar.silent_s(around.now_s) <= around.stale_s
    if lidar.sweep_error:
        yield ERROR, f"sweep rejected: {lidar.sweep_error}"
    elif lidar.apart and alive:
        yield ERROR, lidar.apart
    if lidar.age_ns < -FUTURE_NS and alive:
        yield WARN, f"stamps are {-lidar.age_ns / 1e9:.1f} s in the future by the node's clock"
    elif 0 < around.max_age_s < lidar.age_ns / 1e9:
        yield WARN, f"stamps are {lidar.age_ns / 1e9:.1f} s old when the sweeps come (max_age_s {around.max_age_s})"
    if around.lost:
        mend = f"start the LiDAR driver with FASTDDS_DEFAULT_PROFILES_FILE={PROFILE} (docs/node.md, Transport)"
        yield WARN, f"{around.lost} sweeps were lost on their way in the last seconds: {mend}"
