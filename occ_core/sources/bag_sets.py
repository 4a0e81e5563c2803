"""Groups a bag's images into frames and finds clocks that differ, by stamps and log times alone; no message is read.

A recording is known as a whole, so no set waits for a camera: an image joins by its own stamp, however late it reached
the recorder, as long as its clock is the others'.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from occ_core.sources.bag_survey import LogEntry

AHEAD_S = 0.5
"""A camera's stamps cannot be ahead of the others' by more: no recorder logs an image before it was taken."""
BEHIND_S = 5.0
"""By so much images may reach the recorder late; stamps farther behind are those of another clock."""
WILD_S = 1.0
NEIGHBOURS = 2  # on each side, among which a wild stamp stands out


def wild_stamps(entries: Sequence[LogEntry]) -> np.ndarray:
    """Mark stamps, bool (N,), that are far from the median of those around them, as after a clock that jumped once."""
    stamps_s = np.array([entry.stamp_ns for entry in entries], dtype=np.float64) / 1e9
    wild = np.zeros(len(stamps_s), dtype=bool)
    if len(stamps_s) < 2 * NEIGHBOURS + 1:
        return wild
    period_s = float(np.median(np.abs(np.diff(stamps_s))))
    middle_s = np.median(np.lib.stride_tricks.sliding_window_view(stamps_s, 2 * NEIGHBOURS + 1), axis=1)
    first, last = stamps_s[:NEIGHBOURS], stamps_s[-NEIGHBOURS:]
    ends = np.array([middle_s[0]] * len(first)), np.array([middle_s[-1]] * len(last))
    off_s = np.abs(stamps_s - np.concatenate([ends[0], middle_s, ends[1]]))
    wild[:] = off_s > WILD_S + 5 * period_s
    # A pause at one end of a recording is none: stamps there that go up with the log time are right.
    for i in np.flatnonzero(wild).tolist():
        if i < NEIGHBOURS or i >= len(wild) - NEIGHBOURS:
            j = NEIGHBOURS if i < NEIGHBOURS else len(wild) - 1 - NEIGHBOURS
            logged_s = abs(entries[i].log_ns - entries[j].log_ns) / 1e9
            wild[i] = abs(abs(stamps_s[i] - stamps_s[j]) - logged_s) > WILD_S + 5 * period_s
    return wild


def ahead_s(entries: Sequence[LogEntry], reference: Sequence[LogEntry]) -> np.ndarray:
    """How far each stamp, (N,), is ahead of those that the reference has at the same log time."""
    columns = zip(*sorted(reference, key=lambda entry: entry.log_ns), strict=True)
    stamp_ns, log_ns = (np.array(column, dtype=np.int64) for column in columns)
    own = np.array(entries, dtype=np.int64)
    zero_stamp, zero_log = stamp_ns[0], log_ns[0]  # small numbers, as floats hold 0.1 us of an epoch
    at = np.clip(own[:, 1], log_ns[0], log_ns[-1])
    expected = np.interp(
        (at - zero_log).astype(float), (log_ns - zero_log).astype(float), (stamp_ns - zero_stamp) * 1.0
    )
    expected += own[:, 1] - at  # beyond the reference's ends time goes on
    ahead: np.ndarray = ((own[:, 0] - zero_stamp) - expected) / 1e9
    return ahead


class Clocks(NamedTuple):
    """How the cameras' stamps run, compared with log times.

    Attributes:
        offsets_s: of each camera with images, how far its stamps are ahead of the other cameras'.
        wander_s: of each, over how much its offset spreads (four fifths of its images), beyond the steadiest camera's.
        common_s: how far all of them are ahead of the reference; 0 without one.
    """

    offsets_s: dict[str, float]
    wander_s: dict[str, float]
    common_s: float


def clocks(cameras: dict[str, Sequence[LogEntry]], reference: Sequence[LogEntry]) -> Clocks:
    """Compare the clocks of the cameras with images."""
    known = {name: entries for name, entries in cameras.items() if entries}
    if not known:
        return Clocks({}, {}, 0.0)
    against = reference or max(known.values(), key=len)
    ahead = {name: ahead_s(entries, against) for name, entries in known.items()}
    raw_s = {name: float(np.median(of)) for name, of in ahead.items()}
    common_s = median(raw_s.values()) if len(raw_s) > 2 else min(raw_s.values(), key=abs)
    spread_s = {name: float(np.subtract(*np.quantile(of, (0.9, 0.1)))) for name, of in ahead.items()}
    steadiest_s = min(spread_s.values())
    return Clocks(
        {name: value - common_s for name, value in raw_s.items()},
        {name: value - steadiest_s for name, value in spread_s.items()},
        common_s if reference else 0.0,
    )


def grouped(
    keys: Sequence[LogEntry], others: dict[str, Sequence[LogEntry]], spread_ns: int
) -> list[dict[str, LogEntry]]:
    """For each image of the key camera, the nearest image of each other sensor within the spread."""
    sorted_others = {name: sorted(entries) for name, entries in others.items()}
    stamps = {name: [entry.stamp_ns for entry in entries] for name, entries in sorted_others.items()}
    sets = []
    for key in keys:
        found = {}
        for name, entries in sorted_others.items():
            low = bisect_left(stamps[name], key.stamp_ns - spread_ns)
            high = bisect_right(stamps[name], key.stamp_ns + spread_ns)
            near = [entry for entry in entries[low:high] if abs(entry.log_ns - key.log_ns) <= BEHIND_S * 2e9]
            if near:
                found[name] = min(near, key=lambda p: (abs(p.stamp_ns - key.stamp_ns), abs(p.log_ns - key.log_ns)))
        sets.append(found)
    return sets
