"""The scene builder: the state that all steps of furnishing a city share."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from occ_core.world.ground import Ground
from occ_core.world.roads import LEFT, Road, Side
from occ_core.world.solids import Builder, yaw_pose
from occ_core.world.streets import Painter

CLAIM_M = 0.5  # cell of the map of taken places


class SceneBuilder:
    """The ground, the plan, the solids collected so far and a map of occupied places."""

    def __init__(self, road: Road, ground: Ground, painter: Painter) -> None:
        self.road, self.ground, self.painter = road, ground, painter
        self.builder = Builder()
        self.lamps_m: list[np.ndarray] = []
        span = np.array(ground.height_m.shape) * ground.cell_m
        self.taken = np.zeros(np.ceil(span / CLAIM_M).astype(int) + 1, dtype=bool)

    def xyz(self, xy: np.ndarray, lift_m: float = 0.0) -> np.ndarray:
        """World point at a height over the ground."""
        return np.array([*xy, self.ground.height_at(xy)[0] + lift_m])

    def frame(self, station: float, offset: float, yaw: float = 0.0) -> np.ndarray:
        """Upright world pose on the ground; x along the road, turned by `yaw`."""
        heading = float(self.road.curve.heading_at(station))
        return yaw_pose(self.xyz(self.road.curve.point(station, offset)), heading + yaw)

    def facing(self, sign: int, station: float, distance: float) -> np.ndarray:
        """Upright world pose at a distance from the centreline; y points away from the road."""
        return self.frame(station, sign * distance, 0.0 if sign == LEFT else np.pi)

    def beyond(self, xy: np.ndarray) -> float:
        """Distance outside the kerb; negative on the carriageway."""
        return _value_at(self.painter.beyond, self.ground.origin_m, self.ground.cell_m, float(xy[0]), float(xy[1]))

    def near_drive(self, station: float) -> bool:
        """Whether a station can be in the grid of some keyframe."""
        return -50 < station < self.road.drive_m + 50

    def claim(self, xy: np.ndarray, yaw: float, length: float, width: float, test: bool = True) -> bool:
        """Take a rectangle; False, and nothing taken, if part of it is taken already."""
        size = float(length), float(width)
        return _claim(
            self.taken, self.ground.origin_m, (float(xy[0]), float(xy[1])), np.cos(yaw), np.sin(yaw), size, test
        )

    def claim_at(self, frame: np.ndarray, length: float, width: float) -> bool:
        """Take a rectangle around a pose's origin."""
        return self.claim(frame[:2, 3], float(np.arctan2(frame[1, 0], frame[0, 0])), length, width)


@njit(cache=True)
def _value_at(raster, origin, cell, x, y):
    """Value of the cell that a point is in, as `Ground.cell_of` finds it; thousands of points ask, one by one."""
    i = min(max(int(math.floor((x - origin[0]) / cell)), 0), raster.shape[0] - 1)
    j = min(max(int(math.floor((y - origin[1]) / cell)), 0), raster.shape[1] - 1)
    return float(raster[i, j])


@njit(cache=True)
def _claim(taken, origin, xy, c, s, size, test):
    (x0, y0), (x, y), (length, width) = origin, xy, size
    n, m = max(int(length / 0.4) + 1, 2), max(int(width / 0.4) + 1, 2)
    for mark in (False, True):  # first look, then take
        for i in range(n):
            du = i * (length / (n - 1)) - length / 2
            for j in range(m):
                dv = j * (width / (m - 1)) - width / 2
                a = int(math.floor((x + c * du - s * dv - x0) / CLAIM_M))
                b = int(math.floor((y + s * du + c * dv - y0) / CLAIM_M))
                if mark:
                    taken[a, b] = True
                elif not (0 <= a < taken.shape[0] and 0 <= b < taken.shape[1]) or (test and taken[a, b]):
                    return False
    return True


def lot_stations(side: Side, margin_m: float) -> tuple[float, float]:
    """Stations between which a side's lot is free of the corners' sidewalks."""
    inset = side.walk_m + side.verge_m + margin_m
    return side.start_m + inset, side.end_m - inset


def somewhere(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number between two bounds; their middle if a short block made the lower one the larger."""
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def any_color(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB: greys, earth tones and loud colours alike."""
    if rng.random() < 0.4:
        return rng.uniform(0.02, 0.8) * rng.uniform(0.93, 1.0, 3)
    low = rng.uniform(0.01, 0.25)
    color = rng.uniform(low, low + rng.uniform(0.1, 0.6), 3)
    return np.clip(color, 0.01, 0.9)


def seed_of(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 32))
