"""Pedestrians, riders, animals and small movable things, on z = 0 with x forward."""

from __future__ import annotations

import numpy as np

from occ_core.world.classes import BARRIER, BICYCLE, MOTORCYCLE, OTHERS, PEDESTRIAN, TRAFFIC_CONE
from occ_core.world.materials import BANDS, CARBODY, CLOTH, CONCRETE, LAMP, METAL, PAINT, RUBBER
from occ_core.world.scene_builder import any_color, seed_of
from occ_core.world.solids import Builder, Solids

TYRE = (0.02, 0.02, 0.02)


def skin(rng: np.random.Generator) -> np.ndarray:
    return np.array([0.5, 0.3, 0.2]) * rng.uniform(0.25, 1.4)


def _body(b: Builder, rng, class_id: int, height: float, hip: np.ndarray, lean: float, arm_swing: float) -> None:
    """Torso, arms and head over a hip."""
    h, coat, seed = height, any_color(rng), seed_of(rng)
    up = np.array([np.sin(lean), 0, np.cos(lean)])
    chest = hip + up * 0.2 * h
    b.ellipsoid(chest, (0.16 * h, 0.26 * h, 0.42 * h), class_id, CLOTH, coat, seed, pitch=lean)
    b.ellipsoid(hip, (0.15 * h, 0.2 * h, 0.16 * h), class_id, CLOTH, coat * 0.8, seed)
    head = hip + up * 0.44 * h
    b.ellipsoid(head, (0.12 * h, 0.1 * h, 0.15 * h), class_id, CLOTH, skin(rng), seed)
    if rng.random() < 0.7:
        b.ellipsoid(head + (-0.01, 0, 0.035 * h), (0.13 * h, 0.11 * h, 0.1 * h), class_id, CLOTH, any_color(rng) * 0.4)
    for side in (-1, 1):
        angle = side * arm_swing - lean
        shoulder = hip + up * 0.33 * h + (0, side * 0.13 * h, 0)
        hand = shoulder + 0.36 * h * np.array([-np.sin(angle), 0, -np.cos(angle)])
        size = (0.06 * h, 0.06 * h, 0.37 * h)
        b.cylinder((shoulder + hand) / 2, size, class_id, CLOTH, coat, seed, pitch=angle)


def pedestrian(rng: np.random.Generator, height: float, walking: bool) -> Solids:
    """A person who stands, walks or carries something."""
    b = Builder()
    h, seed = height, seed_of(rng)
    stride = rng.uniform(0.2, 0.5) if walking else 0.03
    legs = any_color(rng) * 0.8
    for side in (-1, 1):
        angle = side * stride
        hip = np.array([0, side * 0.055 * h, 0.5 * h])
        foot = hip + 0.5 * h * np.array([-np.sin(angle), 0, -np.cos(angle)])
        size = (0.085 * h, 0.085 * h, 0.5 * h)
        b.cylinder((hip + foot) / 2, size, PEDESTRIAN, CLOTH, legs, seed, pitch=angle)
        b.box(foot + (0.04 * h, 0, 0.02 * h), (0.15 * h, 0.06 * h, 0.05 * h), PEDESTRIAN, RUBBER, TYRE)
    _body(b, rng, PEDESTRIAN, h, np.array([0, 0, 0.5 * h]), rng.uniform(-0.03, 0.12), stride * 0.9)
    if rng.random() < 0.3:  # bag or rucksack
        at = (-0.12 * h, 0, 0.72 * h) if rng.random() < 0.5 else (0, 0.2 * h, 0.35 * h)
        b.box(at, rng.uniform((0.1, 0.15, 0.2), (0.2, 0.3, 0.4)), PEDESTRIAN, CLOTH, any_color(rng), seed)
    return b.solids()


def bicycle(rng: np.random.Generator, ridden: bool) -> Solids:
    b = Builder()
    color, c = any_color(rng), BICYCLE
    for x in (-0.52, 0.52):
        b.cylinder((x, 0, 0.34), (0.68, 0.68, 0.07), c, RUBBER, TYRE, roll=np.pi / 2)
    b.box((0, 0, 0.62), (0.9, 0.07, 0.08), c, PAINT, color, pitch=-0.2)
    b.box((0.1, 0, 0.5), (0.75, 0.07, 0.08), c, PAINT, color, pitch=-0.7)
    b.box((-0.25, 0, 0.6), (0.08, 0.07, 0.6), c, PAINT, color)
    b.box((0.5, 0, 0.75), (0.08, 0.07, 0.6), c, PAINT, color, pitch=-0.2)
    b.box((0.45, 0, 1.05), (0.09, 0.58, 0.08), c, METAL, (0.2, 0.2, 0.2))
    b.box((-0.28, 0, 0.95), (0.28, 0.16, 0.09), c, RUBBER, TYRE)
    if ridden:
        _rider(b, rng, c, rng.uniform(1.6, 1.85), np.array([-0.2, 0, 1.03]), 0.4)
    return b.solids()


def _rider(b: Builder, rng, class_id: int, height: float, hip: np.ndarray, lean: float) -> None:
    legs = any_color(rng) * 0.7
    for side in (-1, 1):
        start, end = hip + (0, side * 0.12, 0), np.array([0.12, side * 0.14, 0.3 if side > 0 else 0.45])
        middle, along = (start + end) / 2, end - start
        pitch = float(np.arctan2(along[0], along[2]))
        b.cylinder(middle, (0.15, 0.15, np.linalg.norm(along)), class_id, CLOTH, legs, pitch=pitch)
    _body(b, rng, class_id, height, hip, lean, 0.0)


def motorcycle(rng: np.random.Generator, ridden: bool) -> Solids:
    b = Builder()
    color, c, seed = any_color(rng), MOTORCYCLE, seed_of(rng)
    for x in (-0.7, 0.7):
        b.cylinder((x, 0, 0.32), (0.64, 0.64, 0.16), c, RUBBER, TYRE, roll=np.pi / 2)
    b.box((0, 0, 0.5), (0.9, 0.34, 0.45), c, METAL, (0.12, 0.12, 0.12), seed)
    b.ellipsoid((0.15, 0, 0.85), (0.75, 0.4, 0.4), c, CARBODY, color, seed)
    b.box((-0.45, 0, 0.82), (0.8, 0.32, 0.16), c, RUBBER, TYRE, seed)
    b.box((0.6, 0, 0.7), (0.12, 0.2, 0.8), c, METAL, (0.3, 0.3, 0.3), pitch=-0.4)
    b.box((0.45, 0, 1.05), (0.1, 0.7, 0.08), c, METAL, (0.2, 0.2, 0.2))
    b.ellipsoid((0.72, 0, 0.9), (0.18, 0.2, 0.2), c, LAMP, (0.9, 0.9, 0.8))
    b.box((-0.95, 0, 0.75), (0.1, 0.2, 0.12), c, LAMP, (0.5, 0.01, 0.01))
    if ridden:
        _rider(b, rng, c, rng.uniform(1.6, 1.85), np.array([-0.3, 0, 1.0]), 0.3)
    return b.solids()


def cone(rng: np.random.Generator) -> Solids:
    b = Builder()
    h = rng.uniform(0.5, 0.95)
    b.box((0, 0, 0.03), (0.42, 0.42, 0.06), TRAFFIC_CONE, RUBBER, TYRE)
    color = (0.8, 0.2, 0.03) if rng.random() < 0.7 else any_color(rng)
    for k in range(5):
        d = 0.3 * (1 - 0.17 * k)
        b.cylinder((0, 0, (k + 0.5) * h / 5), (d, d, h / 5), TRAFFIC_CONE, BANDS, color)
    return b.solids()


def barrier(rng: np.random.Generator) -> Solids:
    """A concrete block, or a banded board on feet; x is along it."""
    b = Builder()
    seed = seed_of(rng)
    if rng.random() < 0.5:
        color = any_color(rng) if rng.random() < 0.4 else np.full(3, rng.uniform(0.2, 0.5))
        material = CONCRETE if rng.random() < 0.6 else BANDS
        b.box((0, 0, 0.14), (2.0, 0.56, 0.28), BARRIER, material, color, seed)
        b.box((0, 0, 0.45), (2.0, 0.34, 0.5), BARRIER, material, color, seed)
        b.box((0, 0, 0.75), (2.0, 0.22, 0.4), BARRIER, material, color, seed)
    else:
        for z in (0.5, 0.95):
            b.box((0, 0, z), (2.0, 0.12, 0.26), BARRIER, BANDS, (0.7, 0.05, 0.04), seed)
        for x in (-0.85, 0.85):
            b.box((x, 0, 0.55), (0.14, 0.14, 1.1), BARRIER, METAL, (0.3, 0.3, 0.3), seed)
            b.box((x, 0, 0.06), (0.2, 0.7, 0.12), BARRIER, RUBBER, TYRE, seed)
    return b.solids()


def bin_(rng: np.random.Generator) -> Solids:
    """A wheeled bin or a skip."""
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    size = np.array([0.6, 0.55, 1.05]) if rng.random() < 0.6 else rng.uniform((1.1, 0.9, 1.1), (1.8, 1.2, 1.4))
    b.box((0, 0, size[2] / 2 + 0.05), size, OTHERS, PAINT, color, seed)
    b.box((0.03, 0, size[2] + 0.07), (size[0] + 0.08, size[1] + 0.06, 0.1), OTHERS, PAINT, color * 0.6, seed)
    return b.solids()


def debris(rng: np.random.Generator) -> Solids:
    """Sacks, boxes, planks and leaves left at the kerb."""
    b = Builder()
    for _ in range(rng.integers(2, 6)):
        size = rng.uniform(0.25, 0.8, 3)
        at = (*rng.uniform(-0.6, 0.6, 2), size[2] * 0.42)
        kind = b.box if rng.random() < 0.5 else b.ellipsoid
        kind(at, size, OTHERS, PAINT, any_color(rng), seed_of(rng), yaw=rng.uniform(0, 3))
    return b.solids()


def cart(rng: np.random.Generator) -> Solids:
    """A pushcart, a pram or a stall."""
    b = Builder()
    color, seed, length = any_color(rng), seed_of(rng), rng.uniform(0.8, 1.7)
    b.box((0, 0, 0.65), (length, 0.65, 0.5), OTHERS, PAINT, color, seed)
    b.box((-length / 2 - 0.15, 0, 1.0), (0.1, 0.6, 0.1), OTHERS, METAL, (0.2, 0.2, 0.2), seed)
    b.box((-length / 2 - 0.05, 0, 0.85), (0.1, 0.1, 0.4), OTHERS, METAL, (0.2, 0.2, 0.2), seed)
    for x in (-0.3, 0.3):
        for y in (-0.3, 0.3):
            b.cylinder((x * length, y, 0.2), (0.4, 0.4, 0.1), OTHERS, RUBBER, TYRE, roll=np.pi / 2)
    return b.solids()


def animal(rng: np.random.Generator) -> Solids:
    """A dog."""
    b = Builder()
    h, color, seed = rng.uniform(0.4, 0.75), np.array([0.3, 0.2, 0.12]) * rng.uniform(0.1, 2), seed_of(rng)
    b.ellipsoid((0, 0, 0.72 * h), (1.3 * h, 0.45 * h, 0.5 * h), OTHERS, CLOTH, color, seed)
    b.ellipsoid((0.7 * h, 0, 1.0 * h), (0.5 * h, 0.3 * h, 0.32 * h), OTHERS, CLOTH, color, seed)
    for x in (-0.45 * h, 0.45 * h):
        for y in (-0.13 * h, 0.13 * h):
            b.cylinder((x, y, 0.3 * h), (0.14 * h, 0.14 * h, 0.6 * h), OTHERS, CLOTH, color, seed)
    return b.solids()


def bicycle_rack(rng: np.random.Generator) -> Solids:
    """A rack of hoops: Occ3D calls it others."""
    b = Builder()
    for x in np.arange(-1.2, 1.3, 0.6):
        b.box((x, -0.35, 0.4), (0.08, 0.1, 0.8), OTHERS, METAL, (0.4, 0.4, 0.4))
        b.box((x, 0.35, 0.4), (0.08, 0.1, 0.8), OTHERS, METAL, (0.4, 0.4, 0.4))
        b.box((x, 0, 0.8), (0.08, 0.8, 0.1), OTHERS, METAL, (0.4, 0.4, 0.4))
    return b.solids()
