"""Everything that can move or be moved: solids with a box around them and a trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from occ_core.geometry import pose, quaternion_from_rotation, slerp
from occ_core.world.ground import Ground
from occ_core.world.solids import Solids

SAMPLE_S = 0.1  # between the poses that a trajectory stores
BEFORE_S = 1.0  # trajectories start this long before t = 0 and end as long after the scene


@dataclass(frozen=True, eq=False)
class Trajectory:
    """World poses (K, 4, 4) at times (K,); one pose for what stands still."""

    times_s: np.ndarray
    poses: np.ndarray

    def at(self, t_s: float) -> np.ndarray:
        """Pose (4, 4) at a time; before the first and after the last, that one."""
        if len(self.times_s) == 1:
            return self.poses[0]
        k = int(np.clip(np.searchsorted(self.times_s, t_s, side="right") - 1, 0, len(self.times_s) - 2))
        fraction = (t_s - self.times_s[k]) / (self.times_s[k + 1] - self.times_s[k])
        f = min(max(float(fraction), 0.0), 1.0)
        q0, q1 = self._quaternions[k : k + 2]
        return pose((1 - f) * self.poses[k, :3, 3] + f * self.poses[k + 1, :3, 3], slerp(q0, q1, f))

    @cached_property
    def _quaternions(self) -> np.ndarray:
        return quaternion_from_rotation(self.poses[:, :3, :3])


def sample_times(duration_s: float, step_s: float = SAMPLE_S) -> np.ndarray:
    return np.arange(-BEFORE_S, duration_s + BEFORE_S + step_s / 2, step_s)


def follow(
    ground: Ground, times_s: np.ndarray, xy_m: np.ndarray, yaw: np.ndarray, size: tuple[float, float]
) -> Trajectory:
    """Trajectory on the ground through points (K, 2) with headings (K,), of a body of size (length, width)."""
    return Trajectory(np.asarray(times_s, dtype=np.float64), ground.poses_on(xy_m, yaw, *size))


@dataclass(frozen=True, eq=False)
class Actor:
    """One thing with an annotated box.

    Attributes:
        category: nuScenes category, such as 'vehicle.car'.
        class_id: Occ3D class.
        solids: in the actor's frame: origin on the ground below the box' centre, x forward, z up.
        size_m: (width, length, height), nuScenes order.
        moving: whether it moves at any time.
        trajectory: its poses.
    """

    category: str
    class_id: int
    solids: Solids
    size_m: tuple[float, float, float]
    moving: bool
    trajectory: Trajectory

    def world_from_actor(self, t_s: float) -> np.ndarray:
        """Pose (4, 4) at time t_s, seconds."""
        return self.trajectory.at(t_s)


def centred(solids: Solids) -> tuple[Solids, tuple[float, float, float]]:
    """The solids with their common box centred over the origin and standing on z = 0, and (width, length, height)."""
    lower, upper = solids.bounds_m()
    low, high = lower.min(axis=0), upper.max(axis=0)
    shift = np.eye(4)
    shift[:3, 3] = [-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]]
    length, width, height = high - low
    return solids.transformed(shift), (float(width), float(length), float(height))
