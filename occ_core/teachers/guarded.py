"""Networks ask much of a machine: whatever goes wrong in one becomes an error that names the image, and no more.

A library may raise anything: out of memory, an operator that the device lacks, a shape that it does not expect. Whoever
makes labels leaves out what an `OccError` names and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from occ_core.errors import OccError
from occ_core.frame import Frame
from occ_core.teachers.base import ClassMap, ClassTeacher, DepthMap, DepthTeacher, reads_of

Maps = TypeVar("Maps")


class GuardedClasses:
    """A class teacher whose library's exceptions are ours."""

    def __init__(self, teacher: ClassTeacher) -> None:
        self.teacher, self.version = teacher, teacher.version

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: what the teacher looks at."""
        return reads_of(self.teacher, frame)

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        return _ask(self.teacher.classes, frame, "class")


class GuardedDepth:
    """A depth teacher whose library's exceptions are ours."""

    def __init__(self, teacher: DepthTeacher) -> None:
        self.teacher, self.version = teacher, teacher.version

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: what the teacher looks at."""
        return reads_of(self.teacher, frame)

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        return _ask(self.teacher.depth, frame, "depth")


def _ask(teacher: Callable[[Frame], Maps], frame: Frame, what: str) -> Maps:
    """The answer.

    Raises:
        OccError: naming the frame, and what the teacher's library raised.
    """
    try:
        return teacher(frame)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        said = text if isinstance(error, OccError) else f"{type(error).__name__}{text and ': ' + text}"
        raise OccError(f"the {what} teacher failed on '{frame.token or frame.stamp_ns}': {said}") from error
