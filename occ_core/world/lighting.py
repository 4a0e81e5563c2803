"""Sun, sky and lamps of one snapshot, from the city's weather."""

from __future__ import annotations

import numpy as np

from occ_core.world import materials as m
from occ_core.world.shading import Light
from occ_core.world.tracer import Snapshot

# Colours per weather, linear RGB: horizon, zenith, range of the cloud cover.
SKIES = {
    "clear": ((0.75, 0.86, 1.0), (0.10, 0.25, 0.72), (0.0, 0.55)),
    "overcast": ((0.86, 0.88, 0.92), (0.58, 0.62, 0.68), (0.85, 1.0)),
    "rain": ((0.50, 0.53, 0.57), (0.36, 0.39, 0.43), (0.95, 1.0)),
    "night": ((0.010, 0.008, 0.008), (0.002, 0.0025, 0.005), (0.0, 0.5)),
    "night_rain": ((0.014, 0.012, 0.011), (0.006, 0.006, 0.006), (0.9, 1.0)),
}
LAMPS_NEAR = 24
REACH_M = 70.0


def light_of(snapshot: Snapshot) -> Light:
    """The light of a snapshot; lamps beyond `REACH_M` of the ego are left out."""
    weather, seed = snapshot.city.weather, snapshot.city.seed
    rng = np.random.default_rng((seed, 103))
    horizon, zenith, (least, most) = SKIES[weather.name]
    cloud = rng.uniform(least, most)
    tint = 1 + rng.normal(0, 0.03, 3)
    warm = rng.uniform(0.55, 1.0)  # share of blue left in the sunlight: low means evening
    sun_color = np.array([1.0, 0.93 - 0.18 * (1 - warm), 0.35 + 0.5 * warm])
    strength = 1.7 * float(weather.sun_strength)
    return Light(
        np.asarray(weather.sun_direction, dtype=np.float64),
        strength * sun_color,
        np.asarray(weather.ambient, dtype=np.float64) * tint * (0.5 if weather.night else 1.0),
        np.array(horizon) * tint,
        np.array(zenith) * tint,
        float(cloud),
        int(seed & 0xFFFF),
        float(weather.fog_per_m),
        float(weather.wetness),
        bool(weather.night),
        _spots(snapshot) if weather.night else np.zeros((0, 11)),
    )


def _spots(snapshot: Snapshot) -> np.ndarray:
    """Street lamps and headlights near the ego, (L, 11) as Light.spots."""
    city = snapshot.city
    world_from_ego = city.world_from_ego(snapshot.t_s)
    here = world_from_ego[:3, 3]
    rows = [*_headlights(world_from_ego, 3.75, 0.65, 5.0)]
    lamps = np.asarray(city.weather.lamps_m, dtype=np.float64).reshape(-1, 3)
    distance = np.linalg.norm(lamps - here, axis=1)
    sodium = np.random.default_rng((city.seed, 104)).uniform() < 0.5
    color = np.array([1.0, 0.62, 0.25]) if sodium else np.array([1.0, 0.9, 0.75])
    for i in np.argsort(distance)[:LAMPS_NEAR]:
        if distance[i] < REACH_M:
            rows.append([*lamps[i], 0, 0, -1, 0.35, *(1.5 * color), 24.0])
    vehicles = [
        (np.linalg.norm(pose[:3, 3] - here), i)
        for i, pose in enumerate(snapshot.world_from_actor)
        if city.actors[i].moving and (city.actors[i].solids.material == m.CARBODY).any()
    ]
    for distance_m, i in sorted(vehicles)[:10]:
        if distance_m < REACH_M:
            rows += _headlights(snapshot.world_from_actor[i], city.actors[i].size_m[1] / 2, 0.65, 3.0)
    return np.array(rows, dtype=np.float64)


def _headlights(world_from_body: np.ndarray, front_m: float, height_m: float, power: float) -> list[list[float]]:
    forward = world_from_body[:3, :3] @ np.array([0.995, 0.0, -0.1])
    sides = (np.array([front_m, y, height_m]) for y in (-0.6, 0.6))
    at = [world_from_body[:3, :3] @ p + world_from_body[:3, 3] for p in sides]
    return [[*p, *forward, 0.90, power, power * 0.95, power * 0.85, 45.0] for p in at]
