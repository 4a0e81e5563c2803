"""The actors on the road: moving and parked vehicles, people, roadworks and loose things."""

from __future__ import annotations

import numpy as np

from occ_core.world import people, vehicles
from occ_core.world.actors import Actor, Trajectory, centred, follow, sample_times
from occ_core.world.classes import (
    BARRIER,
    BICYCLE,
    BUS,
    CAR,
    CONSTRUCTION_VEHICLE,
    MOTORCYCLE,
    OTHERS,
    PEDESTRIAN,
    TRAFFIC_CONE,
    TRAILER,
    TRUCK,
)
from occ_core.world.drive import DriveProfile
from occ_core.world.roads import LEFT, RIGHT, Junction, Side
from occ_core.world.scene_builder import SceneBuilder, lot_stations, somewhere
from occ_core.world.streets import CROSSWALK_M

EGO_DISCS = ((-0.4, 1.1), (0.7, 1.1), (1.8, 1.1), (2.9, 1.1))  # along x from the rear axle, radius


def make(rng: np.random.Generator, name: str):
    """Make a new thing: (category, class id, solids, size)."""
    kinds = {
        "car": ("vehicle.car", CAR, vehicles.car),
        "bus": ("vehicle.bus.rigid", BUS, vehicles.bus),
        "truck": ("vehicle.truck", TRUCK, vehicles.truck),
        "tractor": ("vehicle.truck", TRUCK, vehicles.tractor),
        "trailer": ("vehicle.trailer", TRAILER, vehicles.trailer),
        "small_trailer": ("vehicle.trailer", TRAILER, vehicles.small_trailer),
        "excavator": ("vehicle.construction", CONSTRUCTION_VEHICLE, vehicles.excavator),
        "loader": ("vehicle.construction", CONSTRUCTION_VEHICLE, vehicles.wheel_loader),
        "motorcycle": ("vehicle.motorcycle", MOTORCYCLE, lambda r: people.motorcycle(r, True)),
        "parked_motorcycle": ("vehicle.motorcycle", MOTORCYCLE, lambda r: people.motorcycle(r, False)),
        "bicycle": ("vehicle.bicycle", BICYCLE, lambda r: people.bicycle(r, True)),
        "parked_bicycle": ("vehicle.bicycle", BICYCLE, lambda r: people.bicycle(r, False)),
        "walker": ("human.pedestrian.adult", PEDESTRIAN, lambda r: people.pedestrian(r, r.uniform(1.55, 1.92), True)),
        "stander": ("human.pedestrian.adult", PEDESTRIAN, lambda r: people.pedestrian(r, r.uniform(1.55, 1.92), False)),
        "child": ("human.pedestrian.child", PEDESTRIAN, lambda r: people.pedestrian(r, r.uniform(1.0, 1.4), True)),
        "cone": ("movable_object.trafficcone", TRAFFIC_CONE, people.cone),
        "barrier": ("movable_object.barrier", BARRIER, people.barrier),
        "bin": ("movable_object.pushable_pullable", OTHERS, people.bin_),
        "cart": ("movable_object.pushable_pullable", OTHERS, people.cart),
        "debris": ("movable_object.debris", OTHERS, people.debris),
        "rack": ("static_object.bicycle_rack", OTHERS, people.bicycle_rack),
        "animal": ("animal", OTHERS, people.animal),
    }
    category, class_id, build = kinds[name]
    return category, class_id, *centred(build(rng))


class Crowd:
    """Collects actors; whoever would touch another one or the ego vehicle at any time is not let in."""

    def __init__(self, scene: SceneBuilder, drive: DriveProfile, ego: Trajectory, duration_s: float) -> None:
        self.scene, self.drive = scene, drive
        self.times_s = sample_times(duration_s)
        self.checks_s = self.times_s[::3]
        self.actors: list[Actor] = []
        poses = np.stack([ego.at(t) for t in self.checks_s])
        points = np.stack([poses[:, :2, 3] + x * poses[:, :2, 0] for x, _ in EGO_DISCS], axis=1)
        self._points = [points]  # per actor (T or 1, discs, 2)
        self._bounds = [_bounds(points)]
        self._radii = [EGO_DISCS[0][1]]

    def admit(self, actor: Actor, gap_m: float = 0.25, towed: bool = False) -> bool:
        """Let an actor in unless it comes nearer than `gap_m` to another; `towed` ones may touch the last one."""
        points, radius = self._discs(actor)
        bounds = _bounds(points)
        near = radius + np.array(self._radii) + gap_m
        near[0] = radius + self._radii[0] + max(gap_m, 0.5)
        if towed:
            near[-1] = -np.inf
        lower, upper = np.array(self._bounds).transpose(1, 0, 2)
        apart = np.maximum(lower - bounds[1], bounds[0] - upper).max(axis=1)  # less than any distance between them
        for k in np.flatnonzero(apart < near):
            distance = ((points[:, :, None] - self._points[k][:, None]) ** 2).sum(axis=-1)
            if (distance < near[k] ** 2).any():
                return False
        self._points.append(points)
        self._bounds.append(bounds)
        self._radii.append(radius)
        self.actors.append(actor)
        return True

    def _discs(self, actor: Actor) -> tuple[np.ndarray, float]:
        width, length, _ = actor.size_m
        poses = actor.trajectory.poses[::3]
        short = min(width, length) / 2
        axis = 0 if length >= width else 1
        reach = max(max(width, length) / 2 - short, 0)
        steps = np.linspace(-reach, reach, max(int(np.ceil(reach / max(short, 0.3))) + 1, 1))
        return np.stack([poses[:, :2, 3] + x * poses[:, :2, axis] for x in steps], axis=1), short * 1.1

    def stand(self, rng, name: str, xy: np.ndarray, yaw: float, gap_m: float = 0.25, claim: bool = True) -> bool:
        """Put a thing that stays where it is; False where there is no room."""
        category, class_id, solids, size = make(rng, name)
        width, length, _ = size
        if claim and not self.scene.claim(xy, yaw, length + 0.1, width + 0.1):
            return False
        stance = max(length * 0.6, 0.3), max(width * 0.6, 0.3)
        here = follow(self.scene.ground, np.zeros(1), xy[None], np.array([yaw]), stance)
        actor = Actor(category, class_id, solids, size, False, here)
        return self.admit(actor, gap_m)

    def move(self, rng, name: str, xy: np.ndarray, yaw: np.ndarray, gap_m: float = 0.4, towed: bool = False) -> bool:
        """Put a thing that follows points (K, 2) with headings (K,) at `times_s`."""
        category, class_id, solids, size = make(rng, name)
        width, length, _ = size
        path = follow(self.scene.ground, self.times_s, xy, yaw, (max(length * 0.6, 0.3), max(width * 0.6, 0.3)))
        return self.admit(Actor(category, class_id, solids, size, True, path), gap_m, towed)


def _bounds(points: np.ndarray) -> np.ndarray:
    """Lower and upper corner (2, 2) of points (..., 2)."""
    flat = points.reshape(-1, 2)
    return np.stack([flat.min(axis=0), flat.max(axis=0)])


def populate(rng: np.random.Generator, crowd: Crowd, ego_lane: int) -> None:
    """Everybody, the most constrained first."""
    road = crowd.scene.road
    _roadworks(rng, crowd)
    for side in road.sides:
        _kerbside(rng, crowd, side)
        _lot(rng, crowd, side)
    _same_way(rng, crowd, ego_lane)
    _oncoming(rng, crowd)
    for junction in road.junctions:
        if crowd.scene.near_drive(junction.station_m):
            _cross_traffic(rng, crowd, junction)
            _crossing_people(rng, crowd, junction)
    for side in road.sides:
        _people(rng, crowd, side)
        _loose_things(rng, crowd, side)


def _vehicle(rng: np.random.Generator) -> str:
    names = ["car", "bus", "truck", "motorcycle", "bicycle", "tractor"]
    return str(rng.choice(names, p=[0.55, 0.18, 0.08, 0.07, 0.05, 0.07]))


def _drive_along(rng, crowd: Crowd, name: str, sign: int, offset: float, station: np.ndarray) -> bool:
    """A vehicle, perhaps with a trailer, whose middle follows stations (K,)."""
    curve = crowd.scene.road.curve
    turn = 0.0 if sign == RIGHT else np.pi
    way = 1 if sign == RIGHT else -1
    if name == "bicycle":
        offset = sign * (crowd.scene.road.edge_m(sign) - 0.55)
    done = crowd.move(rng, name, curve.point(station, offset), curve.heading_at(station) + turn)
    if done and name == "tractor":
        behind = station - way * 6.9
        crowd.move(rng, "trailer", curve.point(behind, offset), curve.heading_at(behind) + turn, towed=True)
    return done


def _same_way(rng, crowd: Crowd, ego_lane: int) -> None:
    road, drive, t = crowd.scene.road, crowd.drive, crowd.times_s
    for lane in range(road.lanes[RIGHT]):
        offset = road.lane_offset_m(RIGHT, lane)
        if lane == ego_lane:
            ahead = drive.free_station_at(t) + np.cumsum(np.full(len(t), rng.uniform(0.0, 0.12)))
            _drive_along(rng, crowd, _vehicle(rng), RIGHT, offset, ahead + rng.uniform(14, 32))
            if rng.random() < 0.6:
                behind = drive.station_at(t) - rng.uniform(9, 20) - 2.0
                _drive_along(rng, crowd, _vehicle(rng), RIGHT, offset, behind)
            continue
        for gap in np.arange(-38, 60, rng.uniform(11, 20)):
            if rng.random() < 0.75:
                drift = rng.uniform(-0.8, 1.2) * (t + 1)
                station = drive.station_at(t) + gap + rng.uniform(-3, 3) + drift
                _drive_along(rng, crowd, _vehicle(rng), RIGHT, offset, station)


def _oncoming(rng, crowd: Crowd) -> None:
    road, t = crowd.scene.road, crowd.times_s
    for lane in range(road.lanes[LEFT]):
        speed, offset = rng.uniform(5, 11), road.lane_offset_m(LEFT, lane)
        station = rng.uniform(-50, 0)
        while station < road.drive_m + 40 + speed * t[-1]:
            if rng.random() < 0.8:
                sway = rng.uniform(0, 0.8) * np.sin(t / 3 + rng.uniform(0, 6))
                _drive_along(rng, crowd, _vehicle(rng), LEFT, offset, station - speed * t + sway)
            station += rng.uniform(11, 32)


def _cross_traffic(rng, crowd: Crowd, junction: Junction) -> None:
    road, t = crowd.scene.road, crowd.times_s
    center = road.curve.point(junction.station_m, 0.0)
    heading = float(road.curve.heading_at(junction.station_m))
    tangent, normal = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    for arm in junction.arms:
        # Coming from an arm one drives towards the main road, keeping right.
        lane = center - arm * tangent * junction.half_width_m / 2
        yaw = heading - arm * np.pi / 2
        if rng.random() < 0.65:
            line = road.edge_m(arm) + CROSSWALK_M[1] + 1.2
            for _ in range(rng.integers(1, 3)):
                name = str(rng.choice(["car", "car", "car", "bus", "truck", "motorcycle"]))
                long = {"bus": 12.8, "truck": 9.5, "car": 5.4, "motorcycle": 2.4}[name]
                crowd.stand(rng, name, lane + arm * normal * (line + long / 2), yaw, claim=False)
                line += long + rng.uniform(1, 4)
        elif len(junction.arms) == 2:
            speed = rng.uniform(5, 9)
            passing = rng.uniform(0, t[-1])  # when it is in the middle of the junction
            way = arm * (passing - t) * speed
            xy = lane + normal * way[:, None]
            crowd.move(rng, _vehicle(rng).replace("tractor", "car"), xy, np.full(len(t), yaw), gap_m=0.8)
        leaving = center + arm * tangent * junction.half_width_m / 2
        if rng.random() < 0.5:
            speed, start = rng.uniform(3, 8), rng.uniform(8, 25)
            xy = leaving + arm * normal * (road.edge_m(arm) + start + speed * (t + 1))[:, None]
            crowd.move(rng, _vehicle(rng).replace("tractor", "car"), xy, np.full(len(t), heading + arm * np.pi / 2))


def _crossing_people(rng, crowd: Crowd, junction: Junction) -> None:
    road, t = crowd.scene.road, crowd.times_s
    for _ in range(rng.poisson(1.2)):
        along = rng.choice([-1, 1]) * (junction.half_width_m + np.mean(CROSSWALK_M) + rng.uniform(-1, 1))
        way, speed = rng.choice([-1, 1]), rng.uniform(0.8, 1.6)
        offset = way * (speed * (t - rng.uniform(0, t[-1])))
        station = np.full(len(t), junction.station_m + along)
        yaw = road.curve.heading_at(station) + way * np.pi / 2
        name = str(rng.choice(["walker", "walker", "child", "bicycle"]))
        crowd.move(rng, name, road.curve.point(station, offset), yaw, gap_m=0.3)


def _people(rng, crowd: Crowd, side: Side) -> None:
    """Walkers along the sidewalk, alone or in pairs, and people who stand about."""
    road, t = crowd.scene.road, crowd.times_s
    kerb = road.edge_m(side.sign) + side.bay_m + side.verge_m
    busy = {"downtown": 1 / 12, "residential": 1 / 28, "arterial": 1 / 32, "works": 1 / 35}[road.district]
    for _ in range(rng.poisson(side.length_m * busy)):
        start = rng.uniform(side.start_m, side.end_m)
        if not crowd.scene.near_drive(start):
            continue
        offset = side.sign * (kerb + side.walk_m * rng.uniform(0.35, 0.7))
        if rng.random() < 0.75:
            way, speed = rng.choice([-1, 1]), rng.uniform(0.7, 1.7)
            station = start + way * speed * t
            xy, yaw = road.curve.point(station, offset), road.curve.heading_at(station) + (0 if way > 0 else np.pi)
            if _walkable(crowd.scene, xy):
                companion = rng.random()
                crowd.move(rng, "child" if rng.random() < 0.12 else "walker", xy, yaw, gap_m=0.15)
                beside = road.curve.point(station, offset + side.sign * 0.75)
                if companion < 0.25 and _walkable(crowd.scene, beside):
                    crowd.move(rng, "walker" if companion > 0.06 else "animal", beside, yaw, gap_m=0.05)
        else:
            crowd.stand(rng, "stander", road.curve.point(start, offset), rng.uniform(0, 2 * np.pi), gap_m=0.1)


def _walkable(scene: SceneBuilder, xy: np.ndarray) -> bool:
    cells = np.floor((xy - scene.ground.origin_m) / 0.5).astype(int)
    inside = ((cells >= 0) & (cells < scene.taken.shape)).all(axis=1)
    return bool(inside.all() and not scene.taken[cells[:, 0], cells[:, 1]].any())


def _kerbside(rng, crowd: Crowd, side: Side) -> None:
    """Parked vehicles in the bays."""
    if not side.bay_m:
        return
    road = crowd.scene.road
    distance = road.edge_m(side.sign) + side.bay_m / 2
    turn = 0.0 if side.sign == RIGHT else np.pi
    share = rng.uniform(0.5, 0.95)
    station = side.start_m + 15.5
    while station < side.end_m - 15:
        step = 5.8
        blocked = any(abs(station - s) < half + 3.2 for s, half, _ in side.driveways)
        if not blocked and rng.random() < share and crowd.scene.near_drive(station):
            names, weights = ["car", "parked_motorcycle", "small_trailer", "truck"], [0.83, 0.09, 0.05, 0.03]
            name = str(rng.choice(names, p=weights))
            count = int(rng.integers(2, 5)) if name == "parked_motorcycle" else 1
            for k in range(count):
                at = station + (k - count / 2) * 1.1 if count > 1 else station
                yaw = road.curve.heading_at(at) + turn + (side.sign * np.pi / 2 if count > 1 else rng.normal(0, 0.03))
                crowd.stand(rng, name, road.curve.point(at, side.sign * distance), float(yaw))
            step = 11.0 if name == "truck" else step
        station += step


def _lot(rng, crowd: Crowd, side: Side) -> None:
    road = crowd.scene.road
    start, end = lot_stations(side, 2.0)
    front = road.walk_edge_m(side)
    if side.kind == "parking":
        _parking_rows(rng, crowd, side, start, end, front + 3.0, rows=4)
    elif side.kind == "row" and rng.random() < 0.8:
        _parking_rows(rng, crowd, side, start, end, front + 18.5, rows=3)
    elif side.kind == "houses":
        for station, _, depth in side.driveways:
            if rng.random() < 0.9:
                yaw = road.curve.heading_at(station) + rng.choice([-1, 1]) * np.pi / 2
                crowd.stand(rng, "car", road.curve.point(station, side.sign * (front + depth - 2.6)), float(yaw))
    elif side.kind in ("industrial", "site"):
        names = ["truck", "trailer", "trailer", "car", "bus", "bin"] if side.kind == "industrial" else [
            "excavator", "loader", "truck", "debris", "excavator", "excavator", "trailer", "bin"]  # fmt: skip
        for _ in range(int(side.length_m / 9)):
            s, d = somewhere(rng, start + 4, end - 4), rng.uniform(front + 4.0, front + 26)
            if crowd.scene.near_drive(s) and crowd.scene.beyond(road.curve.point(s, side.sign * d)) > 6:
                yaw = road.curve.heading_at(s) + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.2)
                crowd.stand(rng, str(rng.choice(names)), road.curve.point(s, side.sign * d), float(yaw))
        if side.kind == "site":
            _barrier_line(rng, crowd, start, end, side.sign * (front + 0.6))


def _parking_rows(rng, crowd: Crowd, side: Side, start: float, end: float, first: float, rows: int) -> None:
    share = rng.uniform(0.35, 0.9)
    for row in range(rows):
        distance = first + (row // 2) * 16.5 + (row % 2) * 11.0
        for station in np.arange(start + 2, end - 2, 2.75):
            if rng.random() < share and crowd.scene.near_drive(station):
                yaw = crowd.scene.road.curve.heading_at(station) + rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.02)
                crowd.stand(rng, "car", crowd.scene.road.curve.point(station, side.sign * distance), float(yaw), 0.1)


def _barrier_line(rng, crowd: Crowd, start: float, end: float, offset: float) -> None:
    curve, seed = crowd.scene.road.curve, int(rng.integers(1 << 32))
    for station in np.arange(start, end, 2.1):
        same = np.random.Generator(np.random.PCG64(seed))  # all of one make
        crowd.stand(same, "barrier", curve.point(station, offset), float(curve.heading_at(station)), -0.5)


def _roadworks(rng, crowd: Crowd) -> None:
    """The outer lane of the other carriageway is closed by barriers and cones; machines stand inside."""
    road = crowd.scene.road
    if road.works is None:
        return
    start, end = road.works
    lane = road.lane_offset_m(LEFT, road.lanes[LEFT] - 1)
    inner = lane - road.lane_m / 2 + 0.5
    _barrier_line(rng, crowd, start, end, inner)
    for k in range(6):  # tapers
        for station, way in ((start - 2 - 2.5 * k, 1), (end + 2 + 2.5 * k, 1)):
            at = road.curve.point(station, inner + way * k * road.lane_m / 6)
            crowd.stand(rng, "cone", at, 0.0, 0.0)
    for _ in range(int(rng.integers(3, 7))):
        name = str(rng.choice(["excavator", "excavator", "loader", "truck", "debris", "stander"]))
        s = rng.uniform(start + 5, end - 5)
        crowd.stand(
            rng, name, road.curve.point(s, lane + 0.9), float(road.curve.heading_at(s)) + np.pi, 0.05, claim=False
        )


def _loose_things(rng, crowd: Crowd, side: Side) -> None:
    """Bins, carts, sacks, parked bicycles and cones beside the walk."""
    road = crowd.scene.road
    kerb = road.edge_m(side.sign) + side.bay_m
    places = (kerb + 0.6, kerb + side.verge_m + side.walk_m - 0.5)
    names = ["bin", "cart", "debris", "parked_bicycle", "rack", "cone", "barrier", "parked_motorcycle", "animal"]
    weights = [0.24, 0.1, 0.1, 0.17, 0.06, 0.1, 0.08, 0.13, 0.02]
    if rng.random() < 0.3:  # a guarded stretch of kerb
        start = somewhere(rng, side.start_m + 8, side.end_m - 26)
        _barrier_line(rng, crowd, start, min(start + rng.uniform(6, 18), side.end_m - 8), side.sign * (kerb + 0.5))
    for _ in range(rng.poisson(side.length_m / 4.5)):
        station = somewhere(rng, side.start_m + 6, side.end_m - 6)
        if not crowd.scene.near_drive(station):
            continue
        at = road.curve.point(station, side.sign * places[rng.integers(2)])
        if crowd.scene.beyond(at) > 0.4:
            yaw = road.curve.heading_at(station) + rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.15)
            crowd.stand(rng, str(rng.choice(names, p=weights)), at, float(yaw))
