"""The look of surfaces: albedo, mirror share and emission of one point of a material.

Every function returns (red, green, blue, mirror, emitted_red, emitted_green, emitted_blue), linear light. Patterns live
in the solid's own coordinates (or the ground's), so they move with the object; details smaller than the pixel's
footprint fade out instead of aliasing.
"""

from __future__ import annotations

import math

from numba import njit

from occ_core.world import materials as m
from occ_core.world.noise import grain2, grain3, hash01, keep, noise2

BRICK_LENGTH_M, BRICK_HEIGHT_M = 0.24, 0.075


@njit(cache=True)
def brick_pattern(u, v, footprint_m, seed):
    """Factor of the albedo of a brick wall at wall coordinates (u, v), metres."""
    row = math.floor(v / BRICK_HEIGHT_M)
    along = u / BRICK_LENGTH_M + 0.5 * (int(row) & 1)
    column = math.floor(along)
    fine = keep(footprint_m, 0.04)
    tone = 1.0 + 0.35 * keep(footprint_m, 0.075) * (hash01(int(column), int(row), 0, seed) - 0.5)
    in_joint = (v / BRICK_HEIGHT_M - row) < 0.14 or (along - column) < 0.05
    if in_joint:
        return tone * (1.0 - fine) + 1.35 * fine
    return tone


@njit(cache=True)
def facade(u, v, width, height, color, seed, footprint_m, night):
    """A wall with a window grid; (u, v) metres from its lower left corner."""
    h1, h2, h3, h4 = (hash01(seed, 1, 0, 7), hash01(seed, 2, 0, 7), hash01(seed, 3, 0, 7), hash01(seed, 4, 0, 7))
    columns = max(1, int(width / (2.2 + 1.8 * h1)))
    storeys = max(1, int(height / (2.8 + 0.8 * h2)))
    cu, cv = u / width * columns, v / height * storeys
    iu, iv = int(cu), int(cv)
    fu, fv = cu - iu, cv - iv
    shop = iv == 0 and h3 > 0.45
    half_w = 0.46 if shop else 0.18 + 0.22 * h4
    low, high = (0.08, 0.82) if shop else (0.28 - 0.2 * (h3 > 0.8), 0.82)
    du, dv = abs(fu - 0.5), fv
    frame = 0.035
    if du < half_w + frame and low - frame < dv < high + frame:
        if not (du < half_w and low < dv < high) or (abs(du) < 0.012 and not shop and keep(footprint_m, 0.1) > 0.3):
            tone = 0.75 if h4 > 0.5 else 0.12
            return tone, tone, tone * 0.96, 0.0, 0.0, 0.0, 0.0
        room = hash01(iu, iv, 5, seed)
        dark = 0.015 + 0.05 * hash01(iu, iv, 6, seed)
        if room > 0.55:  # curtain or blind, wavy
            dark = 0.12 + 0.3 * (room - 0.55) + 0.03 * math.sin(u * 40.0) * keep(footprint_m, 0.15)
        glow = 0.0
        if night and (room < 0.22 or (shop and room < 0.7)):
            glow = 0.02 + 0.22 * hash01(iu, iv, 8, seed) ** 2
            glow *= 0.6 + 0.4 * noise2(u * 2.0, v * 2.0, seed)
        warm = 0.55 + 0.45 * hash01(iu, iv, 9, seed)
        return dark, dark, dark * 1.05, 0.75, glow, glow * 0.82 * (0.7 + 0.3 * warm), glow * 0.62 * warm
    grey = 0.25 * (color[0] + color[1] + color[2]) / 3 + 0.09  # render and brick bleach
    dirt = 1.0 + 0.16 * grain2(u, v, 2.5, footprint_m, seed) + 0.10 * grain2(u, v, 0.3, footprint_m, seed + 1)
    dirt *= 1.0 - 0.25 * math.exp(-v / 0.8) * noise2(u / 0.7, 0.0, seed + 3)
    if h2 > 0.55:
        dirt *= brick_pattern(u, v, footprint_m, seed)
    r, g, b = (0.6 * color[0] + grey) * dirt, (0.6 * color[1] + grey) * dirt, (0.6 * color[2] + grey * 0.95) * dirt
    if fv > 0.94 and h1 > 0.4:  # storey band
        r, g, b = r * 0.8 + 0.08, g * 0.8 + 0.08, b * 0.8 + 0.08
    return r, g, b, 0.0, 0.0, 0.0, 0.0


@njit(cache=True)
def solid_surface(material, p, n, half, color, seed, footprint_m, night):
    """Surface of a solid at local point `p` with local normal `n` (both length 3)."""
    r, g, b = color[0], color[1], color[2]
    x, y, z = p[0], p[1], p[2]
    if material == m.FACADE or material == m.BRICK:
        upward = abs(n[2]) > 0.7
        if not upward:
            along_x = abs(n[1]) > abs(n[0])
            u, width = (x + half[0], 2 * half[0]) if along_x else (y + half[1], 2 * half[1])
            v = z + half[2]
            if material == m.FACADE:
                return facade(u, v, width, 2 * half[2], color, seed, footprint_m, night)
            k = brick_pattern(u, v, footprint_m, seed) * (1 + 0.15 * grain2(u, v, 1.1, footprint_m, seed))
            return r * k, g * k, b * k, 0.0, 0.0, 0.0, 0.0
        k = 0.55 + 0.12 * grain2(x, y, 0.8, footprint_m, seed) + 0.1 * grain2(x, y, 0.1, footprint_m, seed)
        grey = 0.3 * k
        return 0.5 * r * k + grey, 0.5 * g * k + grey, 0.5 * b * k + grey, 0.0, 0.0, 0.0, 0.0
    if material == m.FOLIAGE:
        k = 0.85 + 0.3 * grain3(x, y, z, 0.6, footprint_m, seed) + 0.5 * grain3(x, y, z, 0.14, footprint_m, seed + 1)
        k = max(0.1, k + 0.6 * grain3(x, y, z, 0.06, footprint_m, seed + 2))
        yellow = 0.25 * grain3(x, y, z, 0.3, footprint_m, seed + 3)
        return r * k * (1 + yellow), g * k, b * k * (1 - yellow), 0.0, 0.0, 0.0, 0.0
    if material == m.BARK:
        k = 0.9 + 0.35 * grain3(x * 4.0, y * 4.0, z * 0.6, 0.12, footprint_m * 2, seed)
        k += 0.2 * grain3(x, y, z, 0.5, footprint_m, seed)
        return r * k, g * k, b * k, 0.0, 0.0, 0.0, 0.0
    if material == m.BANDS:
        stripe = math.floor((z + 0.35 * (x + y)) / 0.22)
        k = 0.95 + 0.2 * grain3(x, y, z, 0.15, footprint_m, seed)
        if int(stripe) & 1:
            return 0.72 * k, 0.70 * k, 0.66 * k, 0.0, 0.0, 0.0, 0.0
        return r * k, g * k, b * k, 0.0, 0.0, 0.0, 0.0
    return _smooth_surface(material, p, half, color, seed, footprint_m, night)


@njit(cache=True)
def _smooth_surface(material, p, half, color, seed, footprint_m, night):
    r, g, b = color[0], color[1], color[2]
    x, y, z = p[0], p[1], p[2]
    if material == m.GLASS:
        return 0.02, 0.025, 0.025, 0.9, 0.0, 0.0, 0.0
    stain = grain3(x, y, z, 0.7, footprint_m, seed)
    fine = grain3(x, y, z, 0.06, footprint_m, seed + 1)
    if material == m.CARBODY:
        low = max(0.0, 1.0 - (z + half[2]) / 0.35)
        k = 1.0 + 0.03 * stain - 0.25 * low * (0.5 + 0.5 * stain)
        return r * k, g * k, b * k, 0.45, 0.0, 0.0, 0.0
    if material == m.METAL:
        k = 0.95 + 0.07 * stain + 0.06 * fine
        return r * k, g * k, b * k, 0.15, 0.0, 0.0, 0.0
    if material == m.LAMP:
        glow = 9.0 if night else 0.5
        return r, g, b, 0.1, glow * r, glow * g, glow * b
    if material == m.SIGN:
        edge = min(1.0, max(abs(y) / max(half[1], 1e-3), abs(z) / max(half[2], 1e-3), 0.0))
        letters = noise2(y * 9.0, z * 22.0, seed)
        k = keep(footprint_m, 0.12)
        if edge > 0.9:
            return 0.8, 0.8, 0.8, 0.0, 0.0, 0.0, 0.0
        if letters > 0.66:
            return r + (0.85 - r) * k, g + (0.85 - g) * k, b + (0.85 - b) * k, 0.0, 0.0, 0.0, 0.0
        return r, g, b, 0.05, 0.0, 0.0, 0.0
    if material == m.CLOTH:
        k = 0.9 + 0.3 * grain3(x, y, z * 0.4, 0.12, footprint_m, seed) + 0.1 * fine
        return r * k, g * k, b * k, 0.0, 0.0, 0.0, 0.0
    if material == m.RUBBER:
        k = 1.0 + 0.3 * fine + 0.3 * stain
        return r * k, g * k, b * k, 0.02, 0.0, 0.0, 0.0
    streak = grain3(x, y, z * 0.15, 0.3, footprint_m, seed + 2)
    rough = 0.4 if material == m.PAINT else 1.0
    k = 0.92 + rough * (0.12 * stain + 0.12 * fine) + 0.1 * streak
    return r * k, g * k, b * k, 0.03 if material == m.PAINT else 0.0, 0.0, 0.0, 0.0


@njit(cache=True, inline="always")
def _asphalt(x, y, footprint_m, seed):
    k = 1.0 + 0.22 * grain2(x, y, 3.1, footprint_m, seed) + 0.18 * grain2(x, y, 0.6, footprint_m, seed + 1)
    k += 0.35 * grain2(x, y, 0.035, footprint_m, seed + 2)
    if hash01(int(math.floor(x / 7.3)), int(math.floor(y / 5.7)), 1, seed) > 0.8:  # repaired rectangle
        fx, fy = x / 7.3 - math.floor(x / 7.3), y / 5.7 - math.floor(y / 5.7)
        if 0.15 < fx < 0.7 and 0.2 < fy < 0.75:
            k *= 0.72
            if fx < 0.16 or fx > 0.69 or fy < 0.21 or fy > 0.74:
                k *= 0.6
    near = keep(footprint_m, 0.05)
    if near > 0.0:
        wander = noise2(x / 1.3, y / 1.3, seed + 5) + 0.35 * noise2(x / 0.25, y / 0.25, seed + 6)
        crack = abs(wander - 0.66)
        if crack < 0.012 and noise2(x / 9.0, y / 9.0, seed + 7) > 0.55:
            k *= 1.0 - 0.6 * near
    return k


@njit(cache=True, inline="always")
def ground_surface(material, cover, x, y, footprint_m, seed):
    """Surface of the ground at world (x, y); `cover` 0..1 fades a marking's edge."""
    if material == m.ASPHALT or material == m.PAINT_WHITE or material == m.PAINT_YELLOW:
        k = _asphalt(x, y, footprint_m, seed)
        tone = 0.055 + 0.06 * hash01(seed, 11, 0, 3)
        r, g, b = tone * k, tone * k * (0.97 + 0.05 * hash01(seed, 12, 0, 3)), tone * k
        if material == m.ASPHALT:
            return r, g, b, 0.03, 0.0, 0.0, 0.0
        worn = noise2(x / 0.09, y / 0.09, seed + 8) * 0.6 + noise2(x / 0.8, y / 0.8, seed + 9) * 0.6
        cover *= min(1.0, max(0.1, 1.7 - 1.6 * worn)) if footprint_m < 0.1 else 0.75
        paint_r, paint_g, paint_b = (0.58, 0.57, 0.54) if material == m.PAINT_WHITE else (0.55, 0.36, 0.06)
        return r + (paint_r - r) * cover, g + (paint_g - g) * cover, b + (paint_b - b) * cover, 0.03, 0.0, 0.0, 0.0
    if material == m.PAVING or material == m.COBBLE:
        size = (0.3 + 0.5 * hash01(seed, 13, 0, 3)) if material == m.PAVING else 0.13
        row = math.floor(y / size)
        along = x / size + 0.5 * (int(row) & 1)
        fx, fy = along - math.floor(along), y / size - row
        fine = keep(footprint_m, size * 0.4)
        k = 1.0 + 0.25 * fine * (hash01(int(math.floor(along)), int(row), 2, seed) - 0.5)
        joint = 0.04 if material == m.PAVING else 0.14
        if fx < joint or fy < joint:
            k *= 1.0 - 0.45 * fine
        k *= 1.0 + 0.16 * grain2(x, y, 1.7, footprint_m, seed) + 0.15 * grain2(x, y, 0.03, footprint_m, seed + 1)
        tone = 0.14 + 0.14 * hash01(seed, 14, 0, 3) if material == m.PAVING else 0.1 + 0.1 * hash01(seed, 15, 0, 3)
        warm = 0.25 * hash01(seed, 16, 0, 3)
        return tone * k * (1 + 0.6 * warm), tone * k, tone * k * (1 - warm), 0.01, 0.0, 0.0, 0.0
    if material == m.GRASS:
        k = 1.0 + 0.3 * grain2(x, y, 1.9, footprint_m, seed) + 0.3 * grain2(x, y, 0.16, footprint_m, seed + 1)
        k += 0.5 * grain2(x * 2.0, y, 0.03, footprint_m, seed + 2)
        dry = 0.5 * hash01(seed, 17, 0, 3) + 0.4 * grain2(x, y, 2.7, footprint_m, seed + 3)
        dry = min(1.0, max(0.0, dry))
        return (0.06 + 0.12 * dry) * k, (0.11 + 0.03 * dry) * k, (0.025 + 0.025 * dry) * k, 0.0, 0.0, 0.0, 0.0
    if material == m.SOIL:
        k = 1.0 + 0.3 * grain2(x, y, 1.1, footprint_m, seed) + 0.35 * grain2(x, y, 0.07, footprint_m, seed + 1)
        return 0.17 * k, 0.12 * k, 0.08 * k, 0.0, 0.0, 0.0, 0.0
    k = 1.0 + 0.2 * grain2(x, y, 0.4, footprint_m, seed) + 0.15 * grain2(x, y, 0.04, footprint_m, seed + 1)  # kerb
    return 0.26 * k, 0.25 * k, 0.24 * k, 0.01, 0.0, 0.0, 0.0
