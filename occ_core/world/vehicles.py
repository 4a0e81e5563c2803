"""Bodies of vehicles. Each function returns solids on z = 0 with x forward; `actors.py` centres and measures them."""

from __future__ import annotations

import numpy as np

from occ_core.world.classes import BUS, CAR, CONSTRUCTION_VEHICLE, TRAILER, TRUCK
from occ_core.world.materials import CARBODY, GLASS, LAMP, METAL, PAINT, RUBBER, SIGN
from occ_core.world.scene_builder import any_color, seed_of
from occ_core.world.solids import Builder, Solids

PANE = (0.03, 0.035, 0.04)
TYRE = (0.02, 0.02, 0.02)
WHITE_LIGHT, RED_LIGHT = (0.9, 0.9, 0.8), (0.5, 0.01, 0.01)


def _wheels(b: Builder, class_id: int, xs, track: float, radius: float, width: float = 0.24) -> None:
    for x in xs:
        for side in (-1, 1):
            y = side * (track - width) / 2
            size = (2 * radius, 2 * radius, width)
            b.cylinder((x, y, radius), size, class_id, RUBBER, TYRE, roll=np.pi / 2)
            b.cylinder((x, y, radius), (radius, radius, width + 0.03), class_id, METAL, (0.4, 0.4, 0.4), roll=np.pi / 2)


def _lights(b: Builder, class_id: int, length: float, width: float, z: float) -> None:
    for side in (-1, 1):
        y = side * (width / 2 - 0.22)
        b.box((length / 2, y, z), (0.08, 0.34, 0.16), class_id, LAMP, WHITE_LIGHT)
        b.box((-length / 2, y, z + 0.1), (0.08, 0.3, 0.18), class_id, LAMP, RED_LIGHT)
    b.box((-length / 2, 0, z - 0.15), (0.06, 0.5, 0.12), class_id, SIGN, (0.7, 0.7, 0.6))


def car(rng: np.random.Generator) -> Solids:
    """Hatchback, sedan, estate, van or pickup."""
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    style = rng.choice(["hatch", "sedan", "estate", "van", "pickup"], p=[0.25, 0.3, 0.2, 0.17, 0.08])
    length, width, height = {
        "hatch": (3.9, 1.72, 1.5), "sedan": (4.6, 1.8, 1.45), "estate": (4.7, 1.87, 1.65),
        "van": (5.1, 1.95, 2.05), "pickup": (5.3, 1.95, 1.85),
    }[str(style)]  # fmt: skip
    length, width, height = np.array([length, width, height]) * rng.uniform(0.95, 1.06, 3)
    radius = 0.31 + 0.05 * (height > 1.6)
    sill, waist = 0.22, height * 0.56
    b.box((0, 0, (sill + waist) / 2), (length, width - 0.12, waist - sill), CAR, CARBODY, color, seed)
    b.box((0, 0, (sill + waist) / 2 + 0.04), (length * 0.96, width, (waist - sill) * 0.7), CAR, CARBODY, color, seed)
    # The cabin as (rear, front) of its floor and roof, in fractions of the length from the rear end.
    rear, front, rear_top, front_top = {
        "hatch": (0.02, 0.74, 0.08, 0.58), "sedan": (0.14, 0.72, 0.26, 0.56), "estate": (0.01, 0.73, 0.05, 0.58),
        "van": (0.01, 0.86, 0.02, 0.74), "pickup": (0.4, 0.76, 0.43, 0.62),
    }[str(style)]  # fmt: skip
    x = [(f - 0.5) * length for f in (rear, front, rear_top, front_top)]
    layers = 4
    for k in range(layers):  # glass that narrows upwards
        f = (k + 0.5) / layers
        low, high = x[0] + f * (x[2] - x[0]), x[1] + f * (x[3] - x[1])
        z = waist + f * (height - 0.08 - waist)
        size = (high - low, width * (0.92 - 0.12 * f), (height - 0.08 - waist) / layers + 0.005)
        b.box(((low + high) / 2, 0, z), size, CAR, GLASS, PANE, seed)
    b.box(((x[2] + x[3]) / 2, 0, height - 0.06), (x[3] - x[2], width * 0.8, 0.12), CAR, CARBODY, color, seed)
    for f in (0.03, 0.5, 0.97):  # pillars
        at = x[2] + f * (x[3] - x[2])
        for side in (-1, 1):
            y = side * width * 0.43
            b.box((at, y, (waist + height) / 2 - 0.04), (0.1, 0.09, height - waist - 0.06), CAR, CARBODY, color, seed)
    if style == "van" and rng.random() < 0.5:  # closed load space
        cover = (0.45 * length, width * 0.95, height - waist - 0.08)
        b.box((-0.25 * length, 0, (waist + height) / 2), cover, CAR, CARBODY, color, seed)
    if style == "pickup":
        for side in (-1, 1):
            b.box(
                (-0.3 * length, side * width * 0.46, waist + 0.1), (0.38 * length, 0.1, 0.3), CAR, CARBODY, color, seed
            )
    for side in (-1, 1):
        b.box((x[3] + 0.1, side * (width / 2 + 0.06), waist + 0.08), (0.1, 0.2, 0.13), CAR, CARBODY, color, seed)
    _wheels(b, CAR, (-0.31 * length, 0.31 * length), width + 0.02, radius)
    _lights(b, CAR, length, width, waist * 0.8)
    return b.solids()


def bus(rng: np.random.Generator) -> Solids:
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    length, width, height = rng.uniform((9.5, 2.45, 2.9), (12.8, 2.6, 3.4))
    b.box((0, 0, 0.75), (length, width, 0.9), BUS, CARBODY, color, seed)
    b.box((0, 0, 1.75), (length - 0.06, width - 0.06, 1.15), BUS, GLASS, PANE, seed)
    b.box((0, 0, (2.3 + height) / 2), (length, width, height - 2.3), BUS, CARBODY, color, seed)
    for x in np.arange(-length / 2 + 0.05, length / 2, (length - 0.1) / 7):
        b.box((x, 0, 1.75), (0.12, width, 1.2), BUS, CARBODY, color, seed)
    b.box((length / 2, 0, height - 0.3), (0.1, width * 0.7, 0.35), BUS, LAMP, (0.8, 0.5, 0.1))
    _wheels(b, BUS, (-0.27 * length, 0.33 * length), width + 0.02, 0.48, 0.3)
    _lights(b, BUS, length, width, 0.65)
    return b.solids()


def _cab(b: Builder, x: float, length: float, width: float, height: float, class_id: int, color, seed: int) -> None:
    b.box((x, 0, 0.95), (length, width, 1.1), class_id, CARBODY, color, seed)
    b.box((x, 0, 1.9), (length - 0.04, width - 0.06, 0.85), class_id, GLASS, PANE, seed)
    b.box((x, 0, (2.3 + height) / 2), (length, width, height - 2.3), class_id, CARBODY, color, seed)
    b.box((x - length * 0.4, 0, 1.8), (length * 0.25, width, 1.2), class_id, CARBODY, color, seed)


def truck(rng: np.random.Generator) -> Solids:
    """A lorry with a box, a flat bed with goods, or a tank."""
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    length, width = rng.uniform(6.5, 9.5), rng.uniform(2.2, 2.5)
    cab, height = 1.9, rng.uniform(2.5, 2.9)
    _cab(b, length / 2 - cab / 2, cab, width, height, TRUCK, color, seed)
    bed = length - cab - 0.15
    x = -length / 2 + bed / 2
    b.box((x, 0, 0.85), (bed, width * 0.8, 0.3), TRUCK, METAL, (0.08, 0.08, 0.08), seed)
    kind = rng.choice(["box", "flat", "tank", "tipper"])
    load = any_color(rng)
    if kind == "box":
        top = rng.uniform(2.8, 3.6)
        b.box((x, 0, (1.0 + top) / 2), (bed, width, top - 1.0), TRUCK, PAINT, load, seed)
    elif kind == "tank":
        b.cylinder((x, 0, 2.0), (1.9, width * 0.95, bed), TRUCK, METAL, load, seed, pitch=np.pi / 2)
    else:
        b.box((x, 0, 1.1), (bed, width, 0.2), TRUCK, PAINT, load, seed)
        wall = 0.4 if kind == "flat" else 1.0
        for side in (-1, 1):
            b.box((x, side * (width / 2 - 0.06), 1.2 + wall / 2), (bed, 0.12, wall), TRUCK, PAINT, load, seed)
            b.box((x + side * (bed / 2 - 0.06), 0, 1.2 + wall / 2), (0.12, width, wall), TRUCK, PAINT, load, seed)
        size = (bed * 0.6, width * 0.7, rng.uniform(0.5, 1.3))
        b.box((x, 0, 1.2 + size[2] / 2), size, TRUCK, PAINT, any_color(rng), seed)
    _wheels(b, TRUCK, (-length * 0.32, length / 2 - cab * 0.6), width + 0.02, 0.48, 0.3)
    _lights(b, TRUCK, length, width, 0.7)
    return b.solids()


def tractor(rng: np.random.Generator) -> Solids:
    """The truck that pulls a trailer."""
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    _cab(b, 1.2, 2.2, 2.45, rng.uniform(2.8, 3.5), TRUCK, color, seed)
    b.box((-1.2, 0, 0.85), (2.8, 1.1, 0.3), TRUCK, METAL, (0.06, 0.06, 0.06), seed)
    b.box((-1.4, 0, 1.1), (1.0, 1.0, 0.2), TRUCK, METAL, (0.1, 0.1, 0.1), seed)
    _wheels(b, TRUCK, (-1.5, 1.3), 2.48, 0.48, 0.32)
    _lights(b, TRUCK, 4.9, 2.45, 0.7)
    return b.solids()


def trailer(rng: np.random.Generator) -> Solids:
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    length, width, height = rng.uniform(10.5, 12.0), 2.5, rng.uniform(3.2, 3.9)
    b.box((0, 0, 1.15), (length, width * 0.7, 0.25), TRAILER, METAL, (0.06, 0.06, 0.06), seed)
    if rng.random() < 0.7:
        b.box((0, 0, (1.25 + height) / 2), (length, width, height - 1.25), TRAILER, PAINT, color, seed)
    else:  # flat trailer with a container
        b.box((0, 0, 1.35), (length, width, 0.2), TRAILER, METAL, color * 0.5, seed)
        b.box((-0.5, 0, 2.5), (length * 0.7, width * 0.95, 2.1), TRAILER, METAL, color, seed)
    _wheels(b, TRAILER, (-length * 0.4, -length * 0.28), width + 0.02, 0.46, 0.32)
    b.box((length * 0.3, 0, 0.55), (0.25, 1.6, 1.0), TRAILER, METAL, (0.1, 0.1, 0.1), seed)
    return b.solids()


def small_trailer(rng: np.random.Generator) -> Solids:
    """A box or caravan behind a car, or left at the kerb."""
    b = Builder()
    length, height = rng.uniform(2.6, 5.0), rng.uniform(1.3, 2.5)
    color, seed = any_color(rng), seed_of(rng)
    b.box((0, 0, 0.5 + (height - 0.5) / 2), (length, 1.9, height - 0.5), TRAILER, PAINT, color, seed)
    b.box((length / 2 + 0.5, 0, 0.5), (1.2, 0.14, 0.14), TRAILER, METAL, (0.1, 0.1, 0.1), seed)
    _wheels(b, TRAILER, (-0.1 * length,), 2.1, 0.32)
    return b.solids()


def excavator(rng: np.random.Generator) -> Solids:
    b = Builder()
    c = CONSTRUCTION_VEHICLE
    color = any_color(rng) if rng.random() < 0.5 else np.array([0.7, 0.4, 0.03])
    seed = seed_of(rng)
    for side in (-1, 1):
        b.box((0, side * 1.0, 0.45), (3.4, 0.55, 0.75), c, RUBBER, TYRE, seed)
        for x in (-1.7, 1.7):
            b.cylinder((x, side * 1.0, 0.45), (0.75, 0.75, 0.55), c, RUBBER, TYRE, seed, roll=np.pi / 2)
    b.box((0, 0, 0.9), (1.4, 1.6, 0.5), c, METAL, (0.1, 0.1, 0.1), seed)
    b.box((-0.6, 0, 1.65), (2.6, 2.4, 1.1), c, PAINT, color, seed)
    b.box((0.6, 0.6, 2.2), (1.3, 1.0, 1.5), c, GLASS, PANE, seed)
    b.box((0.6, 0.6, 3.0), (1.4, 1.1, 0.16), c, PAINT, color, seed)
    lift, drop, reach = rng.uniform(0.5, 0.9), rng.uniform(1.0, 1.4), 2.9
    root = np.array([0.7, -0.3, 1.5])
    elbow = root + reach * np.array([np.cos(lift), 0, np.sin(lift)])
    b.box((root + elbow) / 2, (reach, 0.4, 0.5), c, PAINT, color, seed, pitch=-lift)
    tip = elbow + 2.0 * np.array([np.cos(drop), 0, -np.sin(drop)])
    b.box((elbow + tip) / 2, (2.1, 0.34, 0.4), c, PAINT, color, seed, pitch=drop)
    b.box(tip, (0.7, 1.0, 0.7), c, METAL, (0.15, 0.14, 0.13), seed, pitch=0.4)
    return b.solids()


def wheel_loader(rng: np.random.Generator) -> Solids:
    b = Builder()
    c = CONSTRUCTION_VEHICLE
    color, seed = any_color(rng), seed_of(rng)
    b.box((-0.9, 0, 1.3), (2.6, 1.8, 1.1), c, PAINT, color, seed)
    b.box((0.1, 0, 2.2), (1.4, 1.4, 1.5), c, GLASS, PANE, seed)
    b.box((0.1, 0, 3.0), (1.6, 1.6, 0.18), c, PAINT, color, seed)
    for side in (-1, 1):
        b.box((1.7, side * 0.6, 1.2), (2.2, 0.25, 0.35), c, PAINT, color, seed, pitch=0.35)
    b.box((2.9, 0, 0.6), (0.9, 2.4, 0.9), c, METAL, (0.2, 0.19, 0.18), seed)
    _wheels(b, c, (-1.3, 1.3), 2.3, 0.68, 0.5)
    return b.solids()
