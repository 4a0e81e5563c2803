"""The keyframes of a data set that a run reads, and what is read with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from occ_core.sources.open import EVERY_CAMERA, Choice, FrameSource
from occ_core.teachers.base import Teachers
from occ_core.training.label_files import LabelFiles


class Keyframe(NamedTuple):
    """One keyframe: its scene, its token, its index in the source of frames, and whether it has a label."""

    scene: str
    token: str
    frame_index: int
    labelled: bool = True


@dataclass(frozen=True, eq=False)
class KeyframeSource:
    """Keyframes of one data set, with what is read for them.

    Attributes:
        frames: what they are read from.
        keyframes: which of them.
        labels: which these keyframes have; None: no labels are read.
        teachers: who is asked for class maps and depth; None: nobody.
        pseudo_labels: of keyframes without label; None: none are read.
        root: where they are read from. choice: which cameras of a recording were asked for.
    """

    frames: FrameSource
    keyframes: list[Keyframe]
    labels: LabelFiles | None = None
    teachers: Teachers | None = None
    pseudo_labels: LabelFiles | None = None
    root: Path = Path()
    choice: Choice = EVERY_CAMERA

    @property
    def scenes(self) -> dict[str, list[Keyframe]]:
        """Keyframes by scene; scenes without any are left out."""
        of: dict[str, list[Keyframe]] = {}
        for keyframe in self.keyframes:
            of.setdefault(keyframe.scene, []).append(keyframe)
        return of


def names_of(sources: Sequence[KeyframeSource]) -> list[str]:
    """Name each keyframe; the names are unique within a data set."""
    named = ((source.keyframes, source.frames.names) for source in sources)
    return [names[keyframe.frame_index] for keyframes, names in named for keyframe in keyframes]
