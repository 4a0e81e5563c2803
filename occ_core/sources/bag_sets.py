"""Which of a bag's messages make one frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from occ_core.transforms import JUMP_BACK_NS

WAIT_NS = 500_000_000
"""A set is closed when the bag is this far past it, even if a camera is silent."""
HELD_IMAGES = 64
"""At most so many images a camera are held; bounds the memory that odd stamps can ask for."""


class Grouping:
    """Sets of messages around the key camera's stamps; '' is the LiDAR, which no set waits for longer."""

    def __init__(self, names: list[str], key: str, spread_ns: int) -> None:
        self._held: dict[str, deque[tuple[int, Any]]] = {name: deque(maxlen=HELD_IMAGES) for name in (*names, "")}
        self._newest: dict[str, int] = dict.fromkeys(names, -1)
        self._keys: deque[tuple[int, Any]] = deque()
        self._key, self._spread_ns = key, spread_ns

    def add(self, name: str, stamp_ns: int, message: Any) -> Iterator[tuple[dict[str, Any], Any]]:
        """Take one message; yields the sets that it completes."""
        if name and stamp_ns < self._newest[name] - JUMP_BACK_NS:  # the clock was set back: sets must not mix two times
            yield from self.rest()
            self._newest = dict.fromkeys(self._newest, -1)
            for held in self._held.values():
                held.clear()
        self._held[name].append((stamp_ns, message))
        if name == self._key:
            self._keys.append((stamp_ns, message))
        if name:
            self._newest[name] = max(self._newest[name], stamp_ns)
        while self._keys and self._is_over(self._keys[0][0]):
            yield self._close()

    def rest(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """What is still open at the end."""
        while self._keys:
            yield self._close()

    def _is_over(self, stamp_ns: int) -> bool:
        """Nothing nearer to this stamp can come, or the wait for it was long enough."""
        past_all = min(self._newest.values()) >= stamp_ns + self._spread_ns
        return past_all or max(self._newest.values()) >= stamp_ns + self._spread_ns + WAIT_NS or len(self._keys) > 32

    def _close(self) -> tuple[dict[str, Any], Any]:
        stamp_ns, message = self._keys.popleft()
        near = {name: self._nearest(name, stamp_ns) for name in self._held}
        near[self._key] = message
        cloud = near.pop("")
        following = self._keys[0][0] if self._keys else stamp_ns
        for held in self._held.values():
            while held and held[0][0] < following - self._spread_ns:
                held.popleft()
        return {name: found for name, found in near.items() if found is not None}, cloud

    def _nearest(self, name: str, stamp_ns: int) -> Any:
        stamp, message = min(self._held[name], key=lambda item: abs(item[0] - stamp_ns), default=(0, None))
        return message if message is not None and abs(stamp - stamp_ns) <= self._spread_ns else None
