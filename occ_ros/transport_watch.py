"""Finds what was lost on its way: which images, and which frames as a whole.

CameraInfo is small and gets through where images are lost, and it carries the stamp of its image. Without CameraInfo
the stamps themselves tell, by their gaps.
"""

from __future__ import annotations

import statistics
from bisect import bisect
from collections import Counter, deque
from collections.abc import Sequence

from occ_core.sync import FrameSynchroniser, SyncedSet

WAIT_NS = 1_000_000_000  # an image that comes later than this after its CameraInfo counts as lost
RECENT_NS = 5_000_000_000  # losses are worth a word for so long
REMEMBERED = 256  # stamps a camera
JUDGED = 32  # CameraInfos a camera, by which it is told whether they go with its images
KNOWN = 3  # of these that did
FASTER = 0.75  # of the images' step: CameraInfos come at a rate of their own
GAPS = 1.75, 20.0  # periods from one stamp to the next that mean that some are missing; more are an outage


class TransportWatch:
    """Compares stamps of CameraInfos with those of images.

    Args:
        cameras: names.
        max_spread_s: as the synchroniser's.
        announced: CameraInfos are expected; False: gaps between the stamps of the images are counted.

    Attributes:
        lost_frames: frames of which no image came.
        lost_images: images that did not come, by camera.
    """

    def __init__(self, cameras: Sequence[str], max_spread_s: float, announced: bool = True) -> None:
        self._frames = FrameSynchroniser(cameras, WAIT_NS / 1e9, max_spread_s)
        self._by_gaps = not announced
        self._tolerance_ns = round(max_spread_s * 1e9)
        self._stamps_ns: dict[str, deque[int]] = {name: deque(maxlen=REMEMBERED) for name in cameras}
        self._infos_ns: dict[str, deque[int]] = {name: deque(maxlen=REMEMBERED) for name in cameras}
        # Of each camera's last CameraInfos: whether an image came with it, and whether with its very stamp.
        self._matches: dict[str, deque[tuple[bool, bool]]] = {name: deque(maxlen=JUDGED) for name in cameras}
        self._due: deque[tuple[int, SyncedSet]] = deque()
        self._losses_ns: dict[str, deque[int]] = {name: deque(maxlen=REMEMBERED) for name in cameras}
        self.lost_frames = 0
        self.lost_images: Counter[str] = Counter()

    def image(self, camera: str, stamp_ns: int, now_ns: int) -> None:
        """Note that an image came."""
        stamps = self._stamps_ns[camera]
        own_rate = len(self._matches[camera]) >= JUDGED // 4 and not self._announces(camera)
        if (self._by_gaps or own_rate) and len(stamps) >= 8:
            steps = [b - a for a, b in zip(stamps, list(stamps)[1:], strict=False)]
            period = statistics.median(steps[-32:])
            if GAPS[0] * period < stamp_ns - stamps[-1] < GAPS[1] * period:
                self._lose(camera, round((stamp_ns - stamps[-1]) / period) - 1, now_ns)
        stamps.append(stamp_ns)

    def info(self, camera: str, stamp_ns: int, now_ns: int) -> None:
        """Note that a CameraInfo came; stamp zero is calibration that belongs to no image."""
        if stamp_ns:
            self._infos_ns[camera].append(stamp_ns)
            self._hold(self._frames.add(camera, stamp_ns, None, now_ns), now_ns)

    def poll(self, now_ns: int) -> None:
        """Judge the frames whose images have had their time."""
        self._hold(self._frames.poll(now_ns), now_ns)
        if self._due and self._due[0][0] > now_ns + 2 * WAIT_NS:  # the clock was set back
            self._due = deque((now_ns + WAIT_NS, frame) for _, frame in self._due)
        while self._due and self._due[0][0] <= now_ns:
            self._judge(self._due.popleft()[1], now_ns)

    def finish(self) -> None:
        """Judge what is left, since nothing more will come."""
        for frame in [*(group for _, group in self._due), *self._frames.flush()]:
            self._judge(frame, 0)
        self._due.clear()

    def recently_lost(self, camera: str, now_ns: int) -> int:
        """The number of a camera's images lost in the last RECENT_NS."""
        return sum(0 <= now_ns - lost_ns <= RECENT_NS for lost_ns in self._losses_ns[camera])

    def _hold(self, frames: list[SyncedSet], now_ns: int) -> None:
        self._due.extend((now_ns + WAIT_NS, frame) for frame in frames)

    def _judge(self, frame: SyncedSet, now_ns: int) -> None:
        came = {camera: self._came(camera, stamp_ns) for camera, stamp_ns in frame.stamps_ns.items()}
        missing = {camera for camera, there in came.items() if not there and self._announces(camera)}
        lost = {camera for camera in missing if not self._kept_pace(camera, frame.stamps_ns[camera])}
        self.lost_frames += len(lost) == len(came)
        for camera in lost:
            seen = self._stamps_ns[camera]
            if seen and frame.stamps_ns[camera] > seen[0]:  # before its first image it was not connected
                self._lose(camera, 1, now_ns)

    def _kept_pace(self, camera: str, stamp_ns: int) -> bool:
        """Whether CameraInfos come faster than images, and the images before and after followed each other at their own
        pace, so that this CameraInfo announced none. The same holds for one after the last image while the next is not
        due: the robot may have stopped."""
        images, infos = sorted(set(self._stamps_ns[camera])), sorted(set(self._infos_ns[camera]))
        after = bisect(images, stamp_ns)
        if min(len(images), len(infos)) < KNOWN or not after:
            return False
        next_ns = images[after] if after < len(images) else stamp_ns
        pace = _pace_ns(images)
        return _pace_ns(infos) < FASTER * pace and next_ns - images[after - 1] < GAPS[0] * pace

    def _announces(self, camera: str) -> bool:
        """Whether most CameraInfos of this camera had an image; not so where images are throttled, or CameraInfo has a
        rate of its own. A camera of which no image came is taken to be one that should send them."""
        came = sum(there for there, _ in self._matches[camera])
        return not self._stamps_ns[camera] or (came >= KNOWN and 2 * came >= len(self._matches[camera]))

    def _came(self, camera: str, stamp_ns: int) -> bool:
        stamps, matches = self._stamps_ns[camera], self._matches[camera]
        exact = stamp_ns in stamps
        # Some drivers stamp image and CameraInfo apart; their nearest image then has to do. Stamps that coincide by
        # chance do not make a driver exact.
        exactly = sum(was_exact for _, was_exact in matches)
        is_exact = exactly >= KNOWN and 2 * exactly >= len(matches)
        there = exact or (not is_exact and any(abs(other - stamp_ns) <= self._tolerance_ns for other in stamps))
        if stamps:
            matches.append((there, exact))
        return there

    def _lose(self, camera: str, count: int, now_ns: int) -> None:
        self.lost_images[camera] += count
        self._losses_ns[camera].extend([now_ns] * min(count, REMEMBERED))


def _pace_ns(stamps_ns: Sequence[int]) -> int:
    """The usual step of sorted stamps; it is not their median, because half of them may be lost."""
    steps = sorted(b - a for a, b in zip(stamps_ns, stamps_ns[1:], strict=False))
    return steps[len(steps) // 4]
