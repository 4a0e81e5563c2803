"""The plan of the city along one main road: lanes, junctions, and what lies on each side of each block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from occ_core.world.curve import Curve
from occ_core.world.materials import ASPHALT, COBBLE, GRASS, PAVING, SOIL

KERB_RADIUS_M = 6.0  # fillet of the kerb at a street corner
LEFT, RIGHT = 1, -1

# What lots of a district are, with weights.
DISTRICTS = {
    "downtown": {"row": 7, "plaza": 1, "parking": 1.5, "pocket_park": 1.5},
    "residential": {"houses": 6, "row": 2, "wood": 1.2, "pocket_park": 0.8, "parking": 0.5},
    "arterial": {"wood": 4, "park": 1.5, "row": 1.5, "houses": 1, "parking": 2, "industrial": 0.7},
    "works": {"industrial": 3, "site": 3, "parking": 1.5, "wood": 1.5, "row": 1.5},
}
DISTRICT_WEIGHTS = {"downtown": 0.34, "residential": 0.28, "arterial": 0.22, "works": 0.16}


@dataclass
class Junction:
    """A cross street: a straight line through the main road at a right angle."""

    station_m: float
    half_width_m: float
    arms: tuple[int, ...]  # LEFT and / or RIGHT
    signals: bool


@dataclass
class Side:
    """One side of one block: from the kerb outwards parking bay, verge, sidewalk, lot."""

    sign: int
    start_m: float  # stations between the corners' kerbs
    end_m: float
    kind: str
    bay_m: float
    verge_m: float
    walk_m: float
    walk_material: int
    verge_material: int
    driveways: list[tuple[float, float, float]] = field(default_factory=list)  # station, half width, depth beyond walk

    @property
    def length_m(self) -> float:
        return self.end_m - self.start_m


@dataclass
class Road:
    """The whole plan. Traffic keeps right; offsets are positive to the left."""

    district: str
    curve: Curve
    drive_m: float
    lane_m: float
    lanes: dict[int, int]  # per side
    shoulder_m: float
    median_m: float
    median_planted: bool
    surface: int
    junctions: list[Junction]
    sides: list[Side]
    works: tuple[float, float] | None  # stations of roadworks on the left carriageway
    relief: np.ndarray  # (K, 4): wave numbers x, y, phase, amplitude of the ground's undulation

    def edge_m(self, sign: int) -> float:
        """Distance of the kerb from the centreline, without parking bays."""
        return self.median_m / 2 + self.lanes[sign] * self.lane_m + self.shoulder_m

    def lane_offset_m(self, sign: int, lane: int) -> float:
        """Signed offset of a lane's middle; lane 0 is the innermost."""
        return sign * (self.median_m / 2 + (lane + 0.5) * self.lane_m)

    def walk_edge_m(self, side: Side) -> float:
        """Distance of the lot from the centreline."""
        return self.edge_m(side.sign) + side.bay_m + side.verge_m + side.walk_m


def plan_road(rng: np.random.Generator, drive_m: float, stop_m: float | None) -> Road:
    """A random plan for a drive from station 0 to `drive_m`, which halts at station `stop_m` if given."""
    district = str(rng.choice(list(DISTRICT_WEIGHTS), p=list(DISTRICT_WEIGHTS.values())))
    curve = Curve(rng, -100.0, drive_m + 110.0)
    wide = {"downtown": 0.55, "residential": 0.1, "arterial": 0.8, "works": 0.5}[district]
    lanes = {sign: 2 if rng.random() < wide else 1 for sign in (LEFT, RIGHT)}
    median_m = float(rng.uniform(1.6, 4.0)) if sum(lanes.values()) > 2 and rng.random() < 0.6 else 0.0
    road = Road(
        district=district,
        curve=curve,
        drive_m=drive_m,
        lane_m=float(rng.uniform(3.0, 3.7)),
        lanes=lanes,
        shoulder_m=float(rng.choice([0.2, 0.4, 1.4], p=[0.5, 0.3, 0.2])),
        median_m=median_m,
        median_planted=bool(median_m > 2.4 and rng.random() < 0.4),
        surface=int(COBBLE if district in ("downtown", "residential") and rng.random() < 0.12 else ASPHALT),
        junctions=[],
        sides=[],
        works=None,
        relief=_relief(rng),
    )
    road.junctions = _plan_junctions(rng, road, stop_m)
    road.sides = _plan_sides(rng, road)
    if district == "works" or rng.random() < 0.3:
        start = float(rng.uniform(10, max(drive_m - 20, 20)))
        road.works = (start, start + float(rng.uniform(18, 40)))
    return road


def _relief(rng: np.random.Generator) -> np.ndarray:
    """Waves of 90..260 m whose slopes add up to 8 % at most."""
    waves = []
    budget = rng.choice([0.015, 0.04, 0.08])
    for share in (0.5, 0.3, 0.2):
        length, angle = rng.uniform(90, 260), rng.uniform(0, np.pi)
        k = 2 * np.pi / length
        waves.append((k * np.cos(angle), k * np.sin(angle), rng.uniform(0, 2 * np.pi), share * budget / k))
    return np.array(waves)


def _plan_junctions(rng: np.random.Generator, road: Road, stop_m: float | None) -> list[Junction]:
    first, last = road.curve.start_m + 15, road.curve.stations_m[-1] - 15
    shortest, longest = {"downtown": (55, 85), "residential": (50, 90), "arterial": (80, 140), "works": (70, 130)}[
        road.district
    ]
    half_width = float(rng.uniform(3.0, 3.8))
    anchor = rng.uniform(20, 60) if stop_m is None else stop_m + half_width + 8.5
    stations = [anchor]
    while stations[-1] + longest < last:
        stations.append(stations[-1] + rng.uniform(shortest, longest))
    while stations[0] - longest > first:
        stations.insert(0, stations[0] - rng.uniform(shortest, longest))
    junctions = []
    for station in stations:
        forced = station == anchor and stop_m is not None
        arms = (LEFT, RIGHT) if forced or rng.random() < 0.5 else ((LEFT,) if rng.random() < 0.5 else (RIGHT,))
        width = half_width if forced else float(rng.uniform(2.9, 5.5))
        signals = forced or (len(arms) == 2 and road.district != "residential" and rng.random() < 0.6)
        junctions.append(Junction(float(station), width, arms, signals))
    return junctions


def _plan_sides(rng: np.random.Generator, road: Road) -> list[Side]:
    kinds = DISTRICTS[road.district]
    weights = np.array(list(kinds.values())) / sum(kinds.values())
    walk_material = int(rng.choice([PAVING, PAVING, COBBLE, ASPHALT]))
    verge_material = int(rng.choice([GRASS, GRASS, SOIL]))
    verge_m = float(rng.choice([0.0, rng.uniform(1.2, 3.0)]))
    walk_m = float(rng.uniform(1.6, 3.6))
    sides = []
    for sign in (LEFT, RIGHT):
        cuts = [(j.station_m - j.half_width_m, j.station_m + j.half_width_m) for j in road.junctions if sign in j.arms]
        starts = [road.curve.start_m, *(after for _, after in cuts)]
        ends = [*(before for before, _ in cuts), float(road.curve.stations_m[-1])]
        for start, end in zip(starts, ends, strict=True):
            kind = str(rng.choice(list(kinds), p=weights))
            bay = 2.2 if end - start > 35 and kind not in ("wood",) and rng.random() < 0.55 else 0.0
            sides.append(Side(sign, start, end, kind, bay, verge_m, walk_m, walk_material, verge_material))
    for side in sides:
        _plan_driveways(rng, side)
    return sides


def _plan_driveways(rng: np.random.Generator, side: Side) -> None:
    if side.kind == "houses":
        station = side.start_m + rng.uniform(12, 18)
        while station < side.end_m - 12:
            side.driveways.append((float(station), 1.5, float(rng.uniform(6, 11))))
            station += rng.uniform(14, 20)
    elif side.kind in ("parking", "industrial", "site") and side.length_m > 30:
        side.driveways.append((float(rng.uniform(side.start_m + 14, side.end_m - 12)), 3.0, 4.0))
