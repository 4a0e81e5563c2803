"""Teachers' answers on disk, small: a network's answer costs seconds, reading it back milliseconds.

One file a frame: `<folder>/<hash of the teacher's version>/<scene>/<token>-<rig>-<key>.classes.zip` or `.depth.zip`.
The key is a hash of what the teacher looked at: two data sets with the same names and other images share no map. In
it, of each camera, PNGs of the classes as they are and of scores and confidences in steps of 1/16, and a lossless JPEG
2000 of the depth in 2046 steps of its logarithm between 0.3 and 300 m (0.34 % each). What is read back is what the
asker of the first time got as well, so labels do not depend on whether a map was cached.
"""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from occ_core.errors import CannotWrite, CorruptInput, OccError
from occ_core.files import write_atomically
from occ_core.frame import Frame
from occ_core.teachers.base import ClassMap, ClassTeacher, DepthMap, DepthTeacher, reads_of, seen_key
from occ_core.teachers.names import is_network

log = logging.getLogger(__name__)

SHARE_STEPS = 16
NEAR_M, FAR_M = 0.3, 300.0
NAN_CODE, INF_CODE = 0, 2047  # between them: 1 = NEAR_M ... 2046 = FAR_M
SPAN = np.log(FAR_M / NEAR_M) / (INF_CODE - 2)


def default_cache(out: Path) -> Path:
    """The folder for maps of networks if none is named: it is beside the labels, so that labels of other recipes find
    it."""
    return Path(out).resolve().parent / "teacher-maps"


def folder_for(cache: Path | None, name: str, out: Path) -> Path | None:
    """The folder to keep maps in, if any: the one asked for (`off`: none), else `default_cache` for networks."""
    if cache is not None:
        return None if str(cache) == "off" else cache
    return default_cache(out) if is_network(name) else None


def size_of(folder: Path) -> int:
    """Bytes of all maps in a cache's folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*.zip"))


class _Kept:
    """What teachers with cached answers have in common."""

    def __init__(self, teacher: ClassTeacher | DepthTeacher, folder: Path) -> None:
        self.folder, self.version = Path(folder), f"{teacher.version} cached-1"
        self._writable = True

    def _keep(self, path: Path, maps: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Write maps; where that cannot be done, say so once and go on."""
        if not self._writable:
            return
        try:
            _write(path, maps)
        except CannotWrite as error:
            self._writable = False
            log.warning("teachers' maps are not kept, each is made whenever it is needed: %s", error)


class CachedClasses(_Kept):
    """A class teacher that is asked once for every frame.

    Args:
        teacher: who is asked.
        folder: of the cache; several teachers may share it.
    """

    def __init__(self, teacher: ClassTeacher, folder: Path) -> None:
        super().__init__(teacher, folder)
        self.teacher = teacher

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: what the teacher looks at."""
        return reads_of(self.teacher, frame)

    def classes(self, frame: Frame) -> dict[str, ClassMap]:
        path = _path(self.folder, self.version, frame, "classes", seen_key(self.teacher, frame))
        try:
            return {name: decode_classes(*pictures) for name, pictures in _read(path, frame).items()}
        except OccError:
            maps = {name: encode_classes(given) for name, given in self.teacher.classes(frame).items()}
            self._keep(path, maps)
            return {name: decode_classes(*pictures) for name, pictures in maps.items()}


class CachedDepth(_Kept):
    """A depth teacher that is asked once for every frame.

    Args:
        teacher: who is asked.
        folder: of the cache; several teachers may share it.
    """

    def __init__(self, teacher: DepthTeacher, folder: Path) -> None:
        super().__init__(teacher, folder)
        self.teacher = teacher

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: what the teacher looks at."""
        return reads_of(self.teacher, frame)

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        path = _path(self.folder, self.version, frame, "depth", seen_key(self.teacher, frame))
        try:
            return {name: decode_depth(*pictures) for name, pictures in _read(path, frame).items()}
        except OccError:
            maps = {name: encode_depth(given) for name, given in self.teacher.depth(frame).items()}
            self._keep(path, maps)
            return {name: decode_depth(*pictures) for name, pictures in maps.items()}


def encode_classes(given: ClassMap) -> tuple[bytes, bytes]:
    """PNGs of the classes and of the scores."""
    return _png(given.class_id), _png(_share_code(given.score))


def decode_classes(class_png: bytes, score_png: bytes) -> ClassMap:
    """Decode what `encode_classes` wrote."""
    return ClassMap(_image(class_png, np.uint8), _share(_image(score_png, np.uint8)))


def encode_depth(given: DepthMap) -> tuple[bytes, bytes]:
    """Pictures of the depth and of the confidence. Depth beyond 300 m is stored as 300 m, below 0.3 m as unknown."""
    depth_m = given.depth_m
    finite = np.isfinite(depth_m) & (depth_m >= NEAR_M)
    steps = np.log(np.where(finite, depth_m, NEAR_M) / NEAR_M) / SPAN
    code = np.where(finite, np.rint(steps).clip(0, INF_CODE - 2) + 1, NAN_CODE)
    code[np.isposinf(depth_m)] = INF_CODE
    return _jpeg2000(code.astype(np.uint16)), _png(_share_code(given.confidence))


def decode_depth(depth_jp2: bytes, confidence_png: bytes) -> DepthMap:
    """Decode what `encode_depth` wrote; depth is within 0.17 %."""
    table = (NEAR_M * np.exp((np.arange(INF_CODE + 1) - 1) * SPAN)).astype(np.float32)
    table[NAN_CODE], table[INF_CODE] = np.nan, np.inf
    code = _image(depth_jp2, np.uint16)
    if code.max() > INF_CODE:
        raise CorruptInput(f"depth code {code.max()} is beyond {INF_CODE}")
    return DepthMap(table[code], _share(_image(confidence_png, np.uint8)))


def _share_code(share: np.ndarray) -> np.ndarray:
    return np.rint(share * SHARE_STEPS).clip(0, SHARE_STEPS).astype(np.uint8)


def _share(code: np.ndarray) -> np.ndarray:
    return (code / np.float32(SHARE_STEPS)).astype(np.float32)


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array, (cv2.IMWRITE_PNG_COMPRESSION, 6))[1].tobytes()


def _jpeg2000(array: np.ndarray) -> bytes:
    """Two thirds of a PNG's bytes, in less time; 1000 means lossless. OpenCV cannot write images below 32 px so."""
    if min(array.shape) < 32:
        return _png(array)
    return cv2.imencode(".jp2", array, (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000))[1].tobytes()


def _image(data: bytes, dtype: type) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None or image.dtype != dtype or image.ndim != 2:
        raise CorruptInput(f"a cached map is no {np.dtype(dtype).name} picture of one channel")
    return image


def _path(folder: Path, version: str, frame: Frame, kind: str, key: str) -> Path:
    teacher = hashlib.sha256(version.encode()).hexdigest()[:16]
    # A sweep has no token; depth depends on the rig's focal lengths, so another calibration is another answer.
    name = f"{frame.token or frame.stamp_ns}-{frame.rig.fingerprint}-{key}.{kind}.zip"
    return folder / teacher / (frame.scene or "-") / name


def _read(path: Path, frame: Frame) -> dict[str, tuple[bytes, bytes]]:
    """The two pictures of each camera of the frame.

    Raises:
        CorruptInput: not there, broken, or of other cameras; then the teacher has to be asked.
    """
    try:
        with zipfile.ZipFile(path) as store:
            maps = {name: (store.read(f"{name}/0"), store.read(f"{name}/1")) for name in frame.images}
            if len(store.namelist()) != 2 * len(maps):
                raise CorruptInput(f"{path}: has maps of other cameras")
            return maps
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptInput(f"{path}: no maps ({error})") from error


def _write(path: Path, maps: Mapping[str, tuple[bytes, bytes]]) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as store:
        for name, pictures in maps.items():
            for number, picture in enumerate(pictures):
                store.writestr(f"{name}/{number}", picture)
    write_atomically(path, data.getvalue())
