"""Computes the light at hit points: sun with shadow, sky, lamps, mirrors, haze. One numba kernel runs over all pixels
of an image.

Plain diffuse shading plus one mirror term against an analytic surrounding (sky over a hashed skyline); nothing here is
physically exact, it only has to be as varied and as unhelpful to a colour classifier as a real street is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from occ_core.world import materials as m
from occ_core.world.noise import grain2, grain3, keep, noise2, noise3
from occ_core.world.textures import ground_surface, solid_surface

PANE_CLEAR, CABIN_CLEAR = 0.85, 0.45  # light that passes one face of a pane, of a cabin's tinted glass
SKY, GROUND = -2, -1
"""Values of a hit's solid index that are no solid."""


class Light(NamedTuple):
    """Everything that lights a scene at one time, float64, linear RGB."""

    sun_direction: np.ndarray  # (3,) towards the sun (the moon at night)
    sun: np.ndarray  # (3,)
    ambient: np.ndarray  # (3,) from above
    horizon: np.ndarray  # (3,)
    zenith: np.ndarray  # (3,)
    cloud: float  # share of the sky, 0..1
    seed: int
    fog_per_m: float
    wetness: float
    night: bool
    spots: np.ndarray  # (L, 11): position 3, direction 3, cosine of the cone, rgb 3, reach_m


class SolidTable(NamedTuple):
    """Per solid: pose, shape and looks."""

    solid_from_world: np.ndarray  # float64 (N, 3, 4)
    half_size_m: np.ndarray  # float32 (N, 3)
    kind: np.ndarray  # uint8 (N,)
    material: np.ndarray  # uint8 (N,)
    color: np.ndarray  # float32 (N, 3)
    seed: np.ndarray  # int64 (N,)


class GroundTable(NamedTuple):
    """Materials of the ground raster."""

    x0_m: float
    y0_m: float
    cell_m: float
    material: np.ndarray  # uint8 (nx, ny)
    seed: int


@njit(cache=True, inline="always")
def sky(dx, dy, dz, light):
    """Light from the sky along a unit direction, rgb."""
    up = max(0.0, dz)
    k = 1.0 - math.exp(-3.5 * up)
    r = light.horizon[0] + (light.zenith[0] - light.horizon[0]) * k
    g = light.horizon[1] + (light.zenith[1] - light.horizon[1]) * k
    b = light.horizon[2] + (light.zenith[2] - light.horizon[2]) * k
    if light.cloud > 0.0:
        s = 1.0 / (up + 0.12)
        x, y = dx * s, dy * s
        d = noise2(x * 1.1, y * 1.1, light.seed) * 0.55 + noise2(x * 2.7, y * 2.7, light.seed + 1) * 0.28
        least = 0.78 - 0.62 * light.cloud
        if d + 0.18 > least:  # else the finer noise, up to 0.17, cannot make a cloud of it
            d += noise2(x * 7.0, y * 7.0, light.seed + 2) * 0.12 + noise2(x * 17.0, y * 17.0, light.seed + 3) * 0.05
        c = min(1.0, max(0.0, (d - least) * 4.5))
        white = (light.horizon[0] + light.horizon[1] + light.horizon[2]) / 3.0 * (1.1 - 0.5 * light.cloud * d)
        glow = 0.25 * (light.sun[0] + light.sun[1]) * 0.5 * (1.0 - light.cloud)
        r += (white + glow - r) * c
        g += (white + glow - g) * c
        b += (white * 1.03 + glow - b) * c
    toward = dx * light.sun_direction[0] + dy * light.sun_direction[1] + dz * light.sun_direction[2]
    if toward > 0.0 and not light.night:
        glare = (0.5 * toward**24 + 1.5 * toward**400 + (30.0 if toward > 0.99996 else 0.0)) * (
            1.0 - 0.85 * light.cloud
        )
        r, g, b = r + light.sun[0] * glare * 0.4, g + light.sun[1] * glare * 0.4, b + light.sun[2] * glare * 0.35
    return r, g, b


@njit(cache=True, inline="always")
def surrounding(dx, dy, dz, light):
    """What a mirror reflects: sky above a made-up skyline, dim street below."""
    azimuth = math.atan2(dy, dx) * 7.0
    skyline = 0.05 + 0.3 * noise2(azimuth, 0.5, light.seed)
    if dz > skyline:
        return sky(dx, dy, dz, light)
    k = 0.10 + 0.2 * noise2(azimuth * 3.0, dz * 12.0, light.seed + 1) * min(1.0, max(0.0, 1.0 + 4.0 * dz))
    level = light.ambient
    return level[0] * k, level[1] * k, level[2] * k


@njit(cache=True, inline="always")
def _spot_light(px, py, pz, nx, ny, nz, light):
    """Sum of the lamps at a point with a normal; no shadows."""
    r, g, b = 0.0, 0.0, 0.0
    for i in range(light.spots.shape[0]):
        s = light.spots[i]
        vx, vy, vz = s[0] - px, s[1] - py, s[2] - pz
        d2 = vx * vx + vy * vy + vz * vz
        if d2 > s[10] * s[10]:
            continue
        d = math.sqrt(d2) + 1e-6
        vx, vy, vz = vx / d, vy / d, vz / d
        cone = -(vx * s[3] + vy * s[4] + vz * s[5])
        if cone < s[6]:
            continue
        facing = nx * vx + ny * vy + nz * vz
        if facing <= 0.0:
            continue
        edge = min(1.0, (cone - s[6]) / (0.35 * (1.0 - s[6])))
        fade = 1.0 - d / s[10]
        k = facing * edge * fade * fade / (1.0 + 0.12 * d2)
        r, g, b = r + s[7] * k, g + s[8] * k, b + s[9] * k
    return r, g, b


@njit(cache=True)
def _spline(t):
    """Weights of four cells in a row, at the fraction t between the middle two: cubic B-spline."""
    return (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )


@njit(cache=True, inline="always")
def _ground_material(x, y, ground):
    """Material at (x, y) and how much of a road marking is there: cell borders become smooth lines instead of stairs.

    Of 4 x 4 cells the material with the largest share, by cubic spline weights. Lines are about one cell wide, so
    markings count as such from a smaller share on.
    """
    fx, fy = (x - ground.x0_m) / ground.cell_m - 0.5, (y - ground.y0_m) / ground.cell_m - 0.5
    nx, ny = ground.material.shape
    ix = min(max(int(math.floor(fx)), 1), nx - 3)
    iy = min(max(int(math.floor(fy)), 1), ny - 3)
    cells = ground.material[ix - 1 : ix + 3, iy - 1 : iy + 3]
    first, uniform = cells[0, 0], True
    for i in range(4):
        for j in range(4):
            uniform = uniform and cells[i, j] == first
    if uniform:
        return first, 1.0
    across, along = _spline(min(1.0, max(0.0, fx - ix))), _spline(min(1.0, max(0.0, fy - iy)))
    marked, marking = 0.0, first
    best, most = first, -1.0
    for i in range(4):
        for j in range(4):
            here = cells[i, j]
            if here >= m.PAINT_WHITE:
                marked += across[i] * along[j]
                marking = here
                continue
            if here == best and most >= 0.0:
                continue
            share = 0.0
            for k in range(4):
                for n in range(4):
                    if cells[k, n] == here:
                        share += across[k] * along[n]
            if share > most:
                best, most = here, share
    if marked > 0.28:
        return marking, min(1.0, (marked - 0.28) / 0.08)
    return best, 1.0


@njit(cache=True, inline="always")
def _local(table, s, px, py, pz, normal, p, n):
    """Fill local point `p`, local normal `n`; round solids get their exact normal, in `normal` (world) too."""
    t = table.solid_from_world[s]
    for i in range(3):
        p[i] = t[i, 0] * px + t[i, 1] * py + t[i, 2] * pz + t[i, 3]
        n[i] = t[i, 0] * normal[0] + t[i, 1] * normal[1] + t[i, 2] * normal[2]
    kind = table.kind[s]
    if kind == 0 or (kind == 1 and abs(n[2]) > 0.8):
        return
    half = table.half_size_m[s]
    n[0], n[1] = p[0] / (half[0] * half[0]), p[1] / (half[1] * half[1])
    n[2] = p[2] / (half[2] * half[2]) if kind == 2 else 0.0
    length = math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]) + 1e-9
    for i in range(3):
        n[i] /= length
    for i in range(3):
        normal[i] = t[0, i] * n[0] + t[1, i] * n[1] + t[2, i] * n[2]


@njit(cache=True)
def _between_leaves(p, facing, seed, footprint_m):
    """Whether a point of a crown is a gap; there are more towards its rim (`facing` is 0 there, 1 in the middle)."""
    rim = max(0.0, 1.0 - facing / 0.75)
    least = 0.30 + 0.38 * rim * keep(footprint_m, 0.3)
    leaf = 0.6 * noise3(p[0] / 0.16, p[1] / 0.16, p[2] / 0.16, seed + 7)
    if leaf >= least or leaf + 0.4 < least:  # the finer noise, in 0..1, cannot change it
        return leaf < least
    leaf += 0.4 * noise3(p[0] / 0.07, p[1] / 0.07, p[2] / 0.07, seed + 8)
    return leaf < least


@njit(cache=True)
def _tilt_leaves(normal, p, seed, footprint_m):
    """Leaves point everywhere."""
    normal[0] += 0.7 * grain3(p[0], p[1], p[2], 0.13, footprint_m, seed + 4)
    normal[1] += 0.7 * grain3(p[0], p[1], p[2], 0.13, footprint_m, seed + 5)
    normal[2] += 0.7 * grain3(p[0], p[1], p[2], 0.13, footprint_m, seed + 6)
    length = math.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-9
    for i in range(3):
        normal[i] /= length


@njit(cache=True, error_model="numpy")
def shade(
    points,
    directions,
    distance,
    normals,
    solid,
    lit,
    open_sky,
    pixel_rad,
    light,
    table,
    ground,
    see_between,
    trace,
    out,
    bounce,
    share,
    through,
):
    """Radiance of every hit, written to `out`.

    Wet ground, glass and car paint can mirror the scene itself: for these `share` is the part of the light that comes
    by mirroring, along `bounce`, and the caller has to look there. All else mirrors a made-up surrounding.

    Args:
        see_between: whether leaves leave gaps. trace: whether the caller looks along `bounce`; else all is made up.
        points: float64 (N, 3) world. directions: float64 (N, 3) unit, world. distance: float64 (N,) from the eye.
        normals: float64 (N, 3) world, unit, facing the eye; changed in place where solids are round.
        solid: int32 (N,) index into `table`, or GROUND, or SKY.
        lit: float32 (N,) 1 = sees the sun. open_sky: float32 (N,) share of nearby directions that are free.
        pixel_rad: angle of a pixel. out: float32 (N, 3). bounce: float64 (N, 3). share, through: float32 (N,).
    """
    p, n = np.zeros(3), np.zeros(3)
    for i in range(len(solid)):
        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
        s = solid[i]
        share[i], through[i] = 0.0, 0.0
        if s == SKY:
            r, g, b = sky(dx, dy, dz, light)
            out[i, 0], out[i, 1], out[i, 2] = r, g, b
            continue
        normal = normals[i]
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        facing = abs(normal[0] * dx + normal[1] * dy + normal[2] * dz)
        slant = max(0.2, facing)
        footprint = distance[i] * pixel_rad / math.sqrt(slant)
        dark = 1.0
        if s == GROUND:
            material, cover = _ground_material(px, py, ground)
            r, g, b, mirror, er, eg, eb = ground_surface(material, cover, px, py, footprint, ground.seed)
            if light.wetness > 0.0 and material != m.GRASS and material != m.SOIL:
                puddle = min(1.0, max(0.0, 2.2 * noise2(px / 2.3, py / 2.3, ground.seed + 31) - 0.7))
                dark = 1.0 - 0.45 * light.wetness
                mirror = light.wetness * (0.25 + 0.55 * puddle)
                ripple = 0.05 * (1.0 - 0.7 * puddle)
                normal[0] += ripple * grain2(px, py, 0.05, footprint, ground.seed + 32)
                normal[1] += ripple * grain2(px, py, 0.05, footprint, ground.seed + 33)
        else:
            _local(table, s, px, py, pz, normal, p, n)
            facing = abs(normal[0] * dx + normal[1] * dy + normal[2] * dz)
            material = table.material[s]
            if material == m.GLASS:
                half = table.half_size_m[s]
                through[i] = PANE_CLEAR if min(half[0], half[1]) < 0.1 else CABIN_CLEAR
            elif material == m.FOLIAGE:
                if see_between and _between_leaves(p, facing, table.seed[s], footprint):
                    through[i] = 1.0
                    out[i, 0], out[i, 1], out[i, 2] = 0.0, 0.0, 0.0
                    continue
                _tilt_leaves(normal, p, table.seed[s], footprint)
            r, g, b, mirror, er, eg, eb = solid_surface(
                material, p, n, table.half_size_m[s], table.color[s], table.seed[s], footprint, light.night
            )
            dark = 1.0 - 0.2 * light.wetness
        nx, ny, nz = normal[0], normal[1], normal[2]
        sun = max(0.0, nx * light.sun_direction[0] + ny * light.sun_direction[1] + nz * light.sun_direction[2]) * lit[i]
        if material == m.FOLIAGE:
            sun = 0.25 * lit[i] + 0.75 * sun
        around = (0.62 + 0.38 * nz) * open_sky[i]
        lr, lg, lb = 0.0, 0.0, 0.0
        if light.spots.shape[0] > 0:
            lr, lg, lb = _spot_light(px, py, pz, nx, ny, nz, light)
        r = dark * r * (light.sun[0] * sun + light.ambient[0] * around + lr)
        g = dark * g * (light.sun[1] * sun + light.ambient[1] * around + lg)
        b = dark * b * (light.sun[2] * sun + light.ambient[2] * around + lb)
        if mirror > 0.02:
            cosine = -(dx * nx + dy * ny + dz * nz)
            fresnel = mirror * (0.06 + 0.94 * max(0.0, 1.0 - cosine) ** 5) + 0.12 * mirror * mirror
            rx, ry, rz = dx + 2 * cosine * nx, dy + 2 * cosine * ny, dz + 2 * cosine * nz
            if trace and mirror > 0.1 and (s == GROUND or material == m.CARBODY or material == m.GLASS):
                bounce[i, 0], bounce[i, 1], bounce[i, 2], share[i] = rx, ry, rz, fresnel
            else:
                mr, mg, mb = surrounding(rx, ry, rz, light)
                r, g, b = r + fresnel * mr, g + fresnel * mg, b + fresnel * mb
            toward = rx * light.sun_direction[0] + ry * light.sun_direction[1] + rz * light.sun_direction[2]
            if toward > 0.9 and lit[i] > 0:
                flash = 6.0 * mirror * toward**300 + 0.25 * mirror * toward**30
                r, g, b = r + light.sun[0] * flash, g + light.sun[1] * flash, b + light.sun[2] * flash
        out[i, 0], out[i, 1], out[i, 2] = r + er, g + eg, b + eb
        if light.fog_per_m > 0.0:
            clear = math.exp(-light.fog_per_m * distance[i])
            for c in range(3):
                out[i, c] = out[i, c] * clear + light.horizon[c] * (1.0 - clear)
