"""Each drive in three: what is learned from, what thresholds are fitted on, and its end, that only judges.

Each stretch is labelled by itself, so no label of one has seen a frame of another, and seconds lie between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from occ_core.adapt.doctor import LEAST_KEYFRAMES, Drive
from occ_core.sources.stretch import Stretch

JUDGE_SHARE, FIT_SHARE = 0.2, 0.1  # of the keyframes
LEAST_JUDGE = 3
# Of fewer keyframes thresholds are fitted on what was learned from: 8 keyframes of one place know few classes, and make
# 33 % IoU of a network that has 45 % with those of the 36 keyframes it learned from (benchmarks/adapt.md).
LEAST_FIT = 40
GAP = 2  # keyframes between two stretches, which nobody sees; of a short recording none
PARTS = ("learn", "fit", "judge")


class Cut(NamedTuple):
    """Numbers of the keyframes of each part, in time order; `fit` may be empty."""

    learn: range
    fit: range
    judge: range


def cut(keyframes: int) -> Cut:
    """How many of a drive's keyframes go where; of one shorter than LEAST_KEYFRAMES the last alone judges."""
    if keyframes < LEAST_KEYFRAMES:
        end = keyframes - 1
        return Cut(range(end), range(end, end), range(end, keyframes))
    judge = max(LEAST_JUDGE, round(JUDGE_SHARE * keyframes))
    fit = round(FIT_SHARE * keyframes)
    end = keyframes - judge - GAP
    if fit < LEAST_FIT:
        return Cut(range(end), range(end, end), range(keyframes - judge, keyframes))
    return Cut(range(end - fit - GAP), range(end - fit, end), range(keyframes - judge, keyframes))


def folders(out: Path, scene: str) -> dict[str, Path]:
    """Folder of each part of a drive."""
    return {part: out / "stretches" / f"{scene}.{part}" for part in PARTS}


def write_cut(out: Path, drives: Sequence[Drive]) -> dict[str, list[str]]:
    """Write the stretches; returns their folders in `out` by part, those of the drives in turn."""
    made: dict[str, list[str]] = {part: [] for part in PARTS}
    for drive in drives:
        at = folders(out, drive.scene)
        for part, numbers in cut(len(drive.keyframes_ns))._asdict().items():
            if len(numbers):
                first, last = drive.keyframes_ns[numbers[0]], drive.keyframes_ns[numbers[-1]]
                Stretch(drive.bag, first, last + 1).write(at[part])
                made[part].append(str(at[part].relative_to(out)))
    return made
