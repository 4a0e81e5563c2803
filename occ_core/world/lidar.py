"""One sweep of the simulated LiDAR, taken as instantaneous at its stamp."""

from __future__ import annotations

import numpy as np

from occ_core.world import materials as m
from occ_core.world.sensors import LIDAR_MAX_M, LIDAR_MIN_M, lidar_directions
from occ_core.world.shading import GROUND
from occ_core.world.tracer import Hits, Snapshot

# Share of infra-red light that comes back at normal incidence, by material; the rest of the materials return 0.35.
REFLECTANCE = {
    m.GLASS: 0.05, m.METAL: 0.5, m.FOLIAGE: 0.45, m.RUBBER: 0.08, m.SIGN: 0.95, m.CARBODY: 0.4, m.BANDS: 0.6,
    m.ASPHALT: 0.12, m.PAVING: 0.25, m.GRASS: 0.35, m.SOIL: 0.25, m.KERB: 0.3, m.COBBLE: 0.2, m.PAINT_WHITE: 0.7,
    m.PAINT_YELLOW: 0.6,
}  # fmt: skip
NOISE_M = 0.015
HALF_RETURNS_M = 85.0  # a 10 % target is lost half the time at this range, in dry air


def sweep(
    snapshot: Snapshot, world_from_lidar: np.ndarray, rng: np.random.Generator, sees_ego: bool = True
) -> np.ndarray:
    """Points float32 (N, 5): x, y, z in the LiDAR frame (x right, y forward), intensity 0..255, beam.

    Rays that return nothing (sky, out of range, too dark, mirrored away by water or glass) are absent, and so are
    returns from the car itself; it is not in the way where the LiDAR does not see it (`sees_ego`).
    """
    directions, ring = lidar_directions()
    world = directions @ world_from_lidar[:3, :3].T
    origin = world_from_lidar[:3, 3]
    hits = snapshot.cast(origin, world)
    near = np.isfinite(hits.distance_m) & (hits.distance_m < LIDAR_MAX_M) & (hits.distance_m > LIDAR_MIN_M)
    start = np.broadcast_to(origin, world.shape)
    if sees_ego:
        near &= ~snapshot.blocked_by_ego(start, world)
    index = np.flatnonzero(near)
    points = origin + world[index] * hits.distance_m[index, None]
    cosine = np.abs(np.einsum("ni,ni->n", hits.normals[index], world[index]))
    reflectance = _reflectance(snapshot, hits, index, points)
    weather = snapshot.city.weather
    on_ground = hits.solid[index] == GROUND
    reflectance = np.where(on_ground, reflectance * (1 - 0.7 * weather.wetness), reflectance)
    distance = hits.distance_m[index]
    signal = reflectance * (0.25 + 0.75 * cosine) * np.exp(-2 * weather.fog_per_m * distance)
    strength = signal * (HALF_RETURNS_M / np.maximum(distance, 1.0)) ** 2 / 0.1
    keep = rng.random(len(index)) < strength / (1 + strength)
    distance = distance + rng.normal(0, NOISE_M, len(index))
    intensity = np.clip(signal * 110 * rng.lognormal(0, 0.25, len(index)), 0, 255)
    xyz = directions[index] * distance[:, None]
    return np.column_stack([xyz, np.floor(intensity), ring[index]])[keep].astype(np.float32)


def _reflectance(snapshot: Snapshot, hits: Hits, index: np.ndarray, points: np.ndarray) -> np.ndarray:
    table = np.full(256, 0.35)
    table[list(REFLECTANCE)] = list(REFLECTANCE.values())
    solid = hits.solid[index]
    material = np.empty(len(index), dtype=np.uint8)
    ground = solid == GROUND
    material[ground] = snapshot.city.ground.material_at(points[ground, :2])
    material[~ground] = snapshot.table.material[solid[~ground]]
    color = np.ones(len(index))
    painted = ~ground & np.isin(material, (m.CARBODY, m.PAINT, m.FACADE, m.CLOTH))
    color[painted] = 0.35 + 1.3 * snapshot.table.color[solid[painted]].mean(axis=1)
    return table[material] * color
