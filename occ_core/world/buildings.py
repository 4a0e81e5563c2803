"""Buildings, walls and fences: everything large that people built beside the road."""

from __future__ import annotations

import numpy as np

from occ_core.world.classes import MANMADE, VEGETATION
from occ_core.world.materials import BRICK, CONCRETE, FACADE, FOLIAGE, GLASS, METAL, PAINT
from occ_core.world.roads import Side
from occ_core.world.scene_builder import SceneBuilder, any_color, lot_stations, seed_of
from occ_core.world.solids import Builder, Solids
from occ_core.world.vegetation import hedge_line, leaf_color

SUNK_M = 2.0  # how far walls reach into the ground, so that slopes leave no gap


def facade_color(rng: np.random.Generator) -> np.ndarray:
    """Plaster and brick of all kinds: cream, red, grey as asphalt, greenish as trees."""
    base = [(0.55, 0.48, 0.38), (0.32, 0.12, 0.08), (0.09, 0.09, 0.1), (0.16, 0.22, 0.09), (0.45, 0.45, 0.45)]
    return np.clip(np.array(base[rng.integers(len(base))]) * rng.uniform(0.6, 1.5) + rng.normal(0, 0.03, 3), 0.02, 0.85)


def town_building(rng: np.random.Generator, width: float, depth: float, height: float) -> Solids:
    """A building with its front at y = 0: x is along the street, y away from it."""
    b = Builder()
    color, seed = facade_color(rng), seed_of(rng)
    wall = int(rng.choice([FACADE, FACADE, FACADE, BRICK]))
    b.box((0, depth / 2, (height - SUNK_M) / 2), (width, depth, height + SUNK_M), MANMADE, wall, color, seed)
    trim = np.clip(color * rng.uniform(0.5, 1.6), 0.02, 0.9)
    b.box((0, depth / 2, height), (width + 0.5, depth + 0.5, 0.4), MANMADE, CONCRETE, trim, seed)
    if rng.random() < 0.5:  # shop front between pilasters
        bays = max(int(width / 3.5), 1)
        for k in range(bays):
            x = -width / 2 + (k + 0.5) * width / bays
            b.box((x, 0, 1.5), (width / bays - 0.7, 0.16, 2.6), MANMADE, GLASS, (0.05, 0.06, 0.07), seed + k)
            b.box((x - width / bays / 2, -0.1, 1.6), (0.4, 0.4, 3.2 + SUNK_M), MANMADE, CONCRETE, trim, seed)
        if rng.random() < 0.5:
            awning = any_color(rng)
            b.box((0, -0.55, 3.0), (width * 0.9, 1.2, 0.14), MANMADE, PAINT, awning, seed, roll=0.2)
    elif rng.random() < 0.6:  # balconies, the same on every floor
        for k in range(max(int(width / 4.5), 1)):
            x = -width / 2 + (k + 0.5) * 4.5
            for z in np.arange(3.2, height - 2, 3.1):
                b.box((x, -0.5, z), (2.4, 1.1, 0.16), MANMADE, CONCRETE, trim, seed)
                b.box((x, -1.0, z + 0.55), (2.4, 0.1, 0.95), MANMADE, METAL, trim * 0.6, seed)
    for _ in range(rng.integers(0, 4)):  # lift houses, air conditioning
        size = rng.uniform((1.5, 1.5, 1), (4, 4, 2.5))
        at = (rng.uniform(-0.3, 0.3) * width, depth * rng.uniform(0.3, 0.7), height + size[2] / 2)
        b.box(at, size, MANMADE, METAL, any_color(rng), seed)
    return b.solids()


def house(rng: np.random.Generator, width: float, depth: float) -> Solids:
    """A small house with a pitched roof, a porch and a chimney; front at y = 0."""
    b = Builder()
    color, seed, height = facade_color(rng), seed_of(rng), rng.uniform(3.2, 6.2)
    wall = int(rng.choice([FACADE, BRICK]))
    b.box((0, depth / 2, (height - SUNK_M) / 2), (width, depth, height + SUNK_M), MANMADE, wall, color, seed)
    slope = rng.uniform(0.35, 0.7)
    roof = any_color(rng) * 0.6
    half, rise = depth / 2 + 0.5, np.tan(slope) * (depth / 2 + 0.5)
    size = (width + 0.8, half / np.cos(slope) + 0.1, 0.2)
    for side in (-1, 1):
        at = (0, depth / 2 + side * half / 2, height + rise / 2 - 0.15)
        b.box(at, size, MANMADE, PAINT, roof, seed, roll=-side * slope)
    layers = 4  # the gables
    for k in range(layers):
        run = depth * (1 - (k + 0.5) / layers)
        z = height + rise * (k + 0.5) / layers
        b.box((0, depth / 2, z - 0.15), (width - 0.1, run, rise / layers), MANMADE, wall, color, seed)
    b.box(
        (width * rng.uniform(-0.3, 0.3), depth * 0.6, height + rise * 0.7), (0.7, 0.7, 2.0), MANMADE, BRICK, color, seed
    )
    x = width * rng.uniform(-0.25, 0.25)
    b.box((x, -0.05, 1.1), (1.1, 0.14, 2.1), MANMADE, PAINT, any_color(rng), seed)
    if rng.random() < 0.5:
        b.box((x, -0.9, 2.6), (2.6, 1.9, 0.16), MANMADE, PAINT, roof, seed)
        for dx in (-1.15, 1.15):
            b.cylinder((x + dx, -1.7, 0.8), (0.18, 0.18, 3.6), MANMADE, PAINT, color, seed)
    return b.solids()


def hall(rng: np.random.Generator, width: float, depth: float) -> Solids:
    """An industrial hall with gates; front at y = 0."""
    b = Builder()
    color, seed, height = any_color(rng), seed_of(rng), rng.uniform(5, 11)
    b.box((0, depth / 2, (height - SUNK_M) / 2), (width, depth, height + SUNK_M), MANMADE, METAL, color, seed)
    for x in np.arange(-width / 2 + 3, width / 2 - 2, rng.uniform(5, 8)):
        b.box((x, -0.02, 1.9), (3.4, 0.2, 3.8), MANMADE, PAINT, any_color(rng), seed)
    b.box((0, depth / 2, height + 0.2), (width + 0.3, depth + 0.3, 0.5), MANMADE, METAL, color * 0.5, seed)
    return b.solids()


def row_of_buildings(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """Fronts along the sidewalk, some gaps closed by walls."""
    station, end = lot_stations(side, 0.5)
    front = scene.road.walk_edge_m(side)
    storeys = rng.integers(2, 8)
    while station < end - 6:
        width = min(rng.uniform(8, 22), end - station)
        depth = rng.uniform(9, 15)
        frame = scene.facing(side.sign, station + width / 2, front + 1.0 + rng.choice([0, 0, 1.5, 3]))
        height = 3.1 * max(1, storeys + rng.integers(-2, 3)) + 0.8
        if _claim_box(scene, frame, width - 0.6, depth):
            scene.builder.place(town_building(rng, width - 0.3, depth, height), frame)
        station += width
        if rng.random() < 0.25:
            gap = rng.uniform(3, 7)
            if rng.random() < 0.6:
                fence_line(rng, scene, side.sign, station, min(station + gap, end), front + 1.2)
            station += gap


def row_of_houses(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """Detached houses behind front gardens with walls, fences or hedges; drives stay open."""
    start, end = lot_stations(side, 1.0)
    front = scene.road.walk_edge_m(side)
    edges = [start, *(s for s, _, _ in side.driveways), end]
    boundary = rng.choice(["fence", "hedge", "none"], p=[0.4, 0.3, 0.3])
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        if b - a < 9:
            continue
        low, high = a + 2.2, b - 2.2
        width = min(high - low, rng.uniform(7.5, 12))
        depth = rng.uniform(7, 10)
        frame = scene.facing(side.sign, (low + high) / 2, front + rng.uniform(4, 8))
        if _claim_box(scene, frame, width, depth):
            scene.builder.place(house(rng, width, depth), frame)
        if boundary == "fence":
            fence_line(rng, scene, side.sign, low, high - 1.5, front + 0.4)
        elif boundary == "hedge":
            hedge_line(rng, scene, side.sign, low, high - 1.5, front + 0.7)
    if rng.random() < 0.6:
        fence_line(rng, scene, side.sign, start, end, front + rng.uniform(22, 26))


def industrial_lot(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """Halls behind a fence with a gate."""
    start, end = lot_stations(side, 2.0)
    front = scene.road.walk_edge_m(side)
    for low, high in open_stretches(side, start, end, 4.0):
        fence_line(rng, scene, side.sign, low, high, front + 0.5)
    station = start
    while station < end - 14:
        width = min(rng.uniform(18, 34), end - station)
        depth = rng.uniform(14, 24)
        frame = scene.facing(side.sign, station + width / 2, front + rng.uniform(13, 19))
        if _claim_box(scene, frame, width, depth):
            scene.builder.place(hall(rng, width, depth), frame)
        station += width + rng.uniform(4, 9)


def second_row(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """Buildings far behind a lot, beyond the reach of the voxels but not of the cameras."""
    wanted = {"wood": 0.1, "park": 0.3, "houses": 0.3}.get(side.kind, 0.7)
    station, end = lot_stations(side, 4.0)
    distance = max(scene.road.walk_edge_m(side) + 37, 44.0)
    while station < end - 8:
        width = min(rng.uniform(9, 24), end - station)
        frame = scene.facing(side.sign, station + width / 2, distance + rng.uniform(0, 5))
        if rng.random() < wanted and _claim_box(scene, frame, width - 1, 12.0):
            scene.builder.place(town_building(rng, width - 1, 12.0, rng.uniform(5, 26)), frame)
        station += width


def skyline(rng: np.random.Generator, scene: SceneBuilder) -> None:
    """Large blocks and wooded hills around the edge of the ground, so that no street ends in the void."""
    nx, ny = scene.ground.height_m.shape
    low = np.array(scene.ground.origin_m)
    high = low + np.array([nx, ny]) * scene.ground.cell_m
    b = Builder()
    for axis in (0, 1):
        for edge in (low, high):
            at = low[1 - axis] - 10
            while at < high[1 - axis] + 10:
                width, height = rng.uniform(14, 40), rng.uniform(7, 30)
                center = np.empty(2)
                center[axis], center[1 - axis] = edge[axis], at + width / 2
                x, y, z = scene.xyz(center)
                size = np.empty(3)
                size[axis], size[1 - axis], size[2] = rng.uniform(3, 10), width, height + 10
                if rng.random() < 0.6:
                    b.box((x, y, z + height / 2 - 5), size, MANMADE, FACADE, facade_color(rng), seed_of(rng))
                else:
                    b.ellipsoid(
                        (x, y, z), size * (1, 1, 1.2) + (8, 8, 0), VEGETATION, FOLIAGE, leaf_color(rng), seed_of(rng)
                    )
                at += width * 0.9
    scene.builder.place(b.solids(), np.eye(4))


def open_stretches(side: Side, start: float, end: float, gate_m: float) -> list[tuple[float, float]]:
    """A side's stations without its driveways."""
    gates = [s for s, _, _ in side.driveways if start < s < end]
    starts = [start, *(g + gate_m for g in gates)]
    ends = [*(g - gate_m for g in gates), end]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if b - a > 2]


def _claim_box(scene: SceneBuilder, frame: np.ndarray, width: float, depth: float) -> bool:
    center = frame[:2, 3] + frame[:2, 1] * depth / 2
    corners = [
        frame[:2, 3] + frame[:2, 0] * x * width / 2 + frame[:2, 1] * y * depth
        for x in (-1, -0.5, 0, 0.5, 1)
        for y in (0, 0.5, 1)
    ]
    if min(scene.beyond(corner) for corner in corners) < 1.8:
        return False  # would stand in a street
    return scene.claim(center, float(np.arctan2(frame[1, 0], frame[0, 0])), width, depth)


def fence_line(
    rng: np.random.Generator, scene: SceneBuilder, sign: int, start: float, end: float, distance: float
) -> None:
    """A wall or a fence of bars, boards or rails along the road, with gaps between bars."""
    kind = rng.choice(["wall", "bars", "boards", "rails"])
    color, seed, height = any_color(rng), seed_of(rng), rng.uniform(0.9, 2.2)
    span = 2.5
    for station in np.arange(start, end - span + 0.01, span):
        frame = scene.facing(sign, station + span / 2, distance)
        if scene.beyond(frame[:2, 3]) < 0.6 or not scene.claim_at(frame, span - 1.2, 0.3):
            continue
        b = Builder()
        if kind == "wall":
            height_here = min(height, 1.6)
            size = (span + 0.05, 0.25, height_here + 0.6)
            b.box((0, 0, height_here / 2 - 0.3), size, MANMADE, BRICK, color, seed)
        else:
            b.box((span / 2, 0, height / 2 - 0.2), (0.16, 0.16, height + 0.4), MANMADE, METAL, color, seed)
            rails = (0.25, height - 0.1) if kind != "rails" else np.arange(0.3, height, 0.4)
            for z in rails:
                b.box((0, 0, z), (span, 0.09, 0.11), MANMADE, METAL, color, seed)
            if kind != "rails":
                step, thick = (0.25, 0.045) if kind == "bars" else (0.3, 0.17)
                for x in np.arange(-span / 2 + step / 2, span / 2, step):
                    b.box((x, 0, height / 2), (thick, 0.06, height), MANMADE, METAL, color, seed)
        scene.builder.place(b.solids(), frame)
