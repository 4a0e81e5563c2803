"""Keeps the newest sweeps of the LiDAR, finds those that belong to a set of images, and waits for them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from sensor_msgs.msg import PointCloud2

from occ_core.errors import InvalidInput, MissingTransform, OccError, TransformNotYet
from occ_core.frame import LidarSweep
from occ_core.lidar_points import MIN_RANGE_M, lidar_points
from occ_core.models.config import LidarInput
from occ_core.sources.clouds import lidar_of, require_sweep
from occ_core.sync import BACKWARD_NS, MAX_OPEN_SETS, SyncedSet
from occ_ros.lidar import LidarTopic
from occ_ros.messages import stamp_ns_of
from occ_ros.odometry import Odometry

SPARE = 8  # sweeps that may come before the set they belong to, or that turn out to be unusable
MAX_GAP_NS = 1_000_000_000  # between sweeps in a row: what was before it is no past of this frame


class Sweep:
    """One message on its way; it is decoded once, in one thread, when an answer needs it.

    Attributes:
        unusable: it was looked at, in vain.
    """

    def __init__(self, message: PointCloud2, stamp_ns: int) -> None:
        self.stamp_ns, self.frame_id = stamp_ns, message.header.frame_id
        self.unusable = False
        self._message: PointCloud2 | None = message
        self._points = np.zeros((0, 3), dtype=np.float32)
        self._intensity = np.zeros(0, dtype=np.float32)

    def decode(self, intensity_max: float) -> None:
        """Decode the points, the first time.

        Raises:
            InvalidInput: none of them is a return, or as `lidar_of`.
        """
        message, self._message = self._message, None
        if message is None:
            return
        try:
            points, intensity, _ = lidar_of(message, intensity_max)
            if not (np.linalg.norm(points, axis=1) >= MIN_RANGE_M).any():
                count = message.width * message.height
                raise InvalidInput(f"none of its {count} points is finite and {MIN_RANGE_M:.0f} m or more away")
        except Exception:
            self.unusable = True
            raise
        self._points, self._intensity = points, intensity

    def placed(self, ego_from_lidar: np.ndarray, world_from_ego: np.ndarray) -> LidarSweep:
        """The sweep with its poses at its stamp, both (4, 4)."""
        ring = np.zeros(len(self._points), dtype=np.int32)
        return LidarSweep(self._points, self._intensity, ring, ego_from_lidar, self.stamp_ns, world_from_ego)


class Sweeps:
    """Keeps the last sweeps and makes the cloud of a frame of them. `add` may run in another thread than `cloud`.

    Args:
        topic: whose state is kept.
        asked: what the network is given.
        odometry: which knows the LiDAR's frame, too.
        max_age_s: how much older than the images a sweep may be.
        lead_s: how much newer than the newest image it may be; a LiDAR's stamp may be the end of its turn.
        intensity_max: of a return, as the driver counts.
    """

    def __init__(
        self,
        topic: LidarTopic,
        asked: LidarInput,
        odometry: Odometry,
        max_age_s: float,
        lead_s: float,
        intensity_max: float,
    ) -> None:
        self.topic, self.asked = topic, asked
        self._odometry = odometry
        self._max_age_ns, self._lead_ns = round(max_age_s * 1e9), round(lead_s * 1e9)
        self._intensity_max = intensity_max
        self._most = asked.sweeps + SPARE
        self._held: list[Sweep] = []  # by stamp
        self._rejected_ns = 0  # stamp of the last sweep that could not be used: only a newer one clears its reason
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
            with self._lock:
                self._rejected_ns = stamp_ns or (self._held[-1].stamp_ns if self._held else 0)
            self.topic.reject(str(error))
            return
        with self._lock:
            if self._held and stamp_ns < self._held[-1].stamp_ns - BACKWARD_NS:  # time was set back
                self._held.clear()
                self._rejected_ns = 0
            at = bisect_left(self._held, stamp_ns, key=_stamp_ns)
            if at < len(self._held) and self._held[at].stamp_ns == stamp_ns:
                self.topic.repeated += 1
                return
            self._held.insert(at, Sweep(message, stamp_ns))
            del self._held[: -self._most]

    def settled(self, stamp_ns: int) -> bool:
        """Whether a sweep of this time is there, or a newer one, so that no sweep of this time will come.

        One of more than BACKWARD_NS later does not count: time was set back, and the sweeps have yet to follow.
        """
        first_ns, last_ns = stamp_ns - self._max_age_ns, stamp_ns + BACKWARD_NS
        with self._lock:
            return any(first_ns <= sweep.stamp_ns <= last_ns and not sweep.unusable for sweep in self._held)

    def taken(self, stamp_ns: int) -> tuple[Sweep, ...]:
        """The sweeps that are there for the cloud of a frame, to be kept with its set, since the set may wait longer
        than sweeps are kept."""
        with self._lock:
            return tuple(sweep for sweep in self._held if sweep.stamp_ns <= stamp_ns + self._lead_ns)

    # --- from the answering thread ------------------------------------------------------------------------------

    def cloud(self, stamp_ns: int, taken: Sequence[Sweep] = (), until_s: float = 0.0) -> np.ndarray:
        """What the LiDAR saw at `stamp_ns`, float32 (P, 5), as `lidar_points` gives it.

        Without odometry the newest sweep is taken as it is, and no past one.

        Args:
            taken: sweeps that were kept for it, beside those that are there now.
            until_s: how long transforms are waited for (monotonic clock); 0: not at all.

        Raises:
            InvalidInput: no sweep of this time.
            MissingTransform: its place on the robot is unknown.
        """
        usable = list(islice(self._usable(stamp_ns, taken), self.asked.sweeps))
        if not usable:
            raise InvalidInput(self._why_none(stamp_ns))
        self.topic.apart = ""
        placed, world_from_ego = self._placed(stamp_ns, usable, until_s)
        points = lidar_points(placed, stamp_ns, world_from_ego, self.asked.points)
        self.topic.joined += 1
        return points

    def _usable(self, stamp_ns: int, taken: Sequence[Sweep]) -> Iterator[Sweep]:
        """The newest sweep at that time and those before it without a gap, decoded, newest first."""
        known = {sweep.stamp_ns: sweep for sweep in (*taken, *self.taken(stamp_ns)) if not sweep.unusable}
        oldest_ns = stamp_ns - self._max_age_ns
        for sweep in sorted(known.values(), key=_stamp_ns, reverse=True):
            if sweep.stamp_ns < oldest_ns:
                return
            try:
                sweep.decode(self._intensity_max)
            except OccError as error:
                self._rejected_ns = max(self._rejected_ns, sweep.stamp_ns)
                self.topic.reject(str(error))
                continue
            if sweep.stamp_ns > self._rejected_ns:
                self.topic.sweep_error = ""
            oldest_ns = sweep.stamp_ns - MAX_GAP_NS
            yield sweep

    def _placed(self, stamp_ns: int, usable: list[Sweep], until_s: float) -> tuple[list[LidarSweep], np.ndarray]:
        """Sweeps with their poses, and `world_from_ego` (4, 4) at `stamp_ns`."""
        newest, topic = usable[0], self.topic
        try:
            ego_from_lidar = self._odometry.ego_from(newest.frame_id, newest.stamp_ns, until_s)
        except MissingTransform as error:
            topic.transform_error = str(error)
            raise
        topic.transform_error = ""
        try:
            world_from_ego, then = self._odometry.world_from_ego([stamp_ns, newest.stamp_ns], until_s)
        except MissingTransform as error:
            topic.odometry_error = self._why_not_moved(error)
            return [newest.placed(ego_from_lidar, np.eye(4))], np.eye(4)
        topic.odometry_error = ""
        return [newest.placed(ego_from_lidar, then), *self._past(usable[1:])], world_from_ego

    def _past(self, sweeps: list[Sweep]) -> Iterator[LidarSweep]:
        """Yield sweeps as far back as poses are known."""
        for sweep in sweeps:
            try:
                ego_from_lidar = self._odometry.ego_from(sweep.frame_id, sweep.stamp_ns)
                world_from_ego = self._odometry.world_from_ego_past(sweep.stamp_ns)
            except MissingTransform:
                return
            yield sweep.placed(ego_from_lidar, world_from_ego)

    def _why_not_moved(self, error: MissingTransform) -> str:
        """Why sweeps could not be moved; empty if the network reads one sweep and there is no odometry, since it needs
        none."""
        if self.asked.sweeps > 1:
            return f"only the newest sweep is used: {error}"
        return f"the sweep is used as it came: {error}" if isinstance(error, TransformNotYet) else ""

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


def _stamp_ns(sweep: Sweep) -> int:
    return sweep.stamp_ns


class SweepWait:
    """Lets sets of images wait for their sweep, for `deadline_s` from their last image; in one thread.

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
        """Return all sets that wait, since nothing more will come."""
        held, self._held, self._first_s = list(self._held), deque(), None
        return held

    def _silent_s(self, now_s: float) -> float:
        """The time since the last sweep, or since the first set if there was none."""
        arrival_s = self._sweeps.topic.arrival_s
        return now_s - (arrival_s if arrival_s is not None else self._first_s or now_s)
