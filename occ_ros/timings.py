"""Times of the stages of a pipeline: bounded in memory, reported as p50/p95/p99, written as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.files import write_atomically

KEPT = 20_000  # samples a stage


class StageTimes:
    """Milliseconds per stage. Safe to use from several threads."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, milliseconds: float) -> None:
        with self._lock:
            self._samples.setdefault(stage, deque(maxlen=KEPT)).append(milliseconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, 1e3 * (time.perf_counter() - start))

    def table(self, last: int = KEPT) -> dict[str, dict[str, float]]:
        """stage -> count and p50, p95, p99, max in milliseconds, of the last samples."""
        with self._lock:
            samples = {
                stage: np.fromiter(islice(reversed(values), last), dtype=float)
                for stage, values in self._samples.items()
            }
        return {stage: {"count": len(values), **percentiles(values)} for stage, values in samples.items()}


def percentiles(milliseconds: np.ndarray) -> dict[str, float]:
    """p50, p95, p99 and max; empty input gives none of them."""
    if not len(milliseconds):
        return {}
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99))
    values = {"p50": p50, "p95": p95, "p99": p99, "max": np.max(milliseconds)}
    return {key: round(float(value), 3) for key, value in values.items()}


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file as a whole or not at all.

    Raises:
        CannotWrite: full disk and the like; nothing is left of the attempt.
    """
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
