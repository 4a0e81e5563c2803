"""Reads predictions and labels in anybody's file format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from occ_core.errors import CorruptInput, MissingInput
from occ_core.grid import VoxelGrid
from occ_core.limits import shown
from occ_core.occupancy import UNNAMED, read_npz
from occ_core.taxonomy import SEMANTIC_KITTI
from occ_core.teachers.lidar import class_of_raw_kitti

SUBMITTED = ".label"
RAW_WITHOUT_CLASS = (0, 1, 52, 99)  # of SemanticKITTI: empty, outlier, other structure, other object


def _of_submission(path: Path) -> str:
    """<scene>_<frame> if the folders name the scene, else <frame>."""
    folder = Path(os.path.abspath(path)).parent
    is_kitti = folder.name == "predictions" and folder.parent.parent.name == "sequences"
    return f"{folder.parent.name}_{path.stem}" if is_kitti else path.stem


FORMS: dict[str, Callable[[Path], str]] = {
    "*.npz": lambda path: path.stem,
    "*.npy": lambda path: path.stem,
    "*/*/labels.npz": lambda path: path.parent.name,
    "*/*/pred.npz": lambda path: path.parent.name,
    "*.label": _of_submission,
    "sequences/*/predictions/*.label": _of_submission,
}
"""What a folder of predictions may hold, and how a file tells the sample that it is of."""
KNOWN_AS = ("<token>.npz", "<token>.npy", "<scene>/<token>/labels.npz", "<scene>/<token>/pred.npz", "<frame>.label",
            "sequences/<scene>/predictions/<frame>.label")  # fmt: skip


def prediction_files(folder: Path) -> dict[str, Path]:
    """Find prediction files by sample token, in the first of these formats that is there:

    `<token>.npz` (ours, CVPR 2023's challenge, SparseOcc), `<token>.npy`, `<scene>/<token>/labels.npz` as labels are
    stored, `<scene>/<token>/pred.npz` (FlashOcc), and SemanticKITTI's submissions, `sequences/<scene>/predictions/
    <frame>.label`, there or in the folder itself, which are called <scene>_<frame> as `occ predict` calls such frames.
    Hidden files, such as a Mac leaves, are none.

    Raises:
        MissingInput: none is there.
    """
    if not folder.is_dir():
        raise MissingInput(f"{folder}: no such folder")
    for form, name in FORMS.items():
        if files := {name(path): path for path in visible(folder, form)}:
            return files
    raise MissingInput(f"{folder}: no prediction in it: none of {', '.join(KNOWN_AS)}")


def visible(folder: Path, form: str) -> Iterator[Path]:
    """The paths below a folder that match a format and are not hidden."""
    return (p for p in folder.glob(form) if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_prediction(path: Path, grid: VoxelGrid) -> np.ndarray:
    """Read class ids, uint8 (X, Y, Z), from the key `pred`, from `semantics` as in Occ3D's labels, or from the only
    array if it has no name. In a submission to SemanticKITTI, raw ids without a class become empty, as in the
    benchmark.

    Raises:
        MissingInput, CorruptInput.
    """
    if path.suffix == SUBMITTED:
        return _read_submission(path, grid)
    arrays = read_npz(path, grid)
    keys = ("pred", "semantics", *([UNNAMED] if len(arrays) == 1 else []))
    array = _cells(arrays, path, grid, keys, "ui", "integers")
    if array is None:
        held = shown(", ".join(f"'{key}'" for key in arrays), 300) or "nothing"
        raise CorruptInput(f"{path}: neither 'pred' nor 'semantics' in it, but {held}")
    if array.min() < 0 or array.max() > 255:
        wrong = array.min() if array.min() < 0 else array.max()
        raise CorruptInput(f"{path}: holds label {wrong}, limits 0 and 255")
    return array.astype(np.uint8)


def read_observed(path: Path, grid: VoxelGrid) -> np.ndarray:
    """Read which cells a prediction or label speaks about, bool (X, Y, Z); all of them if the file does not say.

    Raises:
        MissingInput, CorruptInput.
    """
    if path.suffix == SUBMITTED:
        return np.ones(grid.shape, dtype=bool)
    array = _cells(read_npz(path, grid), path, grid, ("observed", "mask_camera"), "bui", "bool or integers")
    return np.ones(grid.shape, dtype=bool) if array is None else array.astype(bool)


def read_confidence(path: Path, grid: VoxelGrid) -> np.ndarray | None:
    """Read the probability that a cell is what it is called, occupied or free, x 255, uint8 (X, Y, Z); None if the file
    does not say. Labels have a share of votes under that name, which is not a byte, and not read.

    Raises:
        MissingInput, CorruptInput.
    """
    if path.suffix == SUBMITTED:
        return None
    array = _cells(read_npz(path, grid), path, grid, ("confidence",), "uf", "uint8")
    return array if array is not None and array.dtype == np.uint8 else None


def _cells(
    arrays: dict[str, np.ndarray], path: Path, grid: VoxelGrid, keys: tuple[str, ...], kinds: str, wanted: str
) -> np.ndarray | None:
    """The array under the first of `keys` that the file has; None if it has none of them."""
    for key in keys:
        if key in arrays:
            array = arrays[key]
            if array.shape != grid.shape or array.dtype.kind not in kinds:
                raise CorruptInput(f"{path}: '{key}' must be {wanted} {grid.shape}, is {array.dtype} {array.shape}")
            return array
    return None


def _read_submission(path: Path, grid: VoxelGrid) -> np.ndarray:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    data, expected = path.read_bytes(), 2 * grid.cells
    if len(data) != expected:
        raise CorruptInput(f"{path}: {len(data)} bytes, a grid of {grid.shape} has {expected}")
    raw = np.frombuffer(data, dtype="<u2")
    labels = class_of_raw_kitti()[raw]
    labels[np.isin(raw, RAW_WITHOUT_CLASS)] = SEMANTIC_KITTI.free_id
    if (strange := raw[labels == SEMANTIC_KITTI.unlabeled_id]).size:
        raise CorruptInput(
            f"{path}: holds {strange[0]}, none of SemanticKITTI's ids (car is 10, road 40, empty 0); are these numbers "
            "of classes?"
        )
    return labels.reshape(grid.shape)
