"""The transform tree: who is where, when. One tree serves bags and the node alike; it needs no ROS.

It answers as tf2 does: linear in translation and spherical in rotation between the two samples around the asked stamp.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from occ_core.errors import InvalidInput, MissingTransform, TransformNotYet
from occ_core.geometry import interpolate, inverse, require_rigid
from occ_core.limits import MAX_NAME, shown

TOLERANCE_NS = 1_000_000
"""Beyond its first and last sample a link holds their value this long, no longer: stamps get rounded on their way."""
JUMP_BACK_NS = 1_000_000_000
"""A sample this much older than the newest of its own link means that time was set back (a bag starts over)."""
MAX_FRAMES = 10_000
MAX_SAMPLES = 100_000


@dataclass
class _Link:
    """A link from one frame to its parent: sorted samples, or one for all times."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    parent_from_child: list[np.ndarray] = field(default_factory=list)


class TransformTree:
    """Transforms between named frames over time.

    A frame has one parent. Given a new parent it starts a new history. Memory is bounded: each link keeps `buffer_s`
    seconds. When time jumps back by more than a second, the moving links are cleared, as they would mix two pasts;
    with `buffer_s` infinite (a whole recording) everything is kept. Safe to use from several threads.

    Args:
        buffer_s: seconds of history; `math.inf` keeps all.
    """

    def __init__(self, buffer_s: float = 10.0) -> None:
        if not buffer_s > 0:
            raise InvalidInput(f"transform buffer must be > 0 s, got {buffer_s}")
        self._buffer_ns = None if math.isinf(buffer_s) else int(buffer_s * 1e9)
        self._links: dict[str, _Link] = {}
        self._lock = threading.RLock()

    def set(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray, static: bool = False) -> None:
        """Add one sample of a link. A second sample of the same link and stamp is ignored, as in tf2.

        Args:
            parent, child: frame names; a leading '/' is dropped.
            stamp_ns: time of the sample; without meaning if `static`.
            parent_from_child: (4, 4).
            static: holds for all times.

        Raises:
            InvalidInput: empty name, no rigid transform, or a link that would close a loop.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if max(len(parent), len(child)) > MAX_NAME:
            raise InvalidInput(
                f"names of frames have at most {MAX_NAME} characters: '{shown(parent)}' -> '{shown(child)}'"
            )
        if not parent or not child:
            raise InvalidInput(f"a transform needs two frame names, got '{parent}' -> '{child}'")
        matrix = require_rigid(f"transform '{parent}' -> '{child}'", parent_from_child).copy()
        with self._lock:
            link = self._links.get(child)
            if link is None or link.parent != parent or link.static != static:
                link = self._new_link(parent, child, static)
            if static:
                link.parent_from_child = [matrix]
            else:
                self._insert(link, int(stamp_ns), matrix)

    def _new_link(self, parent: str, child: str, static: bool) -> _Link:
        chain = self._to_root(parent)
        if child in chain:
            raise InvalidInput(
                f"transform '{parent}' -> '{child}' would close a loop: {' -> '.join([*reversed(chain), child])}"
            )
        if child not in self._links and len(self._links) >= MAX_FRAMES:
            raise InvalidInput(f"transform tree is full: limit {MAX_FRAMES} frames, '{child}' is one more")
        link = self._links[child] = _Link(parent, static)
        return link

    def _insert(self, link: _Link, stamp_ns: int, matrix: np.ndarray) -> None:
        stamps = link.stamps_ns
        if self._buffer_ns is not None and stamps and stamp_ns < stamps[-1] - min(JUMP_BACK_NS, self._buffer_ns):
            self.clear()
        at = bisect_left(stamps, stamp_ns)
        if at < len(stamps) and stamps[at] == stamp_ns:
            return
        stamps.insert(at, stamp_ns)
        link.parent_from_child.insert(at, matrix)
        if self._buffer_ns is not None:
            drop = max(bisect_left(stamps, stamps[-1] - self._buffer_ns), len(stamps) - MAX_SAMPLES)
            del stamps[:drop], link.parent_from_child[:drop]

    def clear(self) -> None:
        """Forget the samples of all moving links (their parents stay known)."""
        with self._lock:
            for link in self._links.values():
                if not link.static:
                    link.stamps_ns.clear()
                    link.parent_from_child.clear()

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """`target_from_source`, float64 (4, 4), at a time.

        Raises:
            MissingTransform: naming the link that is missing, or the stamp and the interval that is there;
                TransformNotYet where the stamp is after that.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        if target == source:
            return np.eye(4)
        with self._lock:
            up_target, up_source = self._to_root(target), self._to_root(source)
            common = next((frame for frame in up_source if frame in up_target), None)
            if common is None:
                raise MissingTransform(self._why_apart(target, source))
            try:
                common_from_source = self._climb(source, common, stamp_ns)
                return inverse(self._climb(target, common, stamp_ns)) @ common_from_source
            except MissingTransform as error:
                raise type(error)(f"no transform '{target}' <- '{source}': {error}") from None

    def require_connected(self, target: str, source: str) -> None:
        """Raise an error unless the two frames are in one tree, at whatever time.

        Raises:
            MissingTransform: naming the link that is missing.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        with self._lock:
            if target != source and not set(self._to_root(target)) & set(self._to_root(source)):
                raise MissingTransform(self._why_apart(target, source))

    def parent(self, frame: str) -> str | None:
        """Name of the parent of a frame; None for a root or an unknown frame."""
        link = self._links.get(frame.lstrip("/"))
        return link.parent if link else None

    def is_moving(self, frame: str) -> bool:
        """Whether the frame has a parent and the link to it is not static."""
        link = self._links.get(frame.lstrip("/"))
        return link is not None and not link.static

    def ancestors(self, frame: str) -> list[str]:
        """The frame itself, its parent, and so on to the root."""
        with self._lock:
            return self._to_root(frame.lstrip("/"))

    @property
    def frames(self) -> frozenset[str]:
        """All frames that were named."""
        with self._lock:
            return frozenset(name for child, link in self._links.items() for name in (child, link.parent))

    def _to_root(self, frame: str) -> list[str]:
        chain = [frame]
        while (link := self._links.get(chain[-1])) is not None:
            chain.append(link.parent)
        return chain

    def _climb(self, frame: str, ancestor: str, stamp_ns: int) -> np.ndarray:
        """`ancestor_from_frame`."""
        matrix = np.eye(4)
        while frame != ancestor:
            link = self._links[frame]
            matrix = _at(link, frame, stamp_ns) @ matrix
            frame = link.parent
        return matrix

    def _why_apart(self, target: str, source: str) -> str:
        known = self.frames
        unknown = [f"'{name}'" for name in (target, source) if name not in known]
        if unknown:
            listed = ", ".join(sorted(known)[:20]) or "none"
            return f"no transform '{target}' <- '{source}': nobody published {' or '.join(unknown)}; known: {listed}"
        roots = self._to_root(target)[-1], self._to_root(source)[-1]
        return (
            f"no transform '{target}' <- '{source}': they are in two trees; the link between '{roots[0]}' "
            f"(root of '{target}') and '{roots[1]}' (root of '{source}') is missing"
        )


def _at(link: _Link, child: str, stamp_ns: int) -> np.ndarray:
    """`parent_from_child` of a link at a time."""
    if link.static:
        return link.parent_from_child[0]
    stamps = link.stamps_ns
    name = f"link '{link.parent}' -> '{child}'"
    if not stamps:
        raise MissingTransform(f"{name} has no sample since time was set back")
    at = bisect_left(stamps, stamp_ns)
    if at < len(stamps) and stamps[at] == stamp_ns:
        return link.parent_from_child[at]
    if 0 < at < len(stamps):
        fraction = (stamp_ns - stamps[at - 1]) / (stamps[at] - stamps[at - 1])
        return interpolate(link.parent_from_child[at - 1], link.parent_from_child[at], fraction)
    nearest = 0 if at == 0 else -1
    if abs(stamp_ns - stamps[nearest]) <= TOLERANCE_NS:
        return link.parent_from_child[nearest]
    late = (stamps[0] - stamp_ns if at == 0 else stamp_ns - stamps[-1]) / 1e9
    side = "before its first" if at == 0 else "after its last"
    kind = MissingTransform if at == 0 else TransformNotYet
    raise kind(
        f"{name} is known from {_seconds(stamps[0])} to {_seconds(stamps[-1])} s, "
        f"asked {_seconds(stamp_ns)} s, {late:.3f} s {side} sample (limit {TOLERANCE_NS / 1e9} s)"
    )


def _seconds(stamp_ns: int) -> str:
    """Nanoseconds as seconds with nine decimals; a float would round them."""
    sign = "-" if stamp_ns < 0 else ""
    return f"{sign}{abs(stamp_ns) // 10**9}.{abs(stamp_ns) % 10**9:09d}"
