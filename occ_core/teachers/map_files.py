"""Maps of images as files: where they are, and what they hold. docs/map_files.md describes the format.

<folder>/maps.yaml                       which class each id is, how depth is counted
<folder>/classes/<image>.png             or .npy, .npz, _mask.bin; beside it perhaps <image>.score.png
<folder>/depth/<image>.jp2               or .png, .npy, .npz, .bin; beside it perhaps <image>.confidence.png

<image> is the image's path in its data set without its suffix, or <camera>/<stamp_ns>. A folder of one kind of map
needs no folder inside it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, need
from occ_core.frame import Shot
from occ_core.taxonomy import UNLABELED, Taxonomy
from occ_core.teachers.vocabulary import ID_LISTS, class_id_of

SETTINGS = "maps.yaml"
SUFFIXES = {
    "classes": (".png", ".npy", ".npz", "_mask.bin"),
    "depth": (".png", ".jp2", ".npy", ".npz", ".bin"),
}
SURE = {"classes": "score", "depth": "confidence"}
ARRAYS = {"classes": "class_id", "depth": "depth_m"}
MAX_ID = 65535
PNG, PALETTE = b"\x89PNG\r\n\x1a\n", b"\x03"  # begin of the file; its colour type


class DepthUnit(BaseModel):
    """The unit of a depth file: metres = value x `scale_m`; or equal steps of the logarithm, where `log_m` holds the
    metres of value 1 and of the last value, `sky` - 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale_m: Annotated[float, Field(gt=0)] | None = None
    log_m: tuple[float, float] | None = None
    sky: int | None = None  # the value that means no surface; 0 and NaN mean unknown


class MapFolderSettings(BaseModel):
    """The content of `maps.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: dict[int, str] | Literal["cityscapes", "occnerf"] | None = None  # id -> name; other ids are unknown
    depth: DepthUnit = DepthUnit()
    full: Annotated[int, Field(gt=0)] = 255  # the value of an integer score or confidence that means 1
    cameras: tuple[str, ...] = ()  # of files <scene>/<token>.npy that hold all of a frame's maps, in this order
    made_with: dict[str, Any] = {}  # noted by `occ teachers run`

    @property
    def named(self) -> dict[int, str]:
        """Name of each id of a class; no other has one."""
        return ID_LISTS[self.classes] if isinstance(self.classes, str) else self.classes or {}


@dataclass(frozen=True)
class MapFolder:
    """One folder of maps of one kind.

    Attributes:
        folder: where <image> begins. kind: classes | depth. settings: of `maps.yaml`.
    """

    folder: Path
    kind: str
    settings: MapFolderSettings

    def find(self, name: str, shot: Shot) -> Path | None:
        """The map of a camera's image, if there is one."""
        candidates = (self.folder / f"{stem}{suffix}" for stem in stems(name, shot) for suffix in SUFFIXES[self.kind])
        return next((path for path in candidates if path.is_file()), None)

    def find_all(self, scene: str, token: str, shots: Mapping[str, Shot]) -> dict[str, Path]:
        """The map of each image that has one; several may be in one file."""
        if self.settings.cameras and token:
            path = self.folder / scene / f"{token}.npy"
            return {name: path for name in shots if path.is_file() and name in self.settings.cameras}
        found = {name: self.find(name, shot) for name, shot in shots.items()}
        return {name: path for name, path in found.items() if path is not None}

    def looked_for(self, scene: str, token: str, shots: Mapping[str, Shot]) -> str:
        """The path at which the first image's map would be, for an error message."""
        if self.settings.cameras and token:
            return str(self.folder / scene / f"{token}.npy")
        name, shot = next(iter(shots.items()))
        places = list(stems(name, shot))
        return " or ".join(f"{self.folder / stem}{{{','.join(SUFFIXES[self.kind])}}}" for stem in places[:2])

    def read(self, path: Path, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the file of a camera's image: its values (h, w), and its confidence, float32 (h, w) in 0..1, if it has
        one.

        Args:
            size: (width, height) of the image, which files without a shape must have.

        Raises:
            CorruptInput: it is no map. InvalidInput: `maps.yaml` does not tell how to read it.
        """
        if path.suffix in (".npy", ".npz"):
            array, sure = _numpy(path, ARRAYS[self.kind], SURE[self.kind])
            if array.ndim == 3 and name in self.settings.cameras and len(array) == len(self.settings.cameras):
                array = array[self.settings.cameras.index(name)]
        elif path.suffix == ".bin":
            array, sure = _raw(path, np.dtype(np.int8 if self.kind == "classes" else np.float16), size), None
        else:
            array, sure = _picture(path), None
        beside = path.with_name(f"{_stem(path)}.{SURE[self.kind]}.png")
        if sure is None and beside.is_file():
            sure = _picture(beside)
        if array.ndim != 2 or array.size == 0 or (sure is not None and sure.shape != array.shape):
            shapes = array.shape if sure is None else f"{array.shape} with {SURE[self.kind]} {sure.shape}"
            raise CorruptInput(f"{path}: a map must be (h, w), is {shapes}")
        return array, None if sure is None else _share(sure, self.settings.full)


def open_folder(folder: Path | str, kind: str) -> MapFolder:
    """The maps of a kind in a folder: `<folder>/<kind>`, or the folder itself where it has no folder of either kind.

    Raises:
        MissingInput: no such folder, or none of that kind. InvalidInput: `maps.yaml`, naming the field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInput(f"{folder}: no such folder of maps")
    settings = read_settings(folder / SETTINGS)
    if (folder / kind).is_dir():
        return MapFolder(folder / kind, kind, settings)
    other = "depth" if kind == "classes" else "classes"
    if (folder / other).is_dir():
        raise MissingInput(f"{folder}: holds {other}/ and no {kind}/; name another teacher for {kind}, CLASSES+DEPTH")
    return MapFolder(folder, kind, settings)


def kinds_in(folder: Path | str) -> list[str]:
    """Find which kinds of maps a folder holds. A folder without subfolders for the kinds holds classes if `maps.yaml`
    names some.

    Raises:
        MissingInput: no such folder. InvalidInput: `maps.yaml`, naming the field.
    """
    kinds = [kind for kind in SUFFIXES if (Path(folder) / kind).is_dir()]
    if kinds:
        return kinds
    only = "classes" if read_settings(Path(folder) / SETTINGS).named else "depth"
    return [open_folder(folder, only).kind]


def read_settings(path: Path) -> MapFolderSettings:
    """Read `maps.yaml`; without it, the defaults hold.

    Raises:
        InvalidInput: one line that names the first wrong field.
    """
    if not path.is_file():
        return MapFolderSettings()
    try:
        record = yaml.safe_load(path.read_text()) or {}
        return MapFolderSettings.model_validate(record)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise InvalidInput(f"{path}: {where}: {first['msg']}, got {first['input']!r:.80}") from error


def class_table(settings: MapFolderSettings, folder: Path, taxonomy: Taxonomy) -> np.ndarray:
    """The class of each id, uint8 (MAX_ID + 1,), UNLABELED where `maps.yaml` names none.

    Raises:
        MissingInput: it names none at all. InvalidInput: a name that is no class, or an id out of range.
    """
    if not settings.named:
        raise MissingInput(
            f"{folder / SETTINGS}: must say which class each id is, such as 'classes: {{0: road, 10: sky}}', or "
            f"'classes: {' | '.join(ID_LISTS)}'"
        )
    table = np.full(MAX_ID + 1, UNLABELED, dtype=np.uint8)
    for number, name in settings.named.items():
        if not 0 <= number <= MAX_ID:
            raise InvalidInput(f"{folder / SETTINGS}: ids of classes must be 0..{MAX_ID}, got {number}")
        try:
            table[number] = class_id_of(name, taxonomy)
        except InvalidInput as error:
            raise InvalidInput(f"{folder / SETTINGS}: id {number}: {error}") from error
    return table


def metres_of(array: np.ndarray, unit: DepthUnit, path: Path) -> np.ndarray:
    """Convert a depth file to metres, float32 (h, w); NaN unknown, +inf sky.

    Raises:
        InvalidInput: whole numbers of no known unit.
    """
    whole = array.dtype.kind in "iu"
    if whole and unit.scale_m is None and unit.log_m is None:
        raise InvalidInput(
            f"{path}: depth in whole numbers ({array.dtype}); {SETTINGS} must say 'depth: {{scale_m: 0.001}}'"
        )
    value = array.astype(np.float64)
    if unit.log_m is not None:
        (near_m, far_m), last = unit.log_m, (unit.sky or MAX_ID + 1) - 1
        depth_m = near_m * np.exp((value - 1) * (np.log(far_m / near_m) / (last - 1)))
    else:
        depth_m = value * (1.0 if unit.scale_m is None else unit.scale_m)
    depth_m = np.where(value > 0, depth_m, np.nan)
    if unit.sky is not None:
        depth_m[value == unit.sky] = np.inf
    return depth_m.astype(np.float32)


def stems(name: str, shot: Shot) -> Iterator[str]:
    """The possible names, without suffix, of the map of a camera's image; a bag's cameras are lower case."""
    if shot.file:
        yield str(PurePosixPath(shot.file).with_suffix(""))
    yield from dict.fromkeys(f"{camera}/{shot.stamp_ns}" for camera in (name, name.upper(), name.lower()))


def _stem(path: Path) -> str:
    return path.name[: -len("_mask.bin")] if path.name.endswith("_mask.bin") else path.stem


def _picture(path: Path) -> np.ndarray:
    """Read the one channel of a picture as it is in the file; of a palette the numbers, not the colours."""
    data = path.read_bytes()
    array: np.ndarray | None
    if data[:8] == PNG and data[25:26] == PALETTE:
        array = _palette_numbers(path)
    else:
        array = cv2.imdecode(np.frombuffer(data or b"\0", np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise CorruptInput(f"{path}: no picture, or cut off")
    if array.ndim != 2:
        raise CorruptInput(f"{path}: must have one channel, numbers and not colours, is {array.dtype} {array.shape}")
    return array


def _palette_numbers(path: Path) -> np.ndarray:
    image = need("PIL.Image", "teachers")  # OpenCV gives a palette's colours
    try:
        with image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise CorruptInput(f"{path}: no picture ({error})") from error


def _numpy(path: Path, name: str, sure: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of an .npy; of an .npz `name` and perhaps `sure`, or the only one."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded as store:
            if name not in store and len(store.files) != 1:
                raise CorruptInput(f"{path}: must hold '{name}' or one array, holds {', '.join(store.files) or 'none'}")
            return store[name if name in store else store.files[0]], store.get(sure)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptInput(f"{path}: no numpy file ({error})") from error


def _raw(path: Path, dtype: np.dtype, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    expected = width * height * dtype.itemsize
    if path.stat().st_size != expected:
        raise CorruptInput(
            f"{path}: must be {expected} bytes, {dtype} of its image's {width} x {height} px, is {path.stat().st_size}"
        )
    return np.fromfile(path, dtype=dtype).reshape(height, width)


def _share(sure: np.ndarray, full: int) -> np.ndarray:
    """Convert to shares, float32, 0..1."""
    share = sure / np.float32(full) if sure.dtype.kind in "iu" else sure
    return np.clip(np.nan_to_num(share, nan=0.0), 0, 1).astype(np.float32)
