"""Writes a visualization_msgs/MarkerArray of cubes as CDR with numpy.

Filling Point and ColorRGBA objects takes rclpy about 10 us a cube, which alone would hold the node below 10 Hz; as one
block of memory it is a fraction of a millisecond. `Publisher.publish` takes such bytes.
"""

from __future__ import annotations

import struct

import numpy as np

from occ_core.occupancy import Occupancy

ADD, DELETE_ALL, CUBE_LIST = 0, 3, 6  # visualization_msgs/Marker constants


class CdrWriter:
    """Writes plain CDR (XCDR 1), little-endian; alignment counts from the byte after the four bytes of
    encapsulation."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def align(self, to: int) -> None:
        self.raw(b"\0" * (-self._size % to))

    def raw(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)

    def number(self, kind: str, *values: float) -> None:
        """Write numbers of one struct format character, each aligned to its own size."""
        self.align(struct.calcsize(kind))
        self.raw(struct.pack(f"<{len(values)}{kind}", *values))

    def text(self, value: str) -> None:
        data = value.encode() + b"\0"
        self.number("I", len(data))
        self.raw(data)

    def array(self, values: np.ndarray) -> None:
        """Write a sequence (N, k) of structs of k equal numbers; an empty one has no alignment of its own."""
        self.number("I", len(values))
        if len(values):
            self.align(values.dtype.itemsize)
            self.raw(np.ascontiguousarray(values).tobytes())

    def message(self) -> bytes:
        return b"".join([b"\0\1\0\0", *self._parts])


def cubes_cdr(
    centers_m: np.ndarray, rgba: np.ndarray, edge_m: float, stamp_ns: int, frame_id: str, namespace: str
) -> bytes:
    """A serialised MarkerArray of two markers: one clears what was shown, one is a CUBE_LIST.

    Args:
        centers_m: (N, 3) in the frame of `frame_id`.
        rgba: (N, 4), 0..1.
        edge_m: edge of a cube.
    """
    out = CdrWriter()
    out.number("I", 2)
    _marker(out, DELETE_ALL, np.zeros((0, 3)), np.zeros((0, 4)), edge_m, stamp_ns, frame_id, namespace)
    _marker(out, ADD, centers_m, rgba, edge_m, stamp_ns, frame_id, namespace)
    return out.message()


def occupancy_cdr(occupancy: Occupancy, stamp_ns: int, frame_id: str) -> bytes:
    """Serialised MarkerArray of the occupied voxels that can be seen, in the colours of their classes."""
    shown = occupancy.surface
    colors = occupancy.taxonomy.palette[occupancy.labels[shown]] / np.float32(255)
    rgba = np.concatenate([colors, np.ones((len(colors), 1))], axis=1)
    centers_m = occupancy.grid.centers_of_m(shown)
    return cubes_cdr(centers_m, rgba, occupancy.grid.voxel_size_m, stamp_ns, frame_id, "occupancy")


def _marker(
    out: CdrWriter,
    action: int,
    centers_m: np.ndarray,
    rgba: np.ndarray,
    edge_m: float,
    stamp_ns: int,
    frame_id: str,
    namespace: str,
) -> None:
    """Write the fields in the order of visualization_msgs/Marker (the same from Humble on)."""
    out.number("i", stamp_ns // 1_000_000_000)
    out.number("I", stamp_ns % 1_000_000_000)
    out.text(frame_id)
    out.text(namespace)
    out.number("i", 0, CUBE_LIST, action)
    out.number("d", 0, 0, 0, 0, 0, 0, 1)  # pose: position, orientation x y z w
    out.number("d", edge_m, edge_m, edge_m)
    out.number("f", 0, 0, 0, 0)  # one colour for all: not used
    out.number("i", 0)  # lifetime: for ever
    out.number("I", 0)
    out.number("B", 0)  # frame_locked
    out.array(np.asarray(centers_m, dtype="<f8"))
    out.array(np.asarray(rgba, dtype="<f4"))
    out.text("")  # texture_resource
    out.number("i", 0)  # texture, an empty CompressedImage: header, format, data
    out.number("I", 0)
    out.text("")
    out.text("")
    out.number("I", 0)
    out.number("I", 0)  # uv_coordinates
    out.text("")  # text
    out.text("")  # mesh_resource
    out.text("")  # mesh_file: filename, data
    out.number("I", 0)
    out.number("B", 0)  # mesh_use_embedded_materials
