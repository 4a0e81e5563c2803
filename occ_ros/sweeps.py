"""The newest sweeps of the LiDAR, which of them belong to a set of images, and the wait for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from sensor_msgs.msg import PointCloud2

from occ_core.errors import InvalidInput, MissingTransform, OccError, TransformNotYet
from occ_core.frame import LidarSweep
from occ_core.lidar_points import MIN_RANGE_M, lidar_points
from occ_core.models.config import LidarInput
from occ_core.sources.clouds import lidar_of, require_sweep
from occ_core.sync import MAX_OPEN_SETS, SyncedSet
from occ_core.transforms import TransformTree
from occ_ros.lidar import LidarTopic
from occ_ros.messages import stamp_ns_of

SPARE = 8  # sweeps that may come while a set waits for its answer, or that turn out to be unusable
TRANSFORM_WAIT_S = 0.1  # for the next sample of odometry, or of a LiDAR that moves on the robot


class Sweep:
    """One message on its way: kept as it came, decoded once when an answer needs it, in one thread."""

    def __init__(self, message: PointCloud2, stamp_ns: int) -> None:
        self.stamp_ns, self.frame_id = stamp_ns, message.header.frame_id
        self._message: PointCloud2 | None = message
        self._points = np.zeros((0, 3), dtype=np.float32)
        self._intensity = np.zeros(0, dtype=np.float32)

    def decode(self, intensity_max: float) -> None:
        """Look at the points, the first time.

        Raises:
            InvalidInput: none of them is a return, or as `lidar_of`.
        """
        message, self._message = self._message, None
        if message is None:
            return
        points, intensity, _ = lidar_of(message, intensity_max)
        if not (np.linalg.norm(points, axis=1) >= MIN_RANGE_M).any():
            count = message.width * message.height
            raise InvalidInput(f"none of its {count} points is finite and {MIN_RANGE_M:.0f} m or more away")
        self._points, self._intensity = points, intensity

    def placed(self, ego_from_lidar: np.ndarray, world_from_ego: np.ndarray) -> LidarSweep:
        """The sweep with its poses at its stamp, both (4, 4)."""
        ring = np.zeros(len(self._points), dtype=np.int32)
        return LidarSweep(self._points, self._intensity, ring, ego_from_lidar, self.stamp_ns, world_from_ego)


class Sweeps:
    """Keeps the last sweeps; answers with the cloud of a moment. `add` may run in another thread than `cloud`.

    Args:
        topic: whose state is kept.
        asked: what the network is given.
        tree: with `base_frame` above the LiDAR's frame, and `odom_frame` above `base_frame` where there is odometry.
        max_age_s: how much older than the images a sweep may be.
        lead_s: how much newer than the newest image it may be; a LiDAR's stamp may be the end of its turn.
        intensity_max: of a return, as the driver counts.
    """

    def __init__(
        self,
        topic: LidarTopic,
        asked: LidarInput,
        tree: TransformTree,
        base_frame: str,
        odom_frame: str,
        max_age_s: float,
        lead_s: float,
        intensity_max: float,
    ) -> None:
        self.topic, self.asked = topic, asked
        self._tree, self._base_frame, self._odom_frame = tree, base_frame, odom_frame
        self._max_age_ns, self._lead_ns = round(max_age_s * 1e9), round(lead_s * 1e9)
        self._intensity_max = intensity_max
        self._held: deque[Sweep] = deque(maxlen=asked.sweeps + SPARE)  # by stamp
        self._lock = threading.Lock()  # of what is held

    # --- from the receiving thread ------------------------------------------------------------------------------

    def add(self, message: PointCloud2) -> None:
        """Take a sweep; one that cannot be used is counted and its reason kept."""
        stamp_ns = stamp_ns_of(message.header.stamp)
        try:
            require_sweep(message)
            if not stamp_ns:
                raise InvalidInput("it carries no stamp (header.stamp is zero)")
            if not message.header.frame_id:
                raise InvalidInput("its frame_id is empty")
        except InvalidInput as error:
            self.topic.reject(str(error))
            return
        with self._lock:
            while self._held and self._held[-1].stamp_ns >= stamp_ns:  # time was set back, or the same sweep again
                self._held.pop()
            self._held.append(Sweep(message, stamp_ns))

    def settled(self, stamp_ns: int) -> bool:
        """A sweep of this moment is there, or one that is newer, so that none of this moment will come."""
        with self._lock:
            return bool(self._held) and self._held[-1].stamp_ns >= stamp_ns - self._max_age_ns

    # --- from the answering thread ------------------------------------------------------------------------------

    def cloud(self, stamp_ns: int) -> np.ndarray:
        """What the LiDAR saw at a moment, float32 (P, 5), as `lidar_points` gives it.

        Without odometry the newest sweep is taken as it is, and no past one.

        Raises:
            InvalidInput: no sweep of this moment.
            MissingTransform: its place on the robot is unknown.
        """
        usable = list(islice(self._usable(stamp_ns), self.asked.sweeps))
        if not usable:
            raise InvalidInput(self._why_none(stamp_ns))
        self.topic.apart = ""
        placed, world_from_ego = self._placed(stamp_ns, usable)
        points = lidar_points(placed, stamp_ns, world_from_ego, self.asked.points)
        self.topic.joined += 1
        return points

    def _usable(self, stamp_ns: int) -> Iterator[Sweep]:
        """The newest sweep of the moment and those before it, decoded, newest first."""
        with self._lock:
            held = [sweep for sweep in self._held if sweep.stamp_ns <= stamp_ns + self._lead_ns]
        found = False
        for sweep in reversed(held):
            if not found and sweep.stamp_ns < stamp_ns - self._max_age_ns:
                return
            try:
                sweep.decode(self._intensity_max)
            except OccError as error:
                self.topic.reject(str(error))
                self._forget(sweep)
                continue
            if not found:
                self.topic.sweep_error, found = "", True
            yield sweep

    def _forget(self, sweep: Sweep) -> None:
        with self._lock:
            if sweep in self._held:
                self._held.remove(sweep)

    def _placed(self, stamp_ns: int, usable: list[Sweep]) -> tuple[list[LidarSweep], np.ndarray]:
        """Sweeps with their poses, and `world_from_ego` (4, 4) at the moment."""
        until_s = time.monotonic() + TRANSFORM_WAIT_S
        newest, topic = usable[0], self.topic
        try:
            ego_from_lidar = self._lookup(self._base_frame, newest.frame_id, newest.stamp_ns, until_s)
        except MissingTransform as error:
            topic.transform_error = str(error)
            raise
        topic.transform_error = ""
        try:
            world_from_ego = self._lookup(self._odom_frame, self._base_frame, stamp_ns, until_s)
            then = self._lookup(self._odom_frame, self._base_frame, newest.stamp_ns, until_s)
        except MissingTransform as error:
            topic.odometry_error = str(error) if self.asked.sweeps > 1 else ""
            return [newest.placed(ego_from_lidar, np.eye(4))], np.eye(4)
        topic.odometry_error = ""
        return [newest.placed(ego_from_lidar, then), *self._past(usable[1:])], world_from_ego

    def _past(self, sweeps: list[Sweep]) -> Iterator[LidarSweep]:
        """As far back as poses are known."""
        for sweep in sweeps:
            try:
                ego_from_lidar = self._tree.lookup(self._base_frame, sweep.frame_id, sweep.stamp_ns)
                world_from_ego = self._tree.lookup(self._odom_frame, self._base_frame, sweep.stamp_ns)
            except MissingTransform:
                return
            yield sweep.placed(ego_from_lidar, world_from_ego)

    def _lookup(self, target: str, source: str, stamp_ns: int, until_s: float) -> np.ndarray:
        while True:
            try:
                return self._tree.lookup(target, source, stamp_ns)
            except TransformNotYet:
                if time.monotonic() > until_s:
                    raise
            time.sleep(0.005)

    def _why_none(self, stamp_ns: int) -> str:
        if self.topic.sweep_error:
            return f"sweep rejected: {self.topic.sweep_error}"
        with self._lock:
            newest_ns = self._held[-1].stamp_ns if self._held else None
        if newest_ns is None:
            return f"no sweep on {self.topic.topic} yet"
        lead_s = (newest_ns - stamp_ns) / 1e9
        side = "newer" if lead_s > 0 else "older"
        limit = f"max_spread_s {self._lead_ns / 1e9}" if lead_s > 0 else f"lidar_max_age_s {self._max_age_ns / 1e9}"
        self.topic.apart = f"the newest sweep is {abs(lead_s):.3f} s {side} than the images ({limit})"
        return self.topic.apart


class SweepWait:
    """Sets of images that wait for their sweep, for `deadline_s` from their last image; in one thread.

    Args:
        stale_s: while no sweep has come for so long, nothing is waited for; it may change at any time.
    """

    def __init__(self, sweeps: Sweeps, deadline_s: float, stale_s: Callable[[], float]) -> None:
        self._sweeps, self._deadline_ns, self._stale_s = sweeps, round(deadline_s * 1e9), stale_s
        self._held: deque[SyncedSet] = deque()
        self._first_s: float | None = None  # when the first set came

    def ready(self, groups: list[SyncedSet], now_ns: int, now_s: float) -> list[SyncedSet]:
        """Take sets; returns those that need not wait any longer, oldest first.

        Args:
            now_ns: of the clock that the sets' arrivals are told in.
            now_s: of a monotonic one.
        """
        if groups and self._first_s is None:
            self._first_s = now_s
        self._held.extend(groups)
        alive = self._silent_s(now_s) <= self._stale_s()
        over = 0  # sets up to the newest that is due: an older one gets nothing by waiting on
        for number, group in enumerate(self._held, start=1):
            in_time = 0 <= now_ns - group.last_arrival_ns < self._deadline_ns  # negative: the clock was set back
            if not (alive and in_time) or self._sweeps.settled(group.stamp_ns):
                over = number
        over = max(over, len(self._held) - MAX_OPEN_SETS)
        return [self._held.popleft() for _ in range(over)]

    def flush(self) -> list[SyncedSet]:
        """All that wait; nothing more will come."""
        held, self._held, self._first_s = list(self._held), deque(), None
        return held

    def _silent_s(self, now_s: float) -> float:
        """Since the last sweep, or since the first set before any."""
        arrival_s = self._sweeps.topic.arrival_s
        return now_s - (arrival_s if arrival_s is not None else self._first_s or now_s)
