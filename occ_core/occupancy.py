"""Occupancy: what each cell is and whether anybody observed it; and its file format, Occ3D's labels.npz."""

from __future__ import annotations

import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.files import write_atomically
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.limits import MAX_ARRAYS, shown
from occ_core.taxonomy import OCC3D, Taxonomy


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Semantic occupancy at one time.

    Attributes:
        grid, taxonomy: what indices and labels mean.
        labels: uint8 (X, Y, Z), class ids; free where not observed.
        observed: bool (X, Y, Z). A cell that is not observed is neither free nor occupied.
        confidence: optional float32 (X, Y, Z), 0..1.
        mask_lidar: optional bool (X, Y, Z): observed by LiDAR; `observed` is then the cameras' mask.
        is_masked: somebody said what the cameras observe; False: nobody did, and `observed` is every cell.
    """

    grid: VoxelGrid
    taxonomy: Taxonomy
    labels: np.ndarray
    observed: np.ndarray
    confidence: np.ndarray | None = None
    mask_lidar: np.ndarray | None = None
    is_masked: bool = True

    def __post_init__(self) -> None:
        if self.labels.shape != self.grid.shape or self.labels.dtype != np.uint8:
            raise InvalidInput(f"labels must be uint8 {self.grid.shape}, got {self.labels.dtype} {self.labels.shape}")
        for name in ("observed", "mask_lidar"):
            mask = getattr(self, name)
            if mask is not None and (mask.shape != self.grid.shape or mask.dtype != np.bool_):
                raise InvalidInput(f"{name} must be bool {self.grid.shape}, got {mask.dtype} {mask.shape}")
        if self.confidence is not None and self.confidence.shape != self.grid.shape:
            raise InvalidInput(f"confidence must have shape {self.grid.shape}, got {self.confidence.shape}")
        largest = int(self.labels.max())
        if largest >= len(self.taxonomy) and largest != self.taxonomy.unlabeled_id:
            raise InvalidInput(
                f"label {largest} is not in taxonomy '{self.taxonomy.name}' (0..{len(self.taxonomy) - 1})"
            )

    @property
    def occupied(self) -> np.ndarray:
        """Mark cells of a class other than free that are observed, bool (X, Y, Z)."""
        return (self.labels != self.taxonomy.free_id) & self.observed

    @property
    def surface(self) -> np.ndarray:
        """Mark occupied cells with at least one of six neighbours not occupied, bool (X, Y, Z); the others are
        hidden."""
        occupied = self.occupied
        padded = np.pad(occupied, 1)
        inner = padded[2:, 1:-1, 1:-1] & padded[:-2, 1:-1, 1:-1]
        inner &= padded[1:-1, 2:, 1:-1] & padded[1:-1, :-2, 1:-1]
        inner &= padded[1:-1, 1:-1, 2:] & padded[1:-1, 1:-1, :-2]
        return occupied & ~inner


def save_occ3d(path: Path, occupancy: Occupancy) -> None:
    """Write `labels.npz` as Occ3D does, atomically; see `pack_occ3d`.

    Raises:
        CannotWrite.
    """
    write_atomically(path, pack_occ3d(occupancy))


def pack_occ3d(occupancy: Occupancy, **extra: np.ndarray) -> bytes:
    """Bytes of a `labels.npz` as Occ3D's: semantics, mask_lidar, mask_camera, uint8 (X, Y, Z); equal in, equal out.

    Args:
        occupancy: its confidence, if any, is kept as float16.
        extra: further arrays by name.
    """
    mask_lidar = occupancy.observed if occupancy.mask_lidar is None else occupancy.mask_lidar
    if occupancy.confidence is not None:
        extra = {"confidence": occupancy.confidence.astype(np.float16), **extra}
    arrays: dict[str, Any] = {  # Any: numpy's own keyword of savez stands beside the names
        "semantics": occupancy.labels,
        "mask_lidar": mask_lidar.astype(np.uint8),
        "mask_camera": occupancy.observed.astype(np.uint8),
        **extra,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # its members carry no time stamp
    return buffer.getvalue()


def load_occ3d(path: Path, grid: VoxelGrid = OCC3D_GRID, taxonomy: Taxonomy = OCC3D) -> Occupancy:
    """Read an Occ3D `labels.npz`. A mask that it lacks is unknown: see `is_masked` and `mask_lidar`.

    Raises:
        MissingInput: no such file.
        CorruptInput: not an npz, no semantics, or an array has the wrong shape, type or range; masks are 0 or 1.
    """
    arrays = read_npz(path, grid)
    if "semantics" not in arrays:
        raise CorruptInput(f"{path}: no array 'semantics', only {shown(', '.join(sorted(arrays)), 300)}")
    for key, array in arrays.items():
        if key in ("semantics", "mask_camera", "mask_lidar") and array.shape != grid.shape:
            raise CorruptInput(f"{path}: '{key}' has shape {array.shape}, the grid has {grid.shape}")
        if key.startswith("mask_") and (strange := array[(array != 0) & (array != 1)]).size:
            raise CorruptInput(f"{path}: '{key}' holds {strange[0]}, a mask is 0 or 1")
    camera, lidar = arrays.get("mask_camera"), arrays.get("mask_lidar")
    confidence = arrays.get("confidence")
    try:
        return Occupancy(
            grid,
            taxonomy,
            arrays["semantics"].astype(np.uint8),
            np.ones(grid.shape, dtype=bool) if camera is None else camera.astype(bool),
            None if confidence is None else confidence.astype(np.float32),
            None if lidar is None else lidar.astype(bool),
            is_masked=camera is not None,
        )
    except InvalidInput as error:
        raise CorruptInput(f"{path}: {error}") from error


UNNAMED = "arr_0"
"""What numpy calls an array that was saved without a name."""


def read_npz(path: Path, grid: VoxelGrid) -> dict[str, np.ndarray]:
    """All arrays of an npz that holds arrays of `grid`, or the UNNAMED one of an npy; bounded in size before memory is
    taken, never unpickling.

    Raises:
        MissingInput, CorruptInput.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    limit = 16 * grid.cells + (1 << 20)  # float64 twice per cell is more than any array of ours
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                _require_bounded_array(file, path, UNNAMED, os.fstat(file.fileno()).st_size, limit)
                file.seek(0)
                return {UNNAMED: np.load(file, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            _require_bounded(archive, path, limit)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except CorruptInput:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on damaged files
        why, kind = f"{type(error).__name__}: {shown(str(error), 300)}", "npy" if path.suffix == ".npy" else "npz"
        raise CorruptInput(f"{path}: not a readable {kind} file ({why})") from error


def _require_bounded(archive: zipfile.ZipFile, path: Path, limit: int) -> None:
    """Refuse an archive by what its directory and the arrays' headers say, before anything is unpacked."""
    items = archive.infolist()
    if len(items) > MAX_ARRAYS:
        raise CorruptInput(f"{path}: holds {len(items)} arrays, limit {MAX_ARRAYS}")
    for item in items:
        name = shown(item.filename)
        if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others unbounded
            raise CorruptInput(f"{path}: '{name}' is packed by method {item.compress_type}, not stored or deflated")
        with archive.open(item) as file:
            _require_bounded_array(file, path, name, item.file_size, limit)


def _require_bounded_array(file: IO[bytes], path: Path, name: str, size: int, limit: int) -> None:
    """Refuse one array of `size` bytes in the same way."""
    if size > limit:
        raise CorruptInput(f"{path}: '{name}' holds {size} bytes, limit {limit}")
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if (needed := math.prod(shape) * dtype.itemsize) > size:
        raise CorruptInput(f"{path}: '{name}' is said to be {dtype} {shape}, {needed} bytes, and holds {size}")
