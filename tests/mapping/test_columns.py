"""What layers of a costmap get: against plain loops, and in a costmap that marks and clears as Nav2's does."""

from __future__ import annotations

import numpy as np
import pytest
from map_fixtures import GRID, random_occupancy

from occ_core.errors import InvalidInput
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.mapping.columns import (
    column_image,
    columns_of,
    free_ends,
    obstacle_points,
    points_a_side,
)
from occ_core.mapping.costs import class_costs, column_costs
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D, UNLABELED

COSTS = class_costs(OCC3D, ["terrain:30", "vegetation:60"])
BAND_M = (-0.3, 0.8)  # levels 1, 2, 3 of GRID; level 0 lies beneath
FREE, ROAD, CAR = OCC3D.free_id, OCC3D.id_of("driveable_surface"), OCC3D.id_of("car")


def decides(seen: Occupancy, x: int, y: int) -> int:
    """The level that decides of a column, as the docs word it, one cell after the other."""
    in_band = [z for z in (1, 2, 3) if seen.observed[x, y, z]]
    if not in_band:
        return -1
    if all(seen.labels[x, y, z] == FREE for z in in_band) and seen.observed[x, y, 0] and seen.labels[x, y, 0] != FREE:
        return 0
    key = {
        z: (COSTS[seen.labels[x, y, z]], seen.labels[x, y, z] != FREE, seen.confidence[x, y, z], -z) for z in in_band
    }
    return max(in_band, key=key.get)


def test_columns_against_plain_loops():
    rng = np.random.default_rng(5)
    levels_found, compared = set(), 0
    for _ in range(5):
        seen = random_occupancy(rng)
        observed = seen.observed & (rng.random(GRID.shape) < 0.6)
        labels = np.where(rng.random(GRID.shape) < 0.4, FREE, seen.labels).astype(np.uint8)
        seen = Occupancy(GRID, OCC3D, labels, observed, rng.random(GRID.shape).astype(np.float32))
        columns = columns_of(seen, BAND_M, COSTS)
        np.testing.assert_array_equal(columns.cost, column_costs(seen, BAND_M, COSTS))
        for x, y in np.ndindex(columns.level.shape):
            z = decides(seen, x, y)
            assert columns.level[x, y] == z
            expected = (UNLABELED, 0) if z < 0 else (seen.labels[x, y, z], seen.confidence[x, y, z])
            assert (columns.label[x, y], columns.confidence[x, y]) == expected
            levels_found.add(z)
            compared += 1
    assert levels_found == {-1, 0, 1, 2, 3} and compared > 400


def test_image_is_upright_and_its_points_lie_in_their_columns():
    rng = np.random.default_rng(6)
    seen = random_occupancy(rng)
    seen.observed[3, 4] = False
    columns = columns_of(seen, BAND_M, COSTS)
    image = column_image(columns, 2)
    assert image.shape == (2 * GRID.shape[0], 2 * GRID.shape[1])
    assert np.nanargmax(image["x"][:, 0]) < 2 and np.nanargmax(image["y"][0]) < 2  # forward is up, left is left
    seen_pixels = image["label"] != UNLABELED
    assert (np.isfinite(image["z"]) == seen_pixels).all() and not seen_pixels.all()
    xyz = np.stack([image[name][seen_pixels] for name in "xyz"], axis=-1)
    index, inside = GRID.index_of(xyz)
    assert inside.all()
    x, y, z = index.T
    np.testing.assert_array_equal(columns.level[x, y], z)
    np.testing.assert_array_equal(seen.labels[x, y, z], image["label"][seen_pixels])
    _, counts = np.unique(index[:, :2], axis=0, return_counts=True)
    assert set(counts) == {4} and len(counts) == (columns.level >= 0).sum()


@pytest.mark.parametrize(
    ("costmap_m", "points"), [(0, 1), (0.4, 1), (1.0, 1), (0.2, 2), (0.15, 3), (0.1, 4), (0.05, 8)]
)
def test_every_cell_of_the_costmap_gets_a_point(costmap_m, points):
    assert points_a_side(0.4, costmap_m) == points
    labels = np.full(GRID.shape, CAR, dtype=np.uint8)
    everywhere = Occupancy(GRID, OCC3D, labels, np.ones(GRID.shape, bool))
    found = obstacle_points(columns_of(everywhere, BAND_M, COSTS), points)
    if costmap_m:
        cells = {(int(x // costmap_m), int(y // costmap_m)) for x, y in zip(found["x"], found["y"], strict=True)}
        low = np.ceil(np.array(GRID.origin_m[:2]) / costmap_m - 1e-6) * costmap_m
        high = np.floor(np.array(GRID.upper_m[:2]) / costmap_m + 1e-6) * costmap_m
        if costmap_m <= 0.4:
            assert len(cells) >= np.prod(np.round((high - low) / costmap_m))


@pytest.mark.parametrize("costmap_m", [0.049, -0.1, float("nan")])
def test_a_costmap_too_fine_is_refused(costmap_m):
    with pytest.raises(InvalidInput, match=r"at least 0\.05 m, got"):
        points_a_side(0.4, costmap_m)


# --- a costmap that marks and clears as Nav2's ObstacleLayer does --------------------------------------------------

UNKNOWN, CLEAR, LETHAL = 255, 0, 254


class Layer:
    """Cells of `resolution_m` around a robot that stands at the middle; its rules are those of an ObstacleLayer.

    A point of the clearing source frees all cells of the straight line from the sensor's origin to it, but for those
    nearer than the least range; then each point of the marking source makes its cell lethal. All others stay.
    """

    def __init__(self, side_m: float, resolution_m: float, min_range_m: float) -> None:
        self.resolution_m, self.half_m, self.min_range_m = resolution_m, side_m / 2, min_range_m
        self.cells = np.full((round(side_m / resolution_m),) * 2, UNKNOWN, dtype=np.uint8)

    def update(self, obstacles: np.ndarray, ends: np.ndarray) -> None:
        for x, y in zip(ends["x"], ends["y"], strict=True):
            for cell in self._line(float(x), float(y)):
                self.cells[cell] = CLEAR
        for x, y in zip(obstacles["x"], obstacles["y"], strict=True):
            self.cells[self.cell(x, y)] = LETHAL

    def cell(self, x: float, y: float) -> tuple[int, int]:
        return int((x + self.half_m) // self.resolution_m), int((y + self.half_m) // self.resolution_m)

    def _line(self, x: float, y: float):
        (x0, y0), (x1, y1) = self.cell(0.0, 0.0), self.cell(x, y)
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for step in range(steps + 1):
            cell = round(x0 + (x1 - x0) * step / max(steps, 1)), round(y0 + (y1 - y0) * step / max(steps, 1))
            if np.hypot(cell[0] - x0, cell[1] - y0) * self.resolution_m >= self.min_range_m:
                yield cell


STREET = VoxelGrid((-10.0, -10.0, -1.0), 0.4, (50, 50, 8))
ORIGIN_BLIND_M = 2.0


def street(car_x: int | None) -> Occupancy:
    """Road all around, a car ahead, a wall at the left; behind both nothing is seen, nor where the robot stands."""
    labels = np.full(STREET.shape, FREE, dtype=np.uint8)
    labels[:, :, 2] = ROAD
    labels[:, 40, 3:8] = OCC3D.id_of("manmade")
    observed = np.ones(STREET.shape, dtype=bool)
    observed[:, 41:] = False
    middle = np.linalg.norm(np.stack(np.meshgrid(np.arange(50) - 24.5, np.arange(50) - 24.5)), axis=0) * 0.4
    observed[middle < ORIGIN_BLIND_M - 0.6] = False
    if car_x is not None:
        labels[car_x, 22:28, 3:6] = CAR
        observed[car_x + 1 :, 20:30] = False
    return Occupancy(STREET, OCC3D, labels, observed)


@pytest.mark.parametrize("resolution_m", [0.4, 0.2, 0.1])
def test_obstacles_are_marked_whole_cleared_when_gone_and_the_unseen_stays_unknown(resolution_m):
    layer, a_side = Layer(24.0, resolution_m, ORIGIN_BLIND_M), points_a_side(0.4, resolution_m)

    def look(seen: Occupancy) -> None:
        columns = columns_of(seen, (0.3, 2.0), COSTS)
        layer.update(obstacle_points(columns, a_side), free_ends(columns, a_side, ORIGIN_BLIND_M, 1.0))

    def at(x: int, y: int) -> set[int]:
        """Costs of all cells of the layer whose middles lie in the column."""
        low = (np.array([x, y]) * 0.4 - 10 + layer.half_m) / resolution_m
        first, last = np.ceil(low - 0.5 + 1e-6).astype(int), np.ceil(low + 0.4 / resolution_m - 0.5 - 1e-6).astype(int)
        return set(layer.cells[first[0] : last[0], first[1] : last[1]].ravel().tolist())

    look(street(car_x=40))
    assert at(40, 25) == {LETHAL} and at(10, 40) == {LETHAL}  # no hole in car or wall
    assert at(35, 25) == {CLEAR} and at(10, 25) == {CLEAR}
    assert at(45, 25) == {UNKNOWN} and at(25, 45) == {UNKNOWN}  # behind the car, behind the wall
    look(street(car_x=35))
    assert at(35, 25) == {LETHAL}
    assert at(40, 25) == {LETHAL}  # hidden now: what was seen there is remembered
    look(street(car_x=None))
    assert at(35, 25) == {CLEAR} and at(40, 25) == {CLEAR} and at(45, 25) == {CLEAR}
    assert at(10, 40) == {LETHAL} and at(25, 45) == {UNKNOWN}


def test_lines_end_before_what_is_not_passable_against_a_walk_in_small_steps():
    rng = np.random.default_rng(8)
    seen = random_occupancy(rng)
    wide = VoxelGrid((-8.0, -8.0, -0.8), 0.4, (40, 40, 4))
    labels = np.where(rng.random(wide.shape) < 0.01, CAR, FREE).astype(np.uint8)
    observed = np.broadcast_to(rng.random(wide.shape[:2])[..., None] > 0.02, wide.shape).copy()
    columns = columns_of(Occupancy(wide, seen.taxonomy, labels, observed), BAND_M, COSTS)
    ends = free_ends(columns, 1, 1.0, 0.7)
    assert len(ends) > 100 and (ends["z"] == np.float32(0.7)).all()
    for x, y, _ in ends:
        far_m = float(np.hypot(x, y))
        walked = np.arange(1.0, far_m + 1e-9, 0.005)
        points = np.stack([walked * x / far_m, walked * y / far_m, np.zeros_like(walked)], axis=-1)
        index, inside = wide.index_of(points)
        assert inside.all()
        blocked = ~columns.passable[index[:, 0], index[:, 1]]
        assert blocked.mean() * (far_m - 1.0) < 0.15  # no more than a corner of a cell
        beyond = np.arange(far_m, far_m + 0.107, 0.002)  # the line ends because of what comes next
        index, inside = wide.index_of(np.array([[x, y, 0.0]]) / far_m * beyond[:, None])
        assert not (inside & columns.passable[index[:, 0] * inside, index[:, 1] * inside]).all()


def test_nothing_free_gives_no_line_and_a_beginning_outside_the_grid_none():
    nothing = Occupancy(STREET, OCC3D, np.full(STREET.shape, FREE, np.uint8), np.zeros(STREET.shape, bool))
    assert len(free_ends(columns_of(nothing, (0.3, 2.0), COSTS), 1, 1.0, 0.0)) == 0
    assert len(free_ends(columns_of(street(None), (0.3, 2.0), COSTS), 1, 100.0, 0.0)) == 0
    assert len(obstacle_points(columns_of(nothing, (0.3, 2.0), COSTS), 2)) == 0


def test_lines_are_dense_enough_at_the_far_corner():
    everywhere = Occupancy(
        OCC3D_GRID, OCC3D, np.full(OCC3D_GRID.shape, FREE, np.uint8), np.ones(OCC3D_GRID.shape, bool)
    )
    for a_side in (1, 2):
        ends = free_ends(columns_of(everywhere, (0.3, 2.0), COSTS), a_side, 3.0, 1.0)
        angles = np.sort(np.arctan2(ends["y"].astype(float), ends["x"].astype(float)))
        assert np.diff(angles).max() * 40 * np.sqrt(2) <= 0.2 / a_side + 1e-3
