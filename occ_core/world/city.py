"""A simulated city: everything along one drive, deterministic by seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.world import buildings, furniture, vegetation
from occ_core.world.actors import Actor, Trajectory
from occ_core.world.classes import VEGETATION
from occ_core.world.drive import ego_trajectory, plan_drive
from occ_core.world.ground import Ground
from occ_core.world.roads import RIGHT, Road, plan_road
from occ_core.world.scene_builder import SceneBuilder
from occ_core.world.solids import Solids
from occ_core.world.streets import paint_ground
from occ_core.world.traffic import Crowd, populate
from occ_core.world.weather import Weather, make_weather

MAX_DURATION_S = 40.0
CLEAR_HEIGHT_M, CLEAR_HALF_M = 2.5, 1.3


@dataclass(frozen=True, eq=False)
class City:
    """One scene.

    Attributes:
        seed, duration_s: what it was built from; times run from 0 to duration_s.
        ground: the terrain with its roads.
        solids: everything that never moves and has no box, world frame.
        actors: everything with a box, moving or not.
        weather: light and weather.
        ego: trajectory of the ego frame (on the ground below the middle of the rear axle, as in nuScenes).
        road: the plan that the city was built from.
    """

    seed: int
    duration_s: float
    ground: Ground
    solids: Solids
    actors: list[Actor]
    weather: Weather
    ego: Trajectory = field(repr=False)
    road: Road = field(repr=False)

    def world_from_ego(self, t_s: float) -> np.ndarray:
        """Ego pose (4, 4) at time t_s, seconds; known 3 s beyond both ends of the scene."""
        return self.ego.at(t_s)


def build_city(seed: int, duration_s: float = 20.0) -> City:
    """The city of a seed.

    Raises:
        InvalidInput: if the seed is negative or the duration is not in (0, 40] s.
    """
    if seed < 0:
        raise InvalidInput(f"city seed must be >= 0, got {seed}")
    if not 0 < duration_s <= MAX_DURATION_S:
        raise InvalidInput(f"city duration must be in (0, {MAX_DURATION_S:g}] s, got {duration_s}")

    def stream(k: int) -> np.random.Generator:  # one stream a part, so that parts do not disturb each other
        return np.random.Generator(np.random.PCG64([seed, k]))

    drive = plan_drive(stream(1), duration_s)
    road = plan_road(stream(2), float(drive.station_at(duration_s)), drive.halt_station_m)
    ground, painter = paint_ground(road)
    ego_lane = int(stream(3).integers(road.lanes[RIGHT]))
    ego = ego_trajectory(drive, road, ground, ego_lane)
    scene = SceneBuilder(road, ground, painter)
    _furnish(stream(4), scene)
    crowd = Crowd(scene, drive, ego, duration_s)
    populate(stream(5), crowd, ego_lane)
    lamps = np.array(scene.lamps_m, dtype=np.float32).reshape(-1, 3)
    weather = make_weather(stream(6), lamps)
    solids = _pruned(scene.builder.solids(), ground, ego)
    return City(seed, float(duration_s), ground, solids, crowd.actors, weather, ego, road)


def _pruned(solids: Solids, ground: Ground, ego: Trajectory) -> Solids:
    """Remove the leaves and branches that would hang into the space that the ego vehicle drives through."""
    lower, upper = solids.bounds_m()
    center = (lower + upper)[:, :2] / 2
    low = lower[:, 2] - ground.height_at(center) < CLEAR_HEIGHT_M
    path = (ego.poses[:, :3, 3] + ego.poses[:, :3, 0] * 1.1)[::2, :2]  # the middle of the vehicle
    reach = np.hypot(*(upper - lower)[:, :2].T) / 2 + CLEAR_HALF_M
    beside = np.maximum(path.min(axis=0) - center, center - path.max(axis=0)).max(axis=1) < reach
    keep = np.ones(len(solids), dtype=bool)
    for k in np.flatnonzero(low & beside & (solids.class_id == VEGETATION)):
        keep[k] = np.sqrt(((path - center[k]) ** 2).sum(axis=1).min()) >= reach[k]
    return solids[keep]


def _furnish(rng: np.random.Generator, scene: SceneBuilder) -> None:
    """Place everything that stands still, the most constrained things first."""
    road = scene.road
    for junction in road.junctions:
        furniture.furnish_junction(rng, scene, junction)
        vegetation.plant_cross_street(rng, scene, junction)
    for side in road.sides:
        furniture.furnish_side(rng, scene, side)
        if side.kind == "row":
            buildings.row_of_buildings(rng, scene, side)
        elif side.kind == "houses":
            buildings.row_of_houses(rng, scene, side)
        elif side.kind == "industrial":
            buildings.industrial_lot(rng, scene, side)
        vegetation.plant_side(rng, scene, side)
        buildings.second_row(rng, scene, side)
    vegetation.plant_median(rng, scene)
    buildings.skyline(rng, scene)
