"""Rays into triangles: the embree library that the package embreex brings, called directly.

embreex's own classes take triangles one by one in Python's manner: a city's million takes them as long as the rays of
six images.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from numba import njit, types

from occ_core.errors import need

# Values of embree 4's enums.
TRIANGLES, INDICES, VERTICES, THREE_INDICES, THREE_FLOATS, ROBUST = 0, 0, 1, 0x5003, 0x9003, 4
VERTEX_BYTES = 16  # embree reads vertices four floats at a time

PACK = 8  # rays that are asked at once whether they are blocked
UNHIT = np.uint32(0xFFFFFFFF)
RAY_ROWS, RAYHIT_ROWS = 12, 24  # numbers in a ray, and at least those in a ray with its hit
# Places of numbers in them: org_x is 0, dir_x is 4.
TNEAR, TIME, TFAR, MASK, ID, FLAGS, NORMAL, FACE, MESH = 3, 7, 8, 9, 10, 11, 12, 17, 18

_pointers = {n: types.void(*[types.uintp] * n) for n in (3, 4)}
_intersect: Any = types.ExternalFunction("rtcIntersect1", _pointers[3])  # scene, ray, arguments
_occluded: Any = types.ExternalFunction(f"rtcOccluded{PACK}", _pointers[4])  # which rays are valid, and the same


class Found(NamedTuple):
    """What N rays meet first.

    Attributes:
        distance_m: float32 (N,), of those that meet nothing what was given. face: int32 (N,), -1: none.
        mesh: int32 (N,), the mesh that has the face. normal: float32 (N, 3) of the face, of any length.
    """

    distance_m: np.ndarray
    face: np.ndarray
    mesh: np.ndarray
    normal: np.ndarray


class EmbreeScene:
    """Meshes that rays can meet; each is vertices (V, 3) and faces (F, 3).

    Raises:
        MissingPackage: embreex is not there.
        MemoryError: embree could not take the triangles.
    """

    def __init__(self, meshes: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        embree, device = _embree()
        self._scene = embree.rtcNewScene(device)
        weakref.finalize(self, embree.rtcReleaseScene, self._scene)
        embree.rtcSetSceneFlags(self._scene, ROBUST)
        for vertices, faces in meshes:
            geometry = embree.rtcNewGeometry(device, TRIANGLES)
            _fill(geometry, VERTICES, THREE_FLOATS, VERTEX_BYTES, vertices, ctypes.c_float)
            _fill(geometry, INDICES, THREE_INDICES, 3 * 4, faces, ctypes.c_uint32)
            embree.rtcCommitGeometry(geometry)
            embree.rtcAttachGeometry(self._scene, geometry)
            embree.rtcReleaseGeometry(geometry)
        embree.rtcCommitScene(self._scene)
        if error := embree.rtcGetDeviceError(device):
            raise MemoryError(f"embree could not take {sum(len(f) for _, f in meshes)} triangles (error {error})")

    def first(self, origins: np.ndarray, directions: np.ndarray, within_m: np.ndarray) -> Found:
        """What the rays meet first; origins, directions float32 (N, 3), within_m float32 (N,)."""
        n = len(origins)
        found = Found(within_m.copy(), np.empty(n, np.int32), np.empty(n, np.int32), np.empty((n, 3), np.float32))
        _first(self._scene, origins, directions, found)
        return found

    def blocked(self, origins: np.ndarray, directions: np.ndarray, within_m: np.ndarray) -> np.ndarray:
        """Whether the rays meet anything, bool (N,), False where `within_m` is negative; as `first`, but directions may
        be (1, 3) for all."""
        out = np.empty(len(origins), dtype=np.bool_)
        _blocked(self._scene, origins, directions, within_m, out)
        return out


@lru_cache(maxsize=1)
def _embree() -> tuple[ctypes.CDLL, int]:
    """The library, made known to numba, and this process' device."""
    # Symbols of a library are looked for in those that it depends on, too, whatever their files are called.
    library = ctypes.CDLL(need("embreex.rtcore_scene", "world").__file__)
    handle, number, size = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t
    for name, result, arguments in (
        ("rtcNewDevice", handle, (ctypes.c_char_p,)),
        ("rtcGetDeviceError", number, (handle,)),
        ("rtcNewScene", handle, (handle,)),
        ("rtcSetSceneFlags", None, (handle, number)),
        ("rtcCommitScene", None, (handle,)),
        ("rtcReleaseScene", None, (handle,)),
        ("rtcNewGeometry", handle, (handle, number)),
        ("rtcSetNewGeometryBuffer", handle, (handle, number, number, number, size, size)),
        ("rtcCommitGeometry", None, (handle,)),
        ("rtcAttachGeometry", number, (handle, handle)),
        ("rtcReleaseGeometry", None, (handle,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for external in (_intersect, _occluded):
        address = ctypes.cast(getattr(library, external.symbol), handle).value
        llvmlite.binding.add_symbol(external.symbol, address)
    return library, library.rtcNewDevice(None)


def _fill(geometry: int, kind: int, layout: int, stride: int, rows: np.ndarray, number: Any) -> None:
    """Copy rows (N, 3) into a new buffer of a geometry, which embree owns; `number` is ctypes' name of their type."""
    at = _embree()[0].rtcSetNewGeometryBuffer(geometry, kind, 0, layout, stride, len(rows))
    if at and len(rows):
        memory = (number * (stride // 4 * len(rows))).from_address(at)
        np.ctypeslib.as_array(memory).reshape(len(rows), -1)[:, :3] = rows


@njit(cache=True, inline="always")
def _aligned(rows, columns):
    """Zeros float32 (rows, columns) that start where embree wants it: at a multiple of 32 bytes."""
    room = np.zeros(rows * columns + 8, np.float32)
    skip = (-room.ctypes.data % 32) // 4
    return room[skip : skip + rows * columns].reshape(rows, columns)


@njit(cache=True)
def _first(scene, origins, directions, found):
    distance, face, mesh, normal = found
    ray = _aligned(1, RAYHIT_ROWS)[0]
    bits = ray.view(np.uint32)
    bits[MASK] = UNHIT  # all bits: no mesh is masked
    for i in range(len(origins)):
        for c in range(3):
            ray[c], ray[4 + c] = origins[i, c], directions[i, c]
        ray[TFAR] = distance[i]
        bits[FACE] = bits[MESH] = UNHIT
        _intersect(scene, ray.ctypes.data, 0)
        distance[i], face[i], mesh[i] = ray[TFAR], np.int32(bits[FACE]), np.int32(bits[MESH])
        for c in range(3):
            normal[i, c] = ray[NORMAL + c]


@njit(cache=True)
def _blocked(scene, origins, directions, within_m, out):
    rays, valid = _aligned(RAY_ROWS, PACK), _aligned(1, PACK)
    bits, is_valid = rays.view(np.uint32), valid.view(np.int32)[0]
    bits[MASK] = UNHIT
    step = 1 if len(directions) > 1 else 0
    for first in range(0, len(origins), PACK):
        n = min(PACK, len(origins) - first)
        for k in range(PACK):
            is_valid[k] = -1 if k < n else 0
        for k in range(n):
            i = first + k
            for c in range(3):
                rays[c, k], rays[4 + c, k] = origins[i, c], directions[step * i, c]
            rays[TFAR, k] = within_m[i]
        _occluded(valid.ctypes.data, scene, rays.ctypes.data, 0)
        for k in range(n):
            out[first + k] = rays[TFAR, k] == -np.inf  # embree's mark
