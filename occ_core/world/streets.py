"""Paints the plan of a road into the ground raster: classes, materials, markings and heights."""

from __future__ import annotations

import numpy as np
from numba import njit

from occ_core.world.classes import DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN
from occ_core.world.ground import TILE, Ground
from occ_core.world.materials import ASPHALT, COBBLE, GRASS, KERB, PAINT_WHITE, PAINT_YELLOW, PAVING, SOIL
from occ_core.world.roads import KERB_RADIUS_M, LEFT, RIGHT, Junction, Road

CELL_M = 0.15
KERB_M = 0.14
REACH_M = 75.0  # how far the raster reaches sideways
CROSSWALK_M = (2.2, 5.4)  # from the corner's kerb line
LINE_HALF_M = 0.09
SLACK_M = 1.0  # rows are taken that much further off than needed, for rasters are rounded


class Painter:
    """Rasters of one city under construction.

    Attributes:
        station, offset: float32 (nx, ny) road coordinates of each cell.
        beyond: float32 (nx, ny), distance outside the kerb; negative on the carriageway.
        lot: bool (nx, ny), beyond the sidewalk.
    """

    def __init__(self, road: Road) -> None:
        self.road = road
        tile = TILE * CELL_M
        lower = np.floor((road.curve.xy_m.min(axis=0) - (0, REACH_M)) / tile) * tile
        upper = np.ceil((road.curve.xy_m.max(axis=0) + (0, REACH_M)) / tile) * tile
        nx, ny = np.rint((upper - lower) / CELL_M).astype(int) + 1
        self.origin_m = (float(lower[0]), float(lower[1]))
        self.station, self.offset = road.curve.project_raster(self.origin_m, CELL_M, (nx, ny))
        self.class_id = np.full((nx, ny), DRIVEABLE, np.uint8)
        self.material = np.full((nx, ny), road.surface, np.uint8)
        self.raised = np.zeros((nx, ny), np.float32)  # above the undulation
        self.far = np.abs(self.offset)
        self.beyond = np.zeros((nx, ny), np.float32)
        self.lot = np.zeros((nx, ny), bool)
        self._index = np.rint((self.station - road.curve.start_m) * 2).astype(np.int32)
        self._index += np.where(self.offset > 0, 0, len(road.curve.stations_m)).astype(np.int32)

    def side_table(self, value) -> np.ndarray:
        """Raster of a property of the block side that each cell belongs to: `value(side, stations) -> values`."""
        stations = self.road.curve.stations_m
        table = np.zeros((2, len(stations)), np.float32)
        for side in self.road.sides:
            middle = [j.station_m for j in self.road.junctions if side.sign in j.arms]
            # A side's territory ends in the middle of the cross streets.
            low = max([m for m in middle if m < (side.start_m + side.end_m) / 2], default=-np.inf)
            high = min([m for m in middle if m > (side.start_m + side.end_m) / 2], default=np.inf)
            here = (stations >= low) & (stations <= high)
            table[0 if side.sign == LEFT else 1, here] = value(side, stations[here])
        return table.ravel()[self._index]

    def along(self, junction: Junction) -> np.ndarray:
        """Raster of distances from a cross street's axis, which is straight, in the main road's direction there."""
        return self.along_near(junction, np.inf)[1]

    def along_near(self, junction: Junction, reach_m: float) -> tuple[slice, np.ndarray]:
        """The rows that come nearer to a cross street's axis than `reach_m`, and `along` in them."""
        x0, y0 = self.road.curve.point(junction.station_m, 0.0)
        heading = float(self.road.curve.heading_at(junction.station_m))
        nx, ny = self.station.shape
        x = (self.origin_m[0] + (np.arange(nx) + 0.5) * CELL_M - x0) * np.cos(heading)
        y = (self.origin_m[1] + (np.arange(ny) + 0.5) * CELL_M - y0) * np.sin(heading)
        rows = _span((x + y.min() < reach_m + SLACK_M) & (x + y.max() > -reach_m - SLACK_M))
        return rows, (x[rows, None] + y[None]).astype(np.float32)


def _span(wanted: np.ndarray) -> slice:
    """From the first to the last that is wanted, bool (N,)."""
    index = np.flatnonzero(wanted)
    return slice(index.min(initial=len(wanted)), index.max(initial=-1) + 1)


def paint_ground(road: Road) -> tuple[Ground, Painter]:
    """The ground of a plan, and the rasters that placing things needs."""
    painter = Painter(road)
    _kerb_distance(painter)
    _sidewalks_and_lots(painter)
    _lane_lines(painter)
    _median(painter)
    for junction in road.junctions:
        _crosswalks(painter, junction)
    _driveways(painter)
    height = _undulation(painter) + painter.raised
    ground = Ground(painter.origin_m, CELL_M, height.astype(np.float32), painter.class_id, painter.material)
    return ground, painter


def _bay_depth(side, stations):
    """Parking bays begin and end away from the corners."""
    ramp = np.minimum(stations - side.start_m - 11, side.end_m - 11 - stations)
    return side.bay_m * np.clip(ramp, 0, 1)


def _kerb_distance(p: Painter) -> None:
    road = p.road
    edge = np.where(p.offset > 0, np.float32(road.edge_m(LEFT)), np.float32(road.edge_m(RIGHT)))
    p.beyond = p.far - edge - p.side_table(_bay_depth)
    for junction in road.junctions:
        reach = KERB_RADIUS_M + 12
        rows, axis_distance = p.along_near(junction, junction.half_width_m + reach)
        beyond, offset = p.beyond[rows], p.offset[rows]
        across = np.abs(axis_distance) - np.float32(junction.half_width_m)
        cells = np.nonzero(across < reach)
        across = across[cells]
        along = beyond[cells]
        # Union of two strips with a rounded corner, as a distance.
        corner = np.hypot(np.maximum(KERB_RADIUS_M - along, 0), np.maximum(KERB_RADIUS_M - across, 0))
        union = np.maximum(KERB_RADIUS_M, np.minimum(along, across)) - corner
        arm = np.isin(np.where(offset[cells] > 0, LEFT, RIGHT), junction.arms)
        beyond[cells] = np.where(arm, union, along)


LOT_GROUND = {  # class and material of a lot's ground
    "row": (SIDEWALK, PAVING),
    "plaza": (SIDEWALK, COBBLE),
    "parking": (DRIVEABLE, ASPHALT),
    "industrial": (DRIVEABLE, ASPHALT),
    "site": (TERRAIN, SOIL),
    "houses": (TERRAIN, GRASS),
    "wood": (TERRAIN, SOIL),
    "park": (TERRAIN, GRASS),
    "pocket_park": (TERRAIN, GRASS),
}
GARDEN_M = 13.0
FORECOURT_M = 3.5  # paved part of a lot with a row of buildings; behind it are yards that cars use


def _sidewalks_and_lots(p: Painter) -> None:
    verge = p.side_table(lambda side, s: side.verge_m)
    walk_end = verge + p.side_table(lambda side, s: side.walk_m)
    off_road = p.beyond >= 0
    p.lot = p.beyond >= walk_end
    p.class_id[off_road] = SIDEWALK
    p.material[off_road] = p.side_table(lambda side, s: side.walk_material)[off_road].astype(np.uint8)
    # Grass strips stop before corners, where people cross.
    free = p.side_table(lambda side, s: np.minimum(s - side.start_m, side.end_m - s) > 9)
    strip = (p.beyond >= 0.2) & (p.beyond < verge) & (free > 0)
    p.class_id[strip] = TERRAIN
    p.material[strip] = p.side_table(lambda side, s: side.verge_material)[strip].astype(np.uint8)
    p.material[off_road & (p.beyond < 0.2)] = KERB
    lot_class = p.side_table(lambda side, s: LOT_GROUND[side.kind][0])
    lot_material = p.side_table(lambda side, s: LOT_GROUND[side.kind][1])
    p.class_id[p.lot] = lot_class[p.lot].astype(np.uint8)
    p.material[p.lot] = lot_material[p.lot].astype(np.uint8)
    row = p.side_table(lambda side, s: side.kind == "row") > 0
    alley = p.side_table(lambda side, s: side.kind in ("houses", "site")) > 0  # garages, paved yards
    yard = p.lot & ((row & (p.beyond > walk_end + FORECOURT_M)) | (alley & (p.beyond > walk_end + GARDEN_M)))
    p.class_id[yard] = DRIVEABLE
    p.material[yard] = ASPHALT
    ramp = np.clip(p.beyond / 0.12 + 0.5, 0, 1)
    p.raised += KERB_M * ramp
    hilly = p.side_table(lambda side, s: {"park": 0.9, "wood": 1.2, "site": 0.5, "houses": 0.25}.get(side.kind, 0.0))
    bumps = np.clip((p.beyond - walk_end - 1) / 6, 0, 1) * hilly
    p.raised += bumps * (0.5 + 0.3 * np.sin(p.station / 4.1) * np.sin(p.offset / 5.3) + 0.2 * np.sin(p.station / 2.3))


def _lane_lines(p: Painter) -> None:
    road = p.road
    if road.surface == COBBLE:
        return
    cells = np.nonzero(p.beyond < -0.1)
    quiet = np.ones(len(cells[0]), dtype=bool)
    for junction in road.junctions:
        quiet &= np.abs(p.along(junction)[cells]) > junction.half_width_m + CROSSWALK_M[1] + 1
    cells = cells[0][quiet], cells[1][quiet]
    station, offset, material = p.station[cells], p.offset[cells], p.material[cells]
    dashed = np.mod(station, 9.0) < 3.5
    for sign in (LEFT, RIGHT):
        for lane in range(1, road.lanes[sign]):
            line = np.abs(offset - sign * (road.median_m / 2 + lane * road.lane_m)) < LINE_HALF_M
            material[line & dashed] = PAINT_WHITE
        outer = sign * (road.median_m / 2 + road.lanes[sign] * road.lane_m)
        if road.shoulder_m > 0.3:
            material[np.abs(offset - outer) < LINE_HALF_M] = PAINT_WHITE
        bay = (offset * sign > road.edge_m(sign) + 0.1) & (np.mod(station, 5.8) < 2 * LINE_HALF_M)
        material[bay] = PAINT_WHITE
    if not road.median_m:
        color = PAINT_YELLOW if sum(road.lanes.values()) > 2 or road.district == "works" else PAINT_WHITE
        double = sum(road.lanes.values()) > 2
        center = np.abs(np.abs(offset) - (0.15 if double else 0.0)) < (0.08 if double else LINE_HALF_M)
        material[center & (dashed | double)] = color
    p.material[cells] = material


def _median(p: Painter) -> None:
    road = p.road
    if not road.median_m:
        return
    inside = road.median_m / 2 - 0.25 - p.far
    for junction in road.junctions:
        along = np.abs(p.along(junction))
        inside = np.minimum(inside, along - (junction.half_width_m + CROSSWALK_M[1] + 0.8))
        # A refuge between crosswalk and junction, cut off from the median.
        nose = 0.9 - np.abs(along - junction.half_width_m - 0.9)
        inside = np.maximum(inside, np.minimum(nose, road.median_m / 2 - 0.35 - p.far))
    raised = inside > 0
    p.class_id[raised] = OTHER_FLAT
    p.material[raised] = np.where(inside[raised] < 0.2, KERB, PAVING)
    if road.median_planted:
        planted = inside > 0.35
        p.class_id[planted] = TERRAIN
        p.material[planted] = GRASS
    p.raised += np.where(p.far < road.median_m / 2 + 1, KERB_M * np.clip(inside / 0.12 + 0.5, 0, 1), 0)


def _crosswalks(p: Painter, junction: Junction) -> None:
    road = p.road
    near, wide = CROSSWALK_M
    reach = junction.half_width_m + wide + 8
    rows, along = p.along_near(junction, reach)
    cells = np.nonzero(np.abs(along) < reach)
    along, offset, beyond = along[cells], p.offset[rows][cells], p.beyond[rows][cells]
    material, class_id, raised = p.material[rows][cells], p.class_id[rows][cells], p.raised[rows][cells]
    gap = np.abs(along) - junction.half_width_m
    main = (gap > near) & (gap < wide)
    edge = np.where(offset > 0, road.edge_m(LEFT), road.edge_m(RIGHT))
    out = np.abs(offset) - edge
    arm = np.isin(np.where(offset > 0, LEFT, RIGHT), junction.arms)
    cross = arm & (out > near) & (out < wide) & (gap < 0.8)
    flat = (beyond < 0) & (class_id == DRIVEABLE)
    material[flat & main & (np.mod(offset, 1.1) < 0.55)] = PAINT_WHITE
    material[flat & cross & (np.mod(along, 1.1) < 0.55)] = PAINT_WHITE
    stop = (gap > wide + 0.6) & (gap < wide + 1.0) & (offset * along > 0) & (np.abs(offset) > road.median_m / 2)
    material[flat & stop & (out < 0)] = PAINT_WHITE
    stop = arm & (out > wide + 0.6) & (out < wide + 1.0) & (offset * along < 0) & (gap < 0)
    material[flat & stop] = PAINT_WHITE
    center = arm & (out > wide + 1) & (np.abs(along) < LINE_HALF_M) & (np.mod(out, 6) < 3)
    material[flat & center] = PAINT_WHITE
    if junction.half_width_m > 4.3:  # a traffic island divides the wide cross street
        island = arm & (((out - wide - 3) / 2.4) ** 2 + (along / 0.75) ** 2 < 1)
        class_id[island], material[island] = OTHER_FLAT, KERB
        raised[island] = KERB_M
    # Kerbs are lowered where people cross.
    ramp = (main | (arm & (out > near) & (out < wide))) & (beyond > -0.2)
    raised[ramp] *= np.clip(beyond[ramp] / 1.4, 0.15, 1)
    p.material[rows][cells], p.class_id[rows][cells], p.raised[rows][cells] = material, class_id, raised


def _driveways(p: Painter) -> None:
    first, last = p.station.min(axis=1), p.station.max(axis=1)
    for side in p.road.sides:
        for station, half_width, depth in side.driveways:
            reach = half_width + SLACK_M
            rows = _span((first < station + reach) & (last > station - reach))
            beyond, offset = p.beyond[rows], p.offset[rows]
            strip = np.abs(p.station[rows] - np.float32(station)) < half_width
            strip &= (offset * side.sign > 0) & (beyond >= 0) & (p.far[rows] < p.road.walk_edge_m(side) + depth)
            p.class_id[rows][strip] = DRIVEABLE
            p.material[rows][strip] = ASPHALT
            p.raised[rows][strip] *= np.clip(beyond[strip] / 1.2, 0.15, 1)


def _undulation(p: Painter) -> np.ndarray:
    """The hills under everything: a sum of plane waves, by the addition theorem from two outer products each."""
    nx, ny = p.station.shape
    x = p.origin_m[0] + (np.arange(nx) + 0.5) * CELL_M
    y = p.origin_m[1] + (np.arange(ny) + 0.5) * CELL_M
    height = np.zeros((nx, ny))
    for kx, ky, phase, amplitude in p.road.relief:
        _add_waves(height, amplitude, np.sin(kx * x + phase), np.cos(ky * y), np.cos(kx * x + phase), np.sin(ky * y))
    return height


@njit(cache=True)
def _add_waves(height, amplitude, sin_x, cos_y, cos_x, sin_y):
    for i in range(len(sin_x)):
        for j in range(len(cos_y)):
            height[i, j] += amplitude * (sin_x[i] * cos_y[j])
            height[i, j] += amplitude * (cos_x[i] * sin_y[j])
