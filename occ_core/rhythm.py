"""When in their common period the cameras of a rig fire, learned from their stamps: which images are of one turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

KEPT_GAPS = 16
ENOUGH_GAPS = 3
SAME_PERIOD = 0.1
"""Cameras whose periods differ by a larger share have no common one."""


class Rhythm:
    """Cameras of one period that fire one after the other: a turn begins after the longest pause.

    Nothing is known before each camera has been heard `ENOUGH_GAPS` + 1 times, nor of cameras of different periods.

    Args:
        cameras: names.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._gaps_ns = {camera: deque[int](maxlen=KEPT_GAPS) for camera in cameras}
        self._last_ns: dict[str, int] = {}
        self._after_start_ns: dict[str, int] = {}
        self.period_ns: int | None = None

    def hear(self, camera: str, stamp_ns: int) -> None:
        """An image of the camera; older ones than its last change nothing."""
        last_ns = self._last_ns.get(camera)
        if last_ns is not None and stamp_ns <= last_ns:
            return
        self._last_ns[camera] = stamp_ns
        if last_ns is not None:
            self._gaps_ns[camera].append(stamp_ns - last_ns)
            self._learn()

    def forget_stamps(self) -> None:
        """Time was set: what came before cannot be compared. The rhythm stays."""
        self._last_ns = {}

    def turn_starts_ns(self, camera: str, stamp_ns: int) -> int | None:
        """When the turn began that an image of this stamp is of; None: not known."""
        after_start_ns = self._after_start_ns.get(camera)
        return None if self.period_ns is None or after_start_ns is None else stamp_ns - after_start_ns

    def _learn(self) -> None:
        # The lower quartile: lost images make gaps longer, and must not make the period so.
        periods_ns = [sorted(gaps)[(len(gaps) - 1) // 4] for gaps in self._gaps_ns.values() if len(gaps) >= ENOUGH_GAPS]
        if len(periods_ns) < len(self._last_ns) or max(periods_ns) > min(periods_ns) * (1 + SAME_PERIOD):
            self.period_ns = None
            return
        self.period_ns = period_ns = sorted(periods_ns)[len(periods_ns) // 2]
        newest_ns = max(self._last_ns.values())
        heard = {name: last for name, last in self._last_ns.items() if newest_ns - last < 2 * period_ns}
        phases = sorted(((last - newest_ns) % period_ns, name) for name, last in heard.items())
        pauses_ns = [later - sooner for (sooner, _), (later, _) in pairwise([*phases, (phases[0][0] + period_ns, "")])]
        first_ns = phases[(pauses_ns.index(max(pauses_ns)) + 1) % len(phases)][0]
        self._after_start_ns |= {name: (phase - first_ns) % period_ns for phase, name in phases}
