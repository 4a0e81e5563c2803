"""Converts sensor_msgs/PointCloud2 and files of LiDAR points to arrays, without ROS. Sizes are checked before memory is
taken."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.frame import FULL_INTENSITY
from occ_core.lidar_points import require_finite
from occ_core.limits import MAX_RETURN_M, MAX_SWEEP_BYTES, MAX_SWEEP_POINTS, shown

# sensor_msgs/PointField datatype -> numpy type
FIELD_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


def points_of(message: Any) -> np.ndarray:
    """View the data of a PointCloud2 message (any object with its fields) as a structured array (N,), without a copy.

    Raises:
        InvalidInput: a field lies outside the point or comes twice, or the data is too short.
    """
    step, count = int(message.point_step), int(message.width) * int(message.height)
    names, formats, offsets = [], [], []
    order = ">" if message.is_bigendian else "<"
    for field in _single(message.fields):
        kind = FIELD_TYPES.get(int(field.datatype))
        if kind is None:
            raise InvalidInput(f"point field '{shown(field.name)}' has datatype {field.datatype}, known: 1..8")
        if int(field.offset) + int(kind[1]) > step:
            raise InvalidInput(
                f"point field '{shown(field.name)}' at byte {field.offset} ends beyond point_step {step}"
            )
        if field.name in names:
            raise InvalidInput(f"point field '{shown(field.name)}' comes twice")
        names.append(field.name)
        formats.append(order + kind)
        offsets.append(int(field.offset))
    data = np.frombuffer(message.data, dtype=np.uint8)
    row = step * int(message.width)
    if step < 1 or int(message.row_step) < row or len(data) < int(message.row_step) * int(message.height):
        raise InvalidInput(
            f"point cloud of {message.width} x {message.height} points of {step} bytes, row_step {message.row_step}, "
            f"does not fit its {len(data)} bytes of data"
        )
    if int(message.height) > 1:  # rows may be padded
        data = data[: int(message.row_step) * int(message.height)].reshape(int(message.height), -1)[:, :row].reshape(-1)
    layout = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
    return np.frombuffer(np.ascontiguousarray(data[: count * step]), dtype=layout)


def require_sweep(message: Any) -> None:
    """Check what a LiDAR's PointCloud2 says about itself before its points are read.

    Raises:
        InvalidInput: no point at all, more points or bytes than `occ_core.limits` has, or no x, y, z.
    """
    count, size = int(message.width) * int(message.height), len(message.data)
    if not count:
        raise InvalidInput(f"point cloud is empty: {message.width} x {message.height} points")
    if count > MAX_SWEEP_POINTS:
        raise InvalidInput(f"point cloud of {count} points, a sweep has at most {MAX_SWEEP_POINTS}")
    if size > MAX_SWEEP_BYTES:
        raise InvalidInput(f"point cloud of {size} bytes, a sweep has at most {MAX_SWEEP_BYTES}")
    names = [str(field.name) for field in message.fields]
    if not {"x", "y", "z"} <= set(names):
        raise InvalidInput(f"point cloud has no x, y, z, only: {shown(', '.join(names)) or 'nothing'}")


def lidar_of(message: Any, intensity_max: float = FULL_INTENSITY) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points float32 (N, 3), intensity float32 (N,), 0..255, and ring int32 (N,); zeros where the cloud has
    none.

    Points that are not finite, or farther than any LiDAR sees, are left out. `intensity_max` is what the driver gives
    a full return.

    Raises:
        InvalidInput: no x, y, z, or as `points_of`.
    """
    points = points_of(message)
    names = points.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise InvalidInput(f"point cloud has no x, y, z, only: {shown(', '.join(names)) or 'nothing'}")
    zeros = np.zeros(len(points))
    with np.errstate(invalid="ignore", over="ignore"):  # casts of what is left out or mended below
        xyz = np.stack([points[axis].astype(np.float32) for axis in "xyz"], axis=1)
        intensity = np.nan_to_num((points["intensity"] if "intensity" in names else zeros).astype(np.float32))
        ring = (points["ring"] if "ring" in names else zeros).astype(np.int32)
    real = (np.abs(xyz) <= MAX_RETURN_M).all(axis=1)
    scaled = np.clip(intensity[real] * np.float32(FULL_INTENSITY / intensity_max), 0, FULL_INTENSITY)
    return xyz[real], scaled, ring[real]


def rows_of_file(data: bytes, columns: int, path: Path) -> np.ndarray:
    """Read a file of LiDAR points as float32 (N, columns), x, y, z first.

    Raises:
        CorruptInput: no whole number of points, or one that is not finite; names the file.
    """
    size = 4 * columns
    if len(data) % size:
        raise CorruptInput(f"{path}: {len(data)} bytes are no whole number of points of {size} bytes")
    rows = np.frombuffer(data, dtype="<f4").reshape(-1, columns)
    try:
        require_finite(rows[:, :3], str(path))
    except InvalidInput as error:
        raise CorruptInput(str(error)) from None
    return rows


def _single(fields: Iterable[Any]) -> list[Any]:
    """Keep fields of one value; arrays within a point are not used here."""
    return [field for field in fields if int(field.count) in (0, 1)]
