"""Trees, bushes and hedges: trunks and many leaf clumps with gaps between them."""

from __future__ import annotations

import numpy as np

from occ_core.world.classes import VEGETATION
from occ_core.world.materials import BARK, FOLIAGE
from occ_core.world.roads import Junction, Side
from occ_core.world.scene_builder import SceneBuilder, lot_stations, seed_of, somewhere
from occ_core.world.solids import ELLIPSOID, Builder, Solids

LEAVES = np.array([(0.06, 0.12, 0.03), (0.1, 0.17, 0.04), (0.04, 0.09, 0.04), (0.3, 0.2, 0.04), (0.2, 0.11, 0.05),
                   (0.25, 0.07, 0.04), (0.14, 0.15, 0.13)])  # fmt: skip
LEAF_SHARES_SUMMED = np.cumsum([0.24, 0.2, 0.18, 0.12, 0.12, 0.06, 0.08])
LEAF_SHARES_SUMMED /= LEAF_SHARES_SUMMED[-1]


def leaf_color(rng: np.random.Generator) -> np.ndarray:
    """Mostly greens, also autumn yellow, brown, red and the grey of dust."""
    base = LEAVES[LEAF_SHARES_SUMMED.searchsorted(rng.random(), side="right")]
    return np.minimum(np.maximum(base * rng.uniform(0.6, 1.6), 0.01), 0.6)


def _turned(rng: np.random.Generator, centers: np.ndarray) -> np.ndarray:
    """Poses (N, 4, 4) at centres, each turned at random about z and tilted a little."""
    n = len(centers)
    yaw, tilt = rng.uniform(0, 2 * np.pi, n), rng.uniform(-0.5, 0.5, n)
    c, s, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    poses = np.zeros((n, 4, 4))
    poses[:, 0, 0], poses[:, 1, 0] = c, s
    poses[:, 0, 1], poses[:, 1, 1], poses[:, 2, 1] = -s * ct, c * ct, st
    poses[:, 0, 2], poses[:, 1, 2], poses[:, 2, 2] = s * st, -c * st, ct
    poses[:, :3, 3] = centers
    poses[:, 3, 3] = 1
    return poses


def _clumps(rng, b: Builder, centers: np.ndarray, radius: float, color: np.ndarray, flat: float = 1.0) -> None:
    n = len(centers)
    sizes = (
        2
        * radius
        * rng.uniform(0.65, 1.35, (n, 1))
        * rng.uniform((0.8, 0.8, 0.55 * flat), (1.2, 1.2, 0.9 * flat), (n, 3))
    )
    shade = rng.uniform(0.7, 1.3, (n, 1)) * rng.uniform(0.9, 1.1, (n, 3))
    b.add(ELLIPSOID, _turned(rng, centers), sizes, VEGETATION, FOLIAGE, color * shade, rng.integers(1 << 32, size=n))


def _limb(b: Builder, start: np.ndarray, end: np.ndarray, thick: float, color, seed: int) -> None:
    axis = end - start
    length = float(np.linalg.norm(axis))
    yaw, pitch = np.arctan2(axis[1], axis[0]), np.arccos(np.clip(axis[2] / length, -1, 1))
    size = (thick, thick, length)
    b.cylinder((start + end) / 2, size, VEGETATION, BARK, color, seed, yaw=float(yaw), pitch=float(pitch))


def tree(rng: np.random.Generator, height: float, spread: float, base: float, clumps: int) -> Solids:
    """A tree on z = 0.

    Args:
        height: of the top, metres.
        spread: radius of the crown, metres.
        base: height of the lowest leaves, metres.
        clumps: number of leaf clumps.
    """
    b = Builder()
    kind = rng.choice(["round", "conifer", "bare"], p=[0.78, 0.14, 0.08])
    bark = np.array([0.12, 0.09, 0.06]) * rng.uniform(0.4, 2.2)
    seed, thick = seed_of(rng), 0.03 * height + rng.uniform(0.12, 0.3)
    lean = rng.normal(0, 0.04, 2)
    top = height * np.array([lean[0], lean[1], 0.55 if kind == "round" else 0.95])
    _limb(b, np.array([0.0, 0.0, -0.5]), top * 0.6, thick, bark, seed)
    _limb(b, top * 0.55, top, thick * 0.6, bark, seed)
    color = leaf_color(rng)
    if kind == "conifer":
        z = base * 0.5 + (height - base * 0.5) * rng.random(clumps) ** 1.4
        reach = 0.75 * spread * (1 - (z - base * 0.5) / (height - base * 0.5 + 0.3)) * np.sqrt(rng.random(clumps))
        angle = rng.uniform(0, 2 * np.pi, clumps)
        centers = np.stack([reach * np.cos(angle), reach * np.sin(angle), z], axis=1)
        _clumps(rng, b, centers, 0.3 * spread + 0.12, color * 0.7)
        return b.solids()
    for _ in range(int(rng.integers(4, 7)) * (2 if kind == "bare" else 1)):
        start = top * rng.uniform(0.5, 0.95)
        way, out = rng.uniform(0, 2 * np.pi), spread * rng.uniform(0.5, 0.95)
        end = start + np.array([out * np.cos(way), out * np.sin(way), out * rng.uniform(0.2, 1.0)])
        _limb(b, start, end, max(thick * 0.4, 0.1), bark, seed)
    if kind == "round":
        ball = rng.normal(size=(clumps, 3))
        ball /= np.linalg.norm(ball, axis=1, keepdims=True)
        ball *= rng.uniform(0.45, 0.9, (clumps, 1))  # a shell, hollow inside
        half = np.array([spread, spread, (height - base) / 2])
        centers = ball * half + np.array([*(lean * height), (height + base) / 2])
        _clumps(rng, b, centers, 0.2 * spread + 0.16, color)
    return b.solids()


def bush(rng: np.random.Generator, radius: float, height: float) -> Solids:
    """Clumps that stand on z = 0: a round bush, or low plants that cover the ground."""
    b = Builder()
    if rng.random() < 0.45:
        centers = np.concatenate([rng.uniform(-0.7, 0.7, (4, 2)) * radius, rng.uniform(0, 0.15, (4, 1))], axis=1)
        _clumps(rng, b, centers, 0.75 * radius + 0.2, leaf_color(rng), flat=0.5)
        return b.solids()
    n = int(rng.integers(4, 8))
    angle, reach = rng.uniform(0, 2 * np.pi, n), radius * 0.7 * np.sqrt(rng.random(n))
    z = height * rng.uniform(0.2, 0.6, n)
    centers = np.stack([reach * np.cos(angle), reach * np.sin(angle), z], axis=1)
    _clumps(rng, b, centers, 0.5 * min(radius, height) + 0.1, leaf_color(rng))
    return b.solids()


def plant_tree(rng: np.random.Generator, scene: SceneBuilder, xy: np.ndarray, station: float, street: bool) -> bool:
    """A tree where there is room for its trunk; street trees are slim and have no low branches."""
    if not scene.claim(xy, 0.0, 0.9, 0.9):
        return False
    near = scene.near_drive(station)
    if street:
        base, spread = rng.uniform(2.3, 2.9), rng.uniform(1.7, 2.7)
        height = base + rng.uniform(2.5, 5)
    else:
        base, spread = rng.uniform(0.8, 2.6), rng.uniform(1.8, 3.4)
        height = base + rng.uniform(3, 7)
        spread = min(spread, max(scene.beyond(xy) + 0.6, 1.0))
    solids = tree(rng, height, spread, base, int(rng.integers(26, 44)) if near else 10)
    pose = np.eye(4)
    pose[:3, 3] = scene.xyz(xy)
    scene.builder.place(solids, pose)
    return True


def plant_bush(rng: np.random.Generator, scene: SceneBuilder, xy: np.ndarray, radius: float, height: float) -> None:
    if scene.beyond(xy) < radius + 0.3 or not scene.claim(xy, 0.0, 0.5, 0.5):
        return
    pose = np.eye(4)
    pose[:3, 3] = scene.xyz(xy)
    scene.builder.place(bush(rng, radius, height), pose)


def street_trees(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """A row on the verge, or at the kerb side of the sidewalk."""
    if side.verge_m == 0 and rng.random() < 0.4:
        return
    distance = scene.road.edge_m(side.sign) + side.bay_m + max(side.verge_m / 2, 0.7)
    spacing = rng.uniform(6, 12)
    for station in np.arange(side.start_m + 13, side.end_m - 13, spacing):
        if all(abs(station - s) > half + 1.2 for s, half, _ in side.driveways) and rng.random() < 0.85:
            plant_tree(rng, scene, scene.road.curve.point(station, side.sign * distance), station, street=True)


def hedge_line(
    rng: np.random.Generator, scene: SceneBuilder, sign: int, start: float, end: float, distance: float
) -> None:
    """A clipped hedge along the road: overlapping clumps."""
    height, color = rng.uniform(0.8, 1.9), leaf_color(rng)
    b = Builder()
    centers = []
    for station in np.arange(start, end, 0.55):
        xy = scene.road.curve.point(station, sign * distance)
        if scene.beyond(xy) > 0.7 and scene.claim(xy, 0.0, 0.3, 0.3):
            z = scene.xyz(xy)[2]
            for level in np.arange(0.3, height, 0.5):
                centers.append((*(xy + rng.normal(0, 0.06, 2)), z + level))
    if centers:
        _clumps(rng, b, np.array(centers), 0.42, color)
        scene.builder.place(b.solids(), np.eye(4))


def grove(
    rng: np.random.Generator, scene: SceneBuilder, side: Side, spacing: float, depth: float, undergrowth: float
) -> None:
    """Trees scattered over a lot, and between them `undergrowth` bushes per square metre."""
    start, end = lot_stations(side, 0.0)
    near = scene.road.walk_edge_m(side) + 1.0
    for station in np.arange(start, end, spacing):
        for distance in np.arange(near, near + depth, spacing):
            s, d = np.array([station, distance]) + rng.uniform(0, spacing, 2) * 0.8
            if s > end:
                continue
            xy = scene.road.curve.point(s, side.sign * d)
            if scene.beyond(xy) > side.verge_m + side.walk_m + 0.6:
                plant_tree(rng, scene, xy, float(s), street=False)
            if scene.near_drive(float(s)):
                for _ in range(rng.poisson(undergrowth * spacing**2)):
                    at = scene.road.curve.point(
                        s + rng.uniform(-1, 1) * spacing, side.sign * (d + rng.uniform(0, 1) * spacing)
                    )
                    if scene.beyond(at) > side.verge_m + side.walk_m + 0.8:
                        plant_bush(rng, scene, at, rng.uniform(0.7, 1.6), rng.uniform(0.5, 1.7))


def scattered(rng: np.random.Generator, scene: SceneBuilder, side: Side, count: int, near: float, far: float) -> None:
    """Single trees and bushes in yards and gardens."""
    start, end = lot_stations(side, 1.0)
    for _ in range(count):
        s, d = somewhere(rng, start, end), rng.uniform(near, far)
        xy = scene.road.curve.point(s, side.sign * d)
        if scene.beyond(xy) < side.verge_m + side.walk_m + 0.8:
            continue
        if rng.random() < 0.6:
            plant_tree(rng, scene, xy, float(s), street=False)
        else:
            plant_bush(rng, scene, xy, rng.uniform(0.4, 1.2), rng.uniform(0.5, 1.8))


def plant_side(rng: np.random.Generator, scene: SceneBuilder, side: Side) -> None:
    """Plant one side of one block."""
    front = scene.road.walk_edge_m(side)
    if side.kind == "wood":
        grove(rng, scene, side, spacing=rng.uniform(4.0, 5.5), depth=32, undergrowth=0.5)
    elif side.kind in ("park", "pocket_park"):
        grove(rng, scene, side, spacing=rng.uniform(6.0, 8.5), depth=32, undergrowth=0.36)
    elif side.kind == "houses":
        scattered(rng, scene, side, int(side.length_m / 3), front + 1.5, front + 6)
        scattered(rng, scene, side, int(side.length_m * 2.0), front + 13, front + 34)
    elif side.kind == "row":
        scattered(rng, scene, side, int(side.length_m * 0.9), front + 15, front + 34)
    elif side.kind in ("parking", "industrial", "site", "plaza"):
        start, end = lot_stations(side, 1.0)
        if rng.random() < 0.6:
            hedge_line(rng, scene, side.sign, start, end, front + 0.9)
        scattered(rng, scene, side, int(side.length_m / 3), front + 1.5, front + 32)
    street_trees(rng, scene, side)


def plant_median(rng: np.random.Generator, scene: SceneBuilder) -> None:
    """Trees and bushes on a planted median."""
    road = scene.road
    if not road.median_planted:
        return
    for station in np.arange(-40, road.drive_m + 60, rng.uniform(7, 12)):
        clear = all(abs(station - j.station_m) > j.half_width_m + 9 for j in road.junctions)
        if clear:
            xy = road.curve.point(station, 0.0)
            plant_tree(rng, scene, xy, float(station), street=True)


def plant_cross_street(rng: np.random.Generator, scene: SceneBuilder, junction: Junction) -> None:
    """Trees along both sides of a cross street."""
    road = scene.road
    center = road.curve.point(junction.station_m, 0.0)
    heading = float(road.curve.heading_at(junction.station_m))
    tangent, normal = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    for arm in junction.arms:
        for way in (-1, 1):
            for out in np.arange(road.edge_m(arm) + 15, 62, rng.uniform(7, 13)):
                xy = center + arm * normal * out + way * tangent * (junction.half_width_m + 0.8)
                if rng.random() < 0.75 and scene.beyond(xy) > 0.4:
                    plant_tree(rng, scene, xy, junction.station_m, street=True)
