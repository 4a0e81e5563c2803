"""Learns from stamps when in their common period the cameras of a rig fire, and so which images belong to one cycle."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

KEPT_GAPS = 16
ENOUGH_GAPS = 3
SAME_PERIOD = 0.1
"""Cameras whose periods differ by a larger share have no common one."""
HEARD_PERIODS = 8  # ago: a camera that has been silent for longer takes no part
FRESH_PERIODS = 2  # ago: an older stamp says little about when in its period a camera fires
CLEARLY = 0.1
"""Another pause ends the cycle only if it is longer by this share of a period: jitter must not move the end."""


class TriggerPhases:
    """Trigger phases of cameras with one period that fire one after the other: a cycle begins after the longest pause.

    Nothing is known before each living camera has been heard `ENOUGH_GAPS` + 1 times, nor of different periods.

    Args:
        cameras: names.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._gaps_ns = {camera: deque[int](maxlen=KEPT_GAPS) for camera in cameras}
        self._last_ns: dict[str, int] = {}
        self._after_start_ns: dict[str, int] = {}
        self._first = ""  # the camera that begins a cycle
        self.period_ns: int | None = None

    def observe(self, camera: str, stamp_ns: int) -> None:
        """Learn from an image of the camera; images that are older than its last one are ignored."""
        last_ns = self._last_ns.get(camera)
        if last_ns is not None and stamp_ns <= last_ns:
            return
        self._last_ns[camera] = stamp_ns
        if last_ns is not None:
            self._gaps_ns[camera].append(stamp_ns - last_ns)
            self._learn()

    def forget_stamps(self) -> None:
        """Forget the stamps after time was set, since they cannot be compared with later ones. The learned phases
        stay."""
        self._last_ns = {}

    def cycle_start_ns(self, camera: str, stamp_ns: int) -> int | None:
        """When the cycle began to which an image of this stamp belongs; None if that is not known."""
        after_start_ns = self._after_start_ns.get(camera)
        return None if self.period_ns is None or after_start_ns is None else stamp_ns - after_start_ns

    def _learn(self) -> None:
        # The lower quartile: lost images make gaps longer, and must not make the period so.
        periods_ns = {
            name: sorted(gaps)[(len(gaps) - 1) // 4] for name, gaps in self._gaps_ns.items() if len(gaps) >= ENOUGH_GAPS
        }
        self.period_ns = None
        if not periods_ns:
            return
        period_ns = sorted(periods_ns.values())[len(periods_ns) // 2]
        newest_ns = max(self._last_ns.values())
        heard = {n: last for n, last in self._last_ns.items() if newest_ns - last < HEARD_PERIODS * period_ns}
        theirs = [periods_ns.get(name, 0) for name in heard]
        if max(theirs) > min(theirs) * (1 + SAME_PERIOD):  # also where one of them is not known yet
            return
        self.period_ns = period_ns
        fresh = {name: last for name, last in heard.items() if newest_ns - last < FRESH_PERIODS * period_ns}
        if self._first in heard and self._first not in fresh:  # it may come back
            return
        phases = sorted(((last - newest_ns) % period_ns, name) for name, last in fresh.items())
        before_ns = {  # the pause before each camera
            name: (phase - earlier) % period_ns if len(phases) > 1 else period_ns
            for (earlier, _), (phase, name) in pairwise([phases[-1], *phases])
        }
        longest = max(before_ns, key=lambda name: before_ns[name])
        if before_ns[longest] > before_ns.get(self._first, -period_ns) + CLEARLY * period_ns:
            self._first = longest
        first_ns = next(phase for phase, name in phases if name == self._first)
        self._after_start_ns |= {name: (phase - first_ns) % period_ns for phase, name in phases}
