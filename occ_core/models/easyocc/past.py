"""Decides whether a network's memory may be used for a frame, in the same way for node, command line and training.

A state is a picture of the ground around the robot, seen from where it stood. It may be used as long as one knows how
the robot moved since, the cameras are the same, and it is not old.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from occ_core.frame import Frame
from occ_core.geometry import inverse, require_rigid
from occ_core.models.easyocc.config import EasyOccConfig

MAX_AGE_S = 1.0
MAX_SPEED_M_S, SLACK_M = 70.0, 1.0  # faster than any car drives; the slack is odometry's
MAX_TURN_RAD_S, SLACK_RAD = math.pi, 0.1
MAX_TILT_RAD = 0.3  # between the two grounds, which are taken for one plane


class StampedPose(NamedTuple):
    """When and where the robot was.

    Attributes:
        stamp_ns: reference time of the images.
        world_from_ego: (4, 4) at `stamp_ns`, in a world that does not jump (`odom`).
        scene: of a data set; frames of two scenes have nothing to do with each other.
        rig: fingerprint of the calibration.
    """

    stamp_ns: int
    world_from_ego: np.ndarray
    scene: str = ""
    rig: str = ""

    @classmethod
    def of(cls, frame: Frame) -> StampedPose | None:
        """The stamped pose of a source's frame; None if nobody said where the robot was."""
        if not frame.has_pose:
            return None
        return cls(frame.stamp_ns, frame.world_from_ego, frame.scene, frame.rig.fingerprint)


class Past(NamedTuple):
    """The inputs of a network with memory; a state of zeros means that there is none."""

    state: np.ndarray  # float32 [1, memory channels + 1, X/2, Y/2]
    then_from_now: np.ndarray  # float32 [1, 2, 3]: (x, y, 1) in metres in the ego frame now to (x, y) in that of then


class Refusal(NamedTuple):
    """Why a state is not used."""

    kind: str  # one of few, to be counted
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


FIRST = Refusal("no frame before")
NO_ODOMETRY = Refusal("no odometry")


class Memory:
    """Keeps one state between the frames of one robot, and returns it where it may be used.

    Attributes:
        empty: what the network is given where there is nothing to remember.
        refusal: why the last frame had to do without; None if it did not.
        counts: frames that it was `used` at, and how often each kind of refusal came.
    """

    def __init__(self, config: EasyOccConfig) -> None:
        self._interval_ns = round(config.memory_interval_s * 1e9)
        self.empty = empty_past(config)
        self._kept: tuple[np.ndarray, StampedPose] | None = None
        self.refusal: Refusal | None = FIRST
        self.counts: Counter[str] = Counter()

    def before(self, pose: StampedPose | None) -> Past:
        """The past to give the network for a frame; `pose` is None if nobody knows where the robot is. A state that may
        not be used is forgotten.

        Raises:
            InvalidInput: its pose is no rigid transform.
        """
        past, self.refusal = self.empty, NO_ODOMETRY
        if pose is not None:
            require_rigid("world_from_ego", pose.world_from_ego)
            self.refusal = FIRST if self._kept is None else refusal(self._kept[1], pose)
        if self.refusal is not None:
            self.forget()
        elif self._kept is not None and pose is not None:
            state, then = self._kept
            past = Past(state, then_from_now(then.world_from_ego, pose.world_from_ego)[None])
        self.counts["used" if self.refusal is None else self.refusal.kind] += 1
        return past

    def keep(self, state: np.ndarray, pose: StampedPose | None) -> None:
        """Keep the state that the network returned for a frame, if the interval has passed and the state is finite."""
        if pose is None or not np.isfinite(state).all():
            self.forget()
        elif self._kept is None or pose.stamp_ns - self._kept[1].stamp_ns >= self._interval_ns:
            self._kept = state, pose

    def forget(self) -> None:
        self._kept = None


def empty_past(config: EasyOccConfig) -> Past:
    """The past of a frame that has none before it."""
    x, y, _ = config.pillar_grid_shape
    stays = np.eye(2, 3, dtype=np.float32)[None]
    return Past(np.zeros((1, config.memory_channels + 1, x, y), dtype=np.float32), stays)


def refusal(then: StampedPose, now: StampedPose) -> Refusal | None:
    """Why a state of `then` must not be used at `now`; None if it may."""
    if then.scene != now.scene:
        return Refusal("another scene")
    if then.rig != now.rig:
        return Refusal("another calibration")
    age_s = (now.stamp_ns - then.stamp_ns) / 1e9
    if age_s <= 0:
        return Refusal("time did not go on", f"{age_s:.3f} s")
    if age_s > MAX_AGE_S:
        return Refusal("gap", f"{age_s:.3f} s, limit {MAX_AGE_S} s")
    then_from_now = inverse(then.world_from_ego) @ now.world_from_ego
    way_m = float(np.linalg.norm(then_from_now[:3, 3]))
    turn_rad, tilt_rad = abs(_yaw_rad(then_from_now)), math.acos(min(1.0, max(-1.0, float(then_from_now[2, 2]))))
    if way_m > MAX_SPEED_M_S * age_s + SLACK_M:
        return Refusal("jump", f"{way_m:.1f} m in {age_s:.3f} s, limit {MAX_SPEED_M_S} m/s")
    if turn_rad > MAX_TURN_RAD_S * age_s + SLACK_RAD:
        return Refusal("jump", f"{math.degrees(turn_rad):.0f} degrees in {age_s:.3f} s")
    if tilt_rad > MAX_TILT_RAD:
        return Refusal("jump", f"tilted by {math.degrees(tilt_rad):.0f} degrees")
    return None


def then_from_now(world_from_then: np.ndarray, world_from_now: np.ndarray) -> np.ndarray:
    """The motion in the ground plane, float32 (2, 3): it maps (x, y, 1) in metres in the ego frame now to (x, y) in the
    ego frame then. Height and tilt are left out."""
    motion = inverse(world_from_then) @ world_from_now
    yaw = _yaw_rad(motion)
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, motion[0, 3]], [sin, cos, motion[1, 3]]], dtype=np.float32)


def _yaw_rad(a_from_b: np.ndarray) -> float:
    return math.atan2(a_from_b[1, 0], a_from_b[0, 0])
