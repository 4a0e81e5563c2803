"""A map as a file: an npz of known arrays, without pickle; sizes are checked before memory is taken."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.files import write_atomically
from occ_core.limits import shown
from occ_core.mapping.rolling_map import FARTHEST_M, MapState, RollingMap

FORMAT = 1
MAX_ABOUT_BYTES = 1 << 16


def save_map(path: Path, rolling_map: RollingMap, frame: str) -> None:
    """Write the map, atomically.

    Args:
        frame: name of the world frame.

    Raises:
        CannotWrite: full disk, no permission and the like; what was there before stays.
    """
    state = rolling_map.state()
    about = {**_about(rolling_map, frame), "first_cell": state.first_cell}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        log_odds=state.log_odds,
        label=state.label,
        votes=state.votes,
    )
    write_atomically(path, buffer.getvalue())


def load_map(path: Path, rolling_map: RollingMap, frame: str) -> None:
    """Take over a saved map; `rolling_map` stays as it is when anything is wrong.

    Args:
        frame: name of the world frame that the map has to be in.

    Raises:
        MissingInput: no such file.
        CorruptInput: cut short, damaged, or no map.
        InvalidInput: of another frame, voxel size, taxonomy or size.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            about = _read_about(archive)
            for key, expected in _about(rolling_map, frame).items():
                if about.get(key) != expected:
                    raise InvalidInput(f"{path}: map has {key} {shown(str(about.get(key)), 300)}, needed {expected}")
            size, classes = rolling_map.shape, len(rolling_map.taxonomy)
            log_odds = _read(archive, "log_odds", np.float32, size)
            label = _read(archive, "label", np.uint8, size)
            votes = _read(archive, "votes", np.uint8, (*size, classes))
    except InvalidInput:
        raise
    except Exception as error:  # zipfile, zlib, json and numpy raise a dozen types on damaged files
        reason = " ".join(str(error).split())  # numpy gives advice over several lines
        raise CorruptInput(f"{path}: not a readable map file ({type(error).__name__}: {shown(reason, 300)})") from error
    if not np.isfinite(log_odds).all() or label.max() >= classes:
        raise CorruptInput(f"{path}: log-odds are not finite, or a label is not below {classes}")
    rolling_map.restore(MapState(_first_cell(path, about, rolling_map.voxel_size_m), log_odds, label, votes))


def _about(rolling_map: RollingMap, frame: str) -> dict[str, Any]:
    """What must be the same in file and node; in lists, as in JSON."""
    return {
        "format": FORMAT,
        "frame": frame,
        "taxonomy": rolling_map.taxonomy.name,
        "classes": list(rolling_map.taxonomy.names),
        "voxel_size_m": rolling_map.voxel_size_m,
        "shape": list(rolling_map.shape),
    }


def _first_cell(path: Path, about: dict[str, Any], voxel_size_m: float) -> tuple[int, int, int]:
    first = about.get("first_cell")
    numbers = isinstance(first, list) and len(first) == 3 and all(type(number) is int for number in first)
    if not numbers or max(abs(number) for number in first) * voxel_size_m > FARTHEST_M:  # type: ignore[union-attr]
        raise CorruptInput(f"{path}: first_cell {shown(str(first))} is not three whole numbers within {FARTHEST_M:g} m")
    return tuple(first)  # type: ignore[arg-type, return-value]


def _read_about(archive: zipfile.ZipFile) -> dict[str, Any]:
    with archive.open("about.npy") as file:
        count = _header(file, "about", np.uint8)
        if len(count) != 1 or count[0] > MAX_ABOUT_BYTES:
            raise ValueError(f"'about' has shape {count}, limit {MAX_ABOUT_BYTES} bytes")
        about = json.loads(file.read(count[0]))
    if not isinstance(about, dict):
        raise ValueError("'about' is no JSON object")
    return about


def _read(archive: zipfile.ZipFile, name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array that has to have this type and shape: never more is read, whatever the file says of its size."""
    with archive.open(f"{name}.npy") as file:
        if (found := _header(file, name, kind)) != shape:
            raise ValueError(f"'{name}' has shape {found}, needed {shape}")
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        data = file.read(size)
        if len(data) != size or file.read(1):  # reading to the end checks the checksum too
            raise ValueError(f"'{name}' holds {len(data)} bytes or more, needed {size}")
    return np.frombuffer(data, dtype=kind).reshape(shape)


def _header(file: IO[bytes], name: str, kind: type) -> tuple[int, ...]:
    """Shape of an npy stream of this type in C order."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"'{name}' is npy version {version}, needed (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.dtype(kind) or fortran_order:
        raise ValueError(f"'{name}' has type {dtype}, needed {np.dtype(kind)} in C order")
    return shape
