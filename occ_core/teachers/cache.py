"""Teachers' answers on disk, small: a network's answer costs seconds, reading it back milliseconds.

One file a frame: `<folder>/<hash of the teacher's version>/<scene>/<token>-<rig>.classes.zip` or `.depth.zip`. In it,
one PNG a camera and quantity: classes as they are, scores and confidences in steps of 1/32, depth in 4,094 steps of its
logarithm between 0.1 and 1000 m (0.23 % each). What is read back is what the asker of the first time got as well, so
labels do not depend on whether a map was cached.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import CorruptInput, OccError
from occ_core.files import write_atomically
from occ_core.frame import Frame
from occ_core.teachers.base import ClassMap, ClassTeacher, DepthMap, DepthTeacher

SHARE_STEPS = 32
NEAR_M, FAR_M = 0.1, 1000.0
NAN_CODE, INF_CODE = 0, 4095  # between them: 1 = NEAR_M ... 4094 = FAR_M
SPAN = np.log(FAR_M / NEAR_M) / (INF_CODE - 2)


class CachedClasses:
    """A class teacher that is asked once for every frame.

    Args:
        teacher: who is asked.
        folder: of the cache; several teachers may share it.
    """

    def __init__(self, teacher: ClassTeacher, folder: Path) -> None:
        self.teacher, self.folder, self.version = teacher, Path(folder), f"{teacher.version} cached-1"

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        path = _path(self.folder, self.version, frame, "classes")
        try:
            return {name: decode_classes(*pngs) for name, pngs in _read(path, frame).items()}
        except OccError:
            maps = {name: encode_classes(given) for name, given in self.teacher.classes(frame).items()}
            _write(path, maps)
            return {name: decode_classes(*pngs) for name, pngs in maps.items()}


class CachedDepth:
    """A depth teacher that is asked once for every frame.

    Args:
        teacher: who is asked.
        folder: of the cache; several teachers may share it.
    """

    def __init__(self, teacher: DepthTeacher, folder: Path) -> None:
        self.teacher, self.folder, self.version = teacher, Path(folder), f"{teacher.version} cached-1"

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        path = _path(self.folder, self.version, frame, "depth")
        try:
            return {name: decode_depth(*pngs) for name, pngs in _read(path, frame).items()}
        except OccError:
            maps = {name: encode_depth(given) for name, given in self.teacher.depth(frame).items()}
            _write(path, maps)
            return {name: decode_depth(*pngs) for name, pngs in maps.items()}


def encode_classes(given: ClassMap) -> tuple[bytes, bytes]:
    """PNGs of the classes and of the scores."""
    return _png(given.class_id), _png(_share_code(given.score))


def decode_classes(class_png: bytes, score_png: bytes) -> ClassMap:
    """What `encode_classes` wrote."""
    return ClassMap(_image(class_png, np.uint8), _share(_image(score_png, np.uint8)))


def encode_depth(given: DepthMap) -> tuple[bytes, bytes]:
    """PNGs of the depth and of the confidence. Depth beyond 1000 m is stored as 1000 m, below 0.1 m as unknown."""
    depth_m = given.depth_m
    finite = np.isfinite(depth_m) & (depth_m >= NEAR_M)
    steps = np.log(np.where(finite, depth_m, NEAR_M) / NEAR_M) / SPAN
    code = np.where(finite, np.rint(steps).clip(0, INF_CODE - 2) + 1, NAN_CODE)
    code[np.isposinf(depth_m)] = INF_CODE
    return _png(code.astype(np.uint16)), _png(_share_code(given.confidence))


def decode_depth(depth_png: bytes, confidence_png: bytes) -> DepthMap:
    """What `encode_depth` wrote, depth within 0.12 %."""
    table = (NEAR_M * np.exp((np.arange(INF_CODE + 1) - 1) * SPAN)).astype(np.float32)
    table[NAN_CODE], table[INF_CODE] = np.nan, np.inf
    code = _image(depth_png, np.uint16)
    if code.max() > INF_CODE:
        raise CorruptInput(f"depth code {code.max()} is beyond {INF_CODE}")
    return DepthMap(table[code], _share(_image(confidence_png, np.uint8)))


def _share_code(share: np.ndarray) -> np.ndarray:
    return np.rint(share * SHARE_STEPS).clip(0, SHARE_STEPS).astype(np.uint8)


def _share(code: np.ndarray) -> np.ndarray:
    return (code / np.float32(SHARE_STEPS)).astype(np.float32)


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array, (cv2.IMWRITE_PNG_COMPRESSION, 6))[1].tobytes()


def _image(png: bytes, dtype: type) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if image is None or image.dtype != dtype or image.ndim != 2:
        raise CorruptInput(f"a cached map is no {np.dtype(dtype).name} PNG of one channel")
    return image


def _path(folder: Path, version: str, frame: Frame, kind: str) -> Path:
    teacher = hashlib.sha256(version.encode()).hexdigest()[:16]
    # A sweep has no token; depth depends on the rig's focal lengths, so another calibration is another answer.
    name = f"{frame.token or frame.stamp_ns}-{frame.rig.fingerprint}.{kind}.zip"
    return folder / teacher / (frame.scene or "-") / name


def _read(path: Path, frame: Frame) -> dict[str, tuple[bytes, bytes]]:
    """The two PNGs of each camera of the frame.

    Raises:
        CorruptInput: not there, broken, or of other cameras; then the teacher has to be asked.
    """
    try:
        with zipfile.ZipFile(path) as store:
            maps = {name: (store.read(f"{name}/0.png"), store.read(f"{name}/1.png")) for name in frame.images}
            if len(store.namelist()) != 2 * len(maps):
                raise CorruptInput(f"{path}: has maps of other cameras")
            return maps
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptInput(f"{path}: no maps ({error})") from error


def _write(path: Path, maps: Mapping[str, tuple[bytes, bytes]]) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as store:
        for name, pngs in maps.items():
            for number, png in enumerate(pngs):
                store.writestr(f"{name}/{number}.png", png)
    write_atomically(path, data.getvalue())
