"""Pairs messages of two topics that belong together, by their stamps."""

from __future__ import annotations

from collections import deque
from typing import Any

MOST_WAITING = 64  # answers that are kept for a truth that is late, truths that wait for an answer


class Matcher:
    """Pairs each truth with the answer that is nearest in time. Its memory is bounded."""

    def __init__(self, tolerance_ns: int) -> None:
        self.tolerance_ns = tolerance_ns
        self.unmatched = 0
        self._truths: deque[tuple[int, Any]] = deque()
        self._answers: deque[tuple[int, Any]] = deque(maxlen=MOST_WAITING)

    def add_truth(self, stamp_ns: int, truth: Any) -> list[tuple[int, int, Any, Any]]:
        self._truths.append((stamp_ns, truth))
        return self.settle(None) if len(self._truths) > MOST_WAITING else []

    def add_answer(self, stamp_ns: int, answer: Any) -> list[tuple[int, int, Any, Any]]:
        """Take an answer; returns (truth stamp, answer stamp, truth, answer) of the truths for which no nearer answer
        can come any more."""
        self._answers.append((stamp_ns, answer))
        return self.settle(stamp_ns)

    def settle(self, newest_ns: int | None) -> list[tuple[int, int, Any, Any]]:
        """Decide on the truths that lie more than the tolerance before `newest_ns`; on all of them if None."""
        pairs: list[tuple[int, int, Any, Any]] = []
        kept: deque[tuple[int, Any]] = deque()
        for truth_ns, truth in self._truths:
            if newest_ns is not None and truth_ns + self.tolerance_ns >= newest_ns:
                kept.append((truth_ns, truth))
                continue
            near = [a for a in self._answers if abs(a[0] - truth_ns) <= self.tolerance_ns]
            if near:
                answer_ns, answer = min(near, key=lambda a: abs(a[0] - truth_ns))
                pairs.append((truth_ns, answer_ns, truth, answer))
            else:
                self.unmatched += 1
        self._truths = kept
        return pairs
