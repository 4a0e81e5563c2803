"""Teachers' protocols and the maps that they return.

A map may be smaller than its image (a teacher may work at its own resolution): pixel centres stay where they belong
when the camera is `resized` to the size of the map.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from occ_core.errors import InvalidInput, MissingInput
from occ_core.files import content_key
from occ_core.frame import Frame


class NoMaps(MissingInput):
    """A teacher has no usable maps of one frame, though it may of others: that frame is left out, and named."""


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Classes of one image's pixels.

    Attributes:
        class_id: uint8 (h, w), ids of the taxonomy; its free id means sky, UNLABELED that the teacher does not say.
        score: float32 (h, w), 0..1; 0 where the class is UNLABELED.

    Raises:
        InvalidInput: another type or shape.
    """

    class_id: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        _require_pair("class map", ("class_id", self.class_id, np.uint8), ("score", self.score, np.float32))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.class_id.shape[1], self.class_id.shape[0]


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Depths of one image's pixels.

    Attributes:
        depth_m: float32 (h, w) along the optical axis; +inf = sky (no surface), NaN = unknown.
        confidence: float32 (h, w), 0..1.

    Raises:
        InvalidInput: another type or shape.
    """

    depth_m: np.ndarray
    confidence: np.ndarray

    def __post_init__(self) -> None:
        _require_pair("depth map", ("depth_m", self.depth_m, np.float32), ("confidence", self.confidence, np.float32))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.depth_m.shape[1], self.depth_m.shape[0]


class ClassTeacher(Protocol):
    """Says which class each pixel has."""

    @property
    def version(self) -> str:
        """Everything that changes the maps, in one line: enters the labels' provenance and the cache's key."""

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        """Class maps by camera name, of the cameras that have an image."""


class DepthTeacher(Protocol):
    """Says how far each pixel is."""

    @property
    def version(self) -> str:
        """Everything that changes the maps, in one line: enters the labels' provenance and the cache's key."""

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        """Depth maps by camera name, of the cameras that have an image."""


def reads_of(teacher: object, frame: Frame) -> list[Path | np.ndarray]:
    """Files and arrays, beside the images, that a teacher's maps of a frame depend on; its `reads`, if it has any."""
    reads = getattr(teacher, "reads", None)
    return [] if reads is None else list(reads(frame))


def seen_key(teacher: object, frame: Frame) -> str:
    """Hash of all that a teacher's maps of a frame depend on: what its images are, and what else the teacher reads."""
    digest = hashlib.blake2b(frame.images_key.encode(), digest_size=16)
    for part in reads_of(teacher, frame):
        digest.update(content_key([part]).encode() if isinstance(part, Path) else np.ascontiguousarray(part).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Teachers:
    """A class teacher and a depth teacher that work together."""

    classes: ClassTeacher
    depth: DepthTeacher


def _require_pair(what: str, first: tuple[str, np.ndarray, type], second: tuple[str, np.ndarray, type]) -> None:
    for name, array, dtype in (first, second):
        if array.dtype != dtype or array.ndim != 2 or array.size == 0:
            raise InvalidInput(
                f"a {what}'s {name} must be {dtype.__name__} (h, w) with h, w >= 1, got {array.dtype} {array.shape}"
            )
    if first[1].shape != second[1].shape:
        raise InvalidInput(
            f"a {what} needs {first[0]} and {second[0]} of one shape, got {first[1].shape} and {second[1].shape}"
        )
