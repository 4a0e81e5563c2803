"""Hashed value noise, the grain of every procedural texture. Scalar numba functions, called per pixel."""

from __future__ import annotations

import math

from numba import njit


@njit(cache=True, inline="always")
def hash01(ix, iy, iz, seed):
    """Repeatable number in 0..1 of three lattice indices and a seed."""
    h = (ix * 374761393 + iy * 668265263 + iz * 1440662683 + seed * 1013904223) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 2246822519) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 3266489917) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFFFF) / 16777216.0


@njit(cache=True)
def noise3(x, y, z, seed):
    """Value noise in 0..1 on the unit lattice, smoothly interpolated."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    a = hash01(ix, iy, iz, seed) * (1 - u) + hash01(ix + 1, iy, iz, seed) * u
    b = hash01(ix, iy + 1, iz, seed) * (1 - u) + hash01(ix + 1, iy + 1, iz, seed) * u
    c = hash01(ix, iy, iz + 1, seed) * (1 - u) + hash01(ix + 1, iy, iz + 1, seed) * u
    d = hash01(ix, iy + 1, iz + 1, seed) * (1 - u) + hash01(ix + 1, iy + 1, iz + 1, seed) * u
    return (a * (1 - v) + b * v) * (1 - w) + (c * (1 - v) + d * v) * w


@njit(cache=True)
def noise2(x, y, seed):
    """Value noise in 0..1 on the unit square lattice."""
    fx, fy = math.floor(x), math.floor(y)
    ix, iy = int(fx), int(fy)
    u, v = x - fx, y - fy
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    a = hash01(ix, iy, 0, seed) * (1 - u) + hash01(ix + 1, iy, 0, seed) * u
    b = hash01(ix, iy + 1, 0, seed) * (1 - u) + hash01(ix + 1, iy + 1, 0, seed) * u
    return a * (1 - v) + b * v


@njit(cache=True, inline="always")
def keep(footprint_m, size_m):
    """Weight 1..0 of a detail of `size_m` seen by a pixel that covers `footprint_m`: fades it out before it aliases."""
    ratio = 2.0 - 3.0 * footprint_m / size_m  # whole up to a third of the size, nothing from two thirds on
    return min(1.0, max(0.0, ratio))


@njit(cache=True)
def grain2(x, y, size_m, footprint_m, seed):
    """Noise in -1..1 with features of `size_m`, 0 where a pixel cannot resolve them."""
    k = keep(footprint_m, size_m)
    if k <= 0.0:
        return 0.0
    return k * (2.0 * noise2(x / size_m, y / size_m, seed) - 1.0)


@njit(cache=True)
def grain3(x, y, z, size_m, footprint_m, seed):
    """The same as `grain2`, in space."""
    k = keep(footprint_m, size_m)
    if k <= 0.0:
        return 0.0
    return k * (2.0 * noise3(x / size_m, y / size_m, z / size_m, seed) - 1.0)
