"""Converts between numpy arrays and ROS messages, and does nothing else. Arrays are copied as blocks of bytes, never
element by element."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from occ_core.clouds import fields_of
from occ_core.errors import InvalidInput
from occ_core.sensor_messages import Header as ImageHeader
from occ_core.sensor_messages import image_header
from occ_core.sensor_messages import image_of as any_image_of
from occ_core.sources.clouds import points_of as any_points_of

BRIDGED = frozenset(("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuv422", "yuv422_yuy2")) | {
    f"bayer_{pattern}8" for pattern in ("rggb", "bggr", "gbrg", "grbg")
}
"""Encodings that every cv_bridge turns into colours; it has no word for the others."""


def stamp_ns_of(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def header_of(stamp_ns: int, frame_id: str) -> Header:
    return Header(stamp=Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000), frame_id=frame_id)


def image_of(
    message: Image | CompressedImage, at_least: tuple[int, int] | None = None, header: ImageHeader | None = None
) -> np.ndarray:
    """Read an image as RGB uint8 (height, width, 3); a JPEG may be decoded smaller, see `decode_compressed`.

    An Image goes through cv_bridge where that is installed. `header` is the image's, where it is known already.

    Raises:
        Unusable: as `occ_core.sensor_messages` finds it.
    """
    bridge = None if isinstance(message, CompressedImage) else _bridge()
    if bridge is not None and message.encoding in BRIDGED and len(message.data) >= message.step * message.height:
        if header is None:
            image_header(message)
        return bridge.imgmsg_to_cv2(message, "rgb8")
    return any_image_of(message, at_least, header=header)


@functools.cache
def _bridge() -> Any | None:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        return None
    return CvBridge()


def cloud_of(points: np.ndarray, stamp_ns: int, frame_id: str) -> PointCloud2:
    """Make a PointCloud2 of a structured array (N,), for example of `VOXEL_POINT`; (height, width) makes an organised
    cloud."""
    height, width = points.shape if points.ndim == 2 else (1, len(points))
    data = array("B")
    data.frombytes(np.ascontiguousarray(points).view(np.uint8).data)
    return PointCloud2(
        header=header_of(stamp_ns, frame_id),
        height=height,
        width=width,
        fields=[
            PointField(name=name, offset=offset, datatype=kind, count=1)
            for name, offset, kind in fields_of(points.dtype)
        ],
        is_bigendian=False,
        point_step=points.dtype.itemsize,
        row_step=points.dtype.itemsize * width,
        data=data,
        is_dense=points.ndim == 1,  # places of an organised cloud may be empty
    )


def mono8_of(pixels: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """Image of uint8 (height, width)."""
    data = array("B")
    data.frombytes(np.ascontiguousarray(pixels).data)
    height, width = pixels.shape
    return Image(
        header=header_of(stamp_ns, frame_id), height=height, width=width, encoding="mono8", step=width, data=data
    )


def points_of(message: PointCloud2, layout: np.dtype) -> np.ndarray:
    """Read a cloud as a structured array (N,) of `layout`; it must have at least these fields with these types.

    Raises:
        InvalidInput: a field is missing or of another type, or there is less data than the size says.
    """
    there = any_points_of(message)
    points = np.empty(len(there), dtype=layout)
    for name in layout.names or ():
        if name not in (there.dtype.names or ()) or there.dtype[name] != layout[name]:
            raise InvalidInput(f"point cloud needs field '{name}' of type {layout[name]}, it has {there.dtype.fields}")
        points[name] = there[name]
    return points


def status_of(level: int, name: str, hardware_id: str, text: str, values: Mapping[str, Any]) -> DiagnosticStatus:
    """Make a DiagnosticStatus; level 0 = OK, 1 = WARN, 2 = ERROR, 3 = STALE."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=bytes([level]), name=name, hardware_id=hardware_id, message=text, values=pairs)
