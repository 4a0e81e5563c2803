"""The state of the LiDAR input, and what is wrong with it in one sentence, the most specific cause first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from occ_ros.sensors import (
    ERROR,
    WARN,
    Found,
    SensorInput,
    Surroundings,
    connection_problems,
    lost_problems,
    rival_problems,
    stamp_problems,
)

CLOUD_TYPE = "PointCloud2"
NOUNS = "sweep", "LiDAR"


@dataclass
class LidarTopic(SensorInput):
    """The LiDAR as the node sees it.

    Attributes:
        repeated: sweeps with the stamp of one that is there; they are left out.
        joined: answers that a sweep was part of.
        sweep_error: why the last sweep could not be used; empty if it could.
        apart: why none of the sweeps belongs to the last set of images; empty if one did.
        transform_error: why the last sweep could not be placed in the base frame; empty if it could.
        odometry_error: what odometry could not do for the last answer, and why; empty if it could, or nobody asked.
    """

    topic: str
    repeated: int = 0
    joined: int = 0
    sweep_error: str = ""
    apart: str = ""
    transform_error: str = ""
    odometry_error: str = ""

    def reject(self, why: str) -> None:
        """Note that the last sweep cannot be used."""
        self.rejected += 1
        self.sweep_error = why

    def forget(self) -> None:
        """Forget what was wrong: nobody reads the LiDAR now, so it may no longer be true."""
        self.sweep_error = self.apart = self.transform_error = self.odometry_error = ""


def lidar_problems(lidar: LidarTopic, around: Surroundings) -> list[Found]:
    """Everything that is wrong: errors first, and among them the most specific first."""
    found = [*connection_problems(lidar, lidar.topic, CLOUD_TYPE, NOUNS, around)]
    found += [*rival_problems(around), *_sweeps(lidar, around)]
    if lidar.transform_error:
        found.append(Found(ERROR, lidar.transform_error))
    if lidar.odometry_error:
        found.append(Found(WARN, lidar.odometry_error))
    return sorted(found, key=lambda problem: -problem.level)  # stable


def _sweeps(lidar: LidarTopic, around: Surroundings) -> Iterator[Found]:
    if lidar.arrival_s is None:
        return
    alive = lidar.silent_s(around.now_s) <= around.stale_s
    if lidar.sweep_error and alive:
        yield Found(ERROR, f"sweep rejected: {lidar.sweep_error}")
    elif lidar.apart and alive:
        yield Found(ERROR, lidar.apart)
    yield from stamp_problems(lidar, NOUNS, around)
    yield from lost_problems(NOUNS, around)
