"""Groups the images of several cameras into sets, one for each frame. No ROS, no thread, no clock of its own.

The caller says what time it is (`now_ns`, any clock), the images say when they were taken (`stamp_ns`).
A set is handed out as soon as it is complete, or when its deadline has passed with at least `min_cameras` images.
Every image that goes in ends in exactly one set or is counted as dropped, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from occ_core.errors import InvalidInput
from occ_core.trigger_phase import TriggerPhases

MAX_OPEN_SETS = 8  # bounds memory: at most this many images of a camera are held
BACKWARD_NS = 1_000_000_000
"""A camera whose stamps fall back by more was reset (a bag starts over, the clock was set back). By less, it takes more
than half of the cameras: one alone may have sent its images in a wrong order."""


@dataclass(frozen=True)
class SyncedSet:
    """Images of one frame.

    Attributes:
        stamp_ns: newest image stamp of the set.
        items: camera name -> what was given to `add`.
        stamps_ns: camera name -> stamp of its image.
        complete: every camera is there.
        first_arrival_ns, last_arrival_ns: `now_ns` of the first and the last image of the set.
    """

    stamp_ns: int
    items: dict[str, Any]
    stamps_ns: dict[str, int]
    complete: bool
    first_arrival_ns: int
    last_arrival_ns: int


@dataclass
class SyncStatistics:
    """Counts since construction. For each camera: received = used + dropped + still pending.

    Attributes:
        received, used, dropped: images per camera; used = handed out in a set.
        reasons: dropped images by reason: no_stamp, duplicate, late, incomplete, reset.
        complete, partial: sets handed out.
        incomplete: sets thrown away for want of cameras.
        resets: times that time ran backward.
    """

    received: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    complete: int = 0
    partial: int = 0
    incomplete: int = 0
    resets: int = 0


@dataclass
class _OpenSet:
    opened_ns: int
    last_arrival_ns: int
    items: dict[str, Any] = field(default_factory=dict)
    stamps_ns: dict[str, int] = field(default_factory=dict)
    aligned_ns: dict[str, int] = field(default_factory=dict)

    def distance_ns(self, aligned_ns: int) -> int:
        """The distance to the nearest image of the set."""
        return min(abs(aligned_ns - other) for other in self.aligned_ns.values())

    def spread_with_ns(self, aligned_ns: int) -> int:
        stamps = [*self.aligned_ns.values(), aligned_ns]
        return max(stamps) - min(stamps)

    @property
    def newest_ns(self) -> int:
        return max(self.aligned_ns.values())


class FrameSynchroniser:
    """Groups images by stamp.

    Args:
        cameras: names; a set with all of them is complete.
        deadline_s: longest wait from the first arrival of a set.
        max_spread_s: largest difference of the stamps in a set after the offsets are taken off. It has to be larger
            than the stagger of the cameras. Where they share a period, images of different trigger cycles do not mix
            (`TriggerPhases`).
        offsets_ns: camera name -> how much later than the others it takes its image.
        min_cameras: sets with fewer images are dropped at the deadline; None: more than half of the cameras, so that
            two groups of cameras whose clocks disagree cannot both make sets.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        deadline_s: float,
        max_spread_s: float,
        offsets_ns: Mapping[str, int] | None = None,
        min_cameras: int | None = None,
    ) -> None:
        self.cameras = tuple(cameras)
        offsets = dict(offsets_ns or {})
        wanted = len(self.cameras) // 2 + 1 if min_cameras is None else min_cameras
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise InvalidInput(f"cameras must be one or more different names, got {list(cameras)}")
        if not 0 < deadline_s <= 60:
            raise InvalidInput(f"deadline_s must be in (0, 60], got {deadline_s}")
        if not 0 <= max_spread_s <= 10:
            raise InvalidInput(f"max_spread_s must be in 0..10, got {max_spread_s}")
        if not 1 <= wanted <= len(self.cameras):
            raise InvalidInput(f"min_cameras must be in 1..{len(self.cameras)}, got {wanted}")
        if unknown := sorted(set(offsets) - set(self.cameras)):
            raise InvalidInput(f"offsets_ns names no camera of the rig: {unknown}, only: {', '.join(self.cameras)}")
        self.min_cameras = wanted
        self._deadline_ns = round(deadline_s * 1e9)
        self._max_spread_ns = round(max_spread_s * 1e9)
        self._offset_ns = {camera: offsets.get(camera, 0) for camera in self.cameras}
        self.statistics = SyncStatistics()
        self._trigger_phases = TriggerPhases(self.cameras)
        self._now_ns: int | None = None
        self._forget()

    @property
    def pending(self) -> int:
        """The number of images in sets that are still open."""
        return sum(len(group.items) for group in self._open)

    def add(self, camera: str, stamp_ns: int, item: Any, now_ns: int) -> list[SyncedSet]:
        """Take one image; returns the sets that this closes, oldest first (mostly none or one)."""
        if camera not in self._offset_ns:
            raise InvalidInput(f"no camera '{camera}' here, only: {', '.join(self.cameras)}")
        ready = self.poll(now_ns)
        self.statistics.received[camera] += 1
        if stamp_ns <= 0:
            self._drop(camera, "no_stamp")
            return ready
        last_ns = self._last_stamp_ns.get(camera)
        if self._time_ran_back(camera, stamp_ns, last_ns):
            self.reset()
            last_ns = None
        if stamp_ns == last_ns or any(group.stamps_ns.get(camera) == stamp_ns for group in self._open):
            self._drop(camera, "duplicate")
            return ready
        self._last_stamp_ns[camera] = stamp_ns if last_ns is None else max(stamp_ns, last_ns)
        aligned_ns = stamp_ns - self._offset_ns[camera]
        if self._emitted_ns is not None and aligned_ns <= self._emitted_ns:
            self._drop(camera, "late")
            return ready
        self._trigger_phases.observe(camera, aligned_ns)
        group = self._group_for(camera, aligned_ns, now_ns)
        group.items[camera] = item
        group.stamps_ns[camera] = stamp_ns
        group.aligned_ns[camera] = aligned_ns
        group.last_arrival_ns = now_ns
        if len(group.items) == len(self.cameras):
            ready += self._close_up_to(group)
        elif len(self._open) > MAX_OPEN_SETS:
            ready += self._close_up_to(min(self._open, key=lambda other: other.newest_ns))
        return ready

    def _time_ran_back(self, camera: str, stamp_ns: int, last_ns: int | None) -> bool:
        """Whether one camera fell far behind itself, or most cameras fell behind themselves or behind what was handed
        out."""
        if last_ns is not None and stamp_ns < last_ns - BACKWARD_NS:
            return True
        outdated = self._emitted_ns is not None and stamp_ns - self._offset_ns[camera] < self._emitted_ns - BACKWARD_NS
        if outdated or (last_ns is not None and stamp_ns < last_ns):
            self._behind.add(camera)
        elif stamp_ns != last_ns:
            self._behind.discard(camera)
        return len(self._behind) > len(self.cameras) / 2

    def poll(self, now_ns: int) -> list[SyncedSet]:
        """Close the sets whose deadline has passed; returns those with enough cameras, oldest first."""
        if self._now_ns is not None and now_ns < self._now_ns:
            self.reset()
        if self._now_ns == 0 < now_ns:  # a simulated clock that begins: nobody waited all the time since 1970
            for group in self._open:
                group.opened_ns = group.last_arrival_ns = now_ns
        self._now_ns = now_ns
        ready: list[SyncedSet] = []
        for group in sorted(self._open, key=lambda other: other.newest_ns):
            if group in self._open and now_ns - group.opened_ns >= self._deadline_ns:
                ready += self._close_up_to(group)
        return ready

    def flush(self) -> list[SyncedSet]:
        """Close every open set now, as if its deadline had passed."""
        return self._close_up_to(max(self._open, key=lambda other: other.newest_ns)) if self._open else []

    def reset(self) -> None:
        """Drop all images and forget all stamps; it is called when time runs backward."""
        self.statistics.resets += 1
        for group in self._open:
            for camera in group.items:
                self._drop(camera, "reset")
        self._trigger_phases.forget_stamps()
        self._forget()

    def _forget(self) -> None:
        self._open: list[_OpenSet] = []
        self._last_stamp_ns: dict[str, int] = {}
        self._behind: set[str] = set()  # cameras whose last image was older than what came before
        self._emitted_ns: int | None = None  # newest aligned stamp that was handed out
        self._now_ns = None

    def _group_for(self, camera: str, aligned_ns: int, now_ns: int) -> _OpenSet:
        """The open set with the nearest image that lacks this camera and stays within the spread, or a new one."""
        fitting = [
            group
            for group in self._open
            if camera not in group.items
            and group.spread_with_ns(aligned_ns) <= self._max_spread_ns
            and self._same_cycle(group, camera, aligned_ns)
        ]
        if fitting:
            return min(fitting, key=lambda group: group.distance_ns(aligned_ns))
        self._open.append(_OpenSet(now_ns, now_ns))
        return self._open[-1]

    def _same_cycle(self, group: _OpenSet, camera: str, aligned_ns: int) -> bool:
        """Whether an image belongs to the set's trigger cycle, and not to the one before or after; True if that is not
        known.

        Without this a camera's next image would take the place of one that was lost, and each set from then on would
        wait for an image of the next cycle.
        """
        starts_ns, period_ns = self._trigger_phases.cycle_start_ns(camera, aligned_ns), self._trigger_phases.period_ns
        if starts_ns is None or period_ns is None:
            return True
        others_ns = (self._trigger_phases.cycle_start_ns(name, stamp_ns) for name, stamp_ns in group.aligned_ns.items())
        return all(other is None or abs(starts_ns - other) < period_ns / 2 for other in others_ns)

    def _close_up_to(self, last: _OpenSet) -> list[SyncedSet]:
        """Close this set and all older ones, so that sets come out in the order of their stamps."""
        limit_ns = last.newest_ns
        closing = sorted((group for group in self._open if group.newest_ns <= limit_ns), key=lambda g: g.newest_ns)
        self._open = [group for group in self._open if group.newest_ns > limit_ns]
        ready = []
        for group in closing:
            too_late = self._emitted_ns is not None and group.newest_ns <= self._emitted_ns
            if too_late or len(group.items) < self.min_cameras:
                self.statistics.incomplete += 1
                for camera in group.items:
                    self._drop(camera, "late" if too_late else "incomplete")
            else:
                ready.append(self._hand_out(group))
        return ready

    def _hand_out(self, group: _OpenSet) -> SyncedSet:
        complete = len(group.items) == len(self.cameras)
        self.statistics.complete += complete
        self.statistics.partial += not complete
        self.statistics.used.update(group.items.keys())
        self._emitted_ns = group.newest_ns
        stamp_ns = max(group.stamps_ns.values())
        return SyncedSet(stamp_ns, group.items, group.stamps_ns, complete, group.opened_ns, group.last_arrival_ns)

    def _drop(self, camera: str, reason: str) -> None:
        self.statistics.dropped[camera] += 1
        self.statistics.reasons[reason] += 1
