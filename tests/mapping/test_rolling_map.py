"""The rolling map: against analytic log-odds, its plain twin, and a map written out cell by cell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from map_fixtures import (
    CAR,
    FREE,
    GRID,
    HERE,
    SECOND,
    STAMP,
    TREE,
    WALL,
    center_m,
    occupancy_of_cells,
    random_occupancy,
    random_walk,
    turned,
)

from occ_core.errors import InvalidInput
from occ_core.geometry import apply, pose
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_GRID, VoxelGrid
from occ_core.mapping.lattice import resampled
from occ_core.mapping.rolling_map import RollingMap
from occ_core.mapping.settings import MapSettings, map_shape, settings_of
from occ_core.mapping.update import update_plain
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D

FOREVER = MapSettings(half_life_s=1e9, dynamic_half_life_s=1e9)


def log_odds_at(rolling_map, point_world_m):
    index, inside = rolling_map.grid.index_of(np.array([point_world_m]))
    assert inside[0]
    return float(rolling_map.state().log_odds[tuple(index[0])])


def label_at(occupancy, point_world_m):
    """Class name; None where unobserved."""
    index, inside = occupancy.grid.index_of(np.array([point_world_m]))
    cell = tuple(index[0])
    return OCC3D.names[occupancy.labels[cell]] if inside[0] and occupancy.observed[cell] else None


@pytest.mark.parametrize("times", [1, 2, 4, 5, 30])
def test_static_wall_adds_up_to_the_clamp(times):
    rolling_map = RollingMap(GRID, OCC3D, FOREVER)
    for _ in range(times):
        rolling_map.fuse(occupancy_of_cells([(7, 5, 2)]), HERE, STAMP)
    s = rolling_map.settings
    assert log_odds_at(rolling_map, center_m((7, 5, 2))) == pytest.approx(min(times * s.hit, s.highest), abs=1e-5)
    assert log_odds_at(rolling_map, center_m((3, 5, 2))) == pytest.approx(max(times * s.miss, s.lowest), abs=1e-5)
    seen = rolling_map.occupancy()
    assert label_at(seen, center_m((7, 5, 2))) == "manmade"
    cell = tuple(seen.grid.index_of(center_m((7, 5, 2))[None])[0][0])
    expected = 1 / (1 + math.exp(-min(times * s.hit, s.highest)))
    assert seen.confidence[cell] == pytest.approx(expected, abs=1e-6)


def test_contradiction_is_the_sum_and_near_zero_is_unobserved():
    rolling_map = RollingMap(GRID, OCC3D, FOREVER)
    for cells in ([(7, 5, 2)], [(7, 5, 2)], [], []):
        rolling_map.fuse(occupancy_of_cells(cells), HERE, STAMP)
    assert log_odds_at(rolling_map, center_m((7, 5, 2))) == pytest.approx(0.0, abs=1e-6)
    assert label_at(rolling_map.occupancy(), center_m((7, 5, 2))) is None
    rolling_map.fuse(occupancy_of_cells([]), HERE, STAMP)
    assert label_at(rolling_map.occupancy(), center_m((7, 5, 2))) == "free"


def test_unobserved_moments_change_nothing_but_time():
    rolling_map = RollingMap(GRID, OCC3D, MapSettings(half_life_s=10, dynamic_half_life_s=2))
    labels = occupancy_of_cells([(7, 5, 2)]).labels
    labels[2, 2, 2] = CAR
    rolling_map.fuse(Occupancy(GRID, OCC3D, labels, np.ones(GRID.shape, bool)), HERE, STAMP)
    for later in range(1, 5):
        rolling_map.fuse(occupancy_of_cells(observed=False), HERE, STAMP + later * SECOND)
    assert log_odds_at(rolling_map, center_m((7, 5, 2))) == pytest.approx(0.85 * 0.5 ** (4 / 10), rel=1e-5)
    assert log_odds_at(rolling_map, center_m((3, 3, 3))) == pytest.approx(-0.85 * 0.5 ** (4 / 10), rel=1e-5)
    assert log_odds_at(rolling_map, center_m((2, 2, 2))) == pytest.approx(3 * 0.85 * 0.5 ** (4 / 2), rel=1e-5)
    rolling_map.fuse(occupancy_of_cells(observed=False), HERE, STAMP + 1000 * SECOND)
    assert not rolling_map.occupancy().observed.any()


def test_moving_car_leaves_no_trail():
    """It stands until that is certain, then drives off, a cell a frame, into cells that are as certainly free."""
    rolling_map = RollingMap(GRID, OCC3D, FOREVER)
    for _ in range(20):
        rolling_map.fuse(occupancy_of_cells([(1, 5, 1)], CAR), HERE, STAMP)
    for x in range(2, 10):
        rolling_map.fuse(occupancy_of_cells([(x, 5, 1)], CAR), HERE, STAMP)
        for left in range(1, x - 1):  # two frames after it left a cell, that is free
            assert label_at(rolling_map.occupancy(), center_m((left, 5, 1))) == "free"
        assert label_at(rolling_map.occupancy(), center_m((x, 5, 1))) == "car"


def test_wall_outlasts_as_many_misses_as_its_certainty_is_worth():
    rolling_map = RollingMap(GRID, OCC3D, FOREVER)
    for _ in range(20):
        rolling_map.fuse(occupancy_of_cells([(1, 5, 1)]), HERE, STAMP)
    for misses in range(1, 10):
        rolling_map.fuse(occupancy_of_cells(), HERE, STAMP)
        expected = 3.5 - 0.85 * misses
        name = "manmade" if expected >= 0.2 else "free" if expected <= -0.2 else None
        assert label_at(rolling_map.occupancy(), center_m((1, 5, 1))) == name


def test_same_wall_from_two_poses_is_the_same_cells():
    wall_world_m = np.array([[4.2, y, 0.2] for y in np.arange(-0.6, 0.7, 0.4)])
    rolling_map = RollingMap(GRID, OCC3D, FOREVER)
    for world_from_ego in (turned(3.2, 0.0, 0.0), turned(4.0, 1.2, -math.pi / 2), turned(5.2, 0.0, math.pi)):
        index, inside = GRID.index_of(apply(np.linalg.inv(world_from_ego), wall_world_m))
        assert inside.all()
        rolling_map.fuse(occupancy_of_cells([tuple(cell) for cell in index]), world_from_ego, STAMP)
    seen = rolling_map.occupancy()
    index, _ = seen.grid.index_of(wall_world_m)
    assert {tuple(cell) for cell in np.argwhere(seen.occupied)} == {tuple(cell) for cell in index}
    assert log_odds_at(rolling_map, wall_world_m[0]) == pytest.approx(3 * 0.85, abs=1e-5)


def test_label_is_the_majority_and_a_change_wins_in_bounded_time():
    rolling_map = RollingMap(GRID, OCC3D, FOREVER)

    def see(class_id, times):
        for _ in range(times):
            rolling_map.fuse(occupancy_of_cells([(5, 5, 2)], class_id), HERE, STAMP)
        return label_at(rolling_map.occupancy(), center_m((5, 5, 2)))

    assert see(TREE, 2) == "vegetation"
    assert see(WALL, 2) == "vegetation"  # a tie keeps what is there
    assert see(WALL, 1) == "manmade"
    assert see(WALL, 1000) == "manmade"
    votes = rolling_map.settings.max_votes
    assert see(TREE, votes) == "manmade"  # both are full now
    assert see(TREE, 1) == "vegetation"


def test_fast_update_is_the_plain_one_to_the_last_bit():
    pytest.importorskip("numba", reason="the fast update needs numba")
    settings = MapSettings(half_life_s=5, dynamic_half_life_s=0.5, max_votes=3)
    fast, plain = (RollingMap(GRID, OCC3D, settings) for _ in range(2))
    assert fast._update is not update_plain
    plain._update = update_plain
    rng = np.random.default_rng(0)
    for world_from_ego, stamp_ns in random_walk(rng, 40):
        for _ in range(2):
            seen = random_occupancy(rng)
            fast.fuse(seen, world_from_ego, stamp_ns)
            plain.fuse(seen, world_from_ego, stamp_ns)
        for name, ours, theirs in zip(fast.state()._fields, fast.state(), plain.state(), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert fast.occupancy().occupied.sum() > 100


class WrittenOutMap:
    """The same rules in a dictionary of world cells: no ring, no tables, no arrays."""

    def __init__(self, grid, shape, settings):
        self.grid, self.shape, self.s, self.cells, self.stamp_ns = grid, shape, settings, {}, None

    def fuse(self, seen, world_from_ego, stamp_ns):
        s, v = self.s, self.grid.voxel_size_m
        passed_s = 0 if self.stamp_ns is None else (stamp_ns - self.stamp_ns) / 1e9
        self.stamp_ns = stamp_ns
        middle = world_from_ego[:3, 3] / v + (0, 0, (self.grid.origin_m[2] + self.grid.upper_m[2]) / 2 / v)
        self.first = [math.floor(c - n / 2 + 0.5) for c, n in zip(middle, self.shape, strict=True)]
        box = [range(first, first + n) for first, n in zip(self.first, self.shape, strict=True)]
        self.cells = {c: value for c, value in self.cells.items() if all(i in r for i, r in zip(c, box, strict=True))}
        ego_from_world = np.linalg.inv(world_from_ego)
        for cell in ((x, y, z) for x in box[0] for y in box[1] for z in box[2]):
            odds, label, votes = self.cells.get(cell, (0.0, FREE, {}))
            moving = label in OCC3D.dynamic_ids
            odds *= 0.5 ** (passed_s / (s.dynamic_half_life_s if moving else s.half_life_s))
            at = apply(ego_from_world, (np.array(cell) + 0.5) * v)
            index = tuple(math.floor(u) for u in (at - self.grid.origin_m) / v)
            inside = all(0 <= i < n for i, n in zip(index, self.grid.shape, strict=True))
            if inside and seen.observed[index]:
                class_id = int(seen.labels[index])
                if class_id == FREE:
                    odds = max(odds + s.miss * (s.dynamic_weight if moving else 1), s.lowest)
                    if odds < 0:
                        label, votes = FREE, {}
                else:
                    odds = min(odds + s.hit * (s.dynamic_weight if class_id in OCC3D.dynamic_ids else 1), s.highest)
                    votes = dict(votes)
                    if votes.get(class_id, 0) >= s.max_votes:
                        votes = {c: n - (c != class_id and n > 0) for c, n in votes.items()}
                    else:
                        votes[class_id] = votes.get(class_id, 0) + 1
                    if label == FREE or votes[class_id] > votes[label]:
                        label = class_id
            self.cells[cell] = odds, label, votes


def test_against_a_map_written_out_cell_by_cell():
    settings = MapSettings(size_m=(4.4, 4.4, 2.0), half_life_s=5, dynamic_half_life_s=0.5, max_votes=3)
    rolling_map = RollingMap(GRID, OCC3D, settings)
    written = WrittenOutMap(GRID, rolling_map.shape, settings)
    rng = np.random.default_rng(1)
    for world_from_ego, stamp_ns in random_walk(rng, 12):
        seen = random_occupancy(rng)
        rolling_map.fuse(seen, world_from_ego, stamp_ns)
        written.fuse(seen, world_from_ego, stamp_ns)
        state = rolling_map.state()
        assert state.first_cell == tuple(written.first)
        assert len(written.cells) == state.log_odds.size
        for cell, (odds, label, votes) in written.cells.items():
            at = tuple(c - f for c, f in zip(cell, state.first_cell, strict=True))
            assert state.log_odds[at] == pytest.approx(odds, abs=1e-5)
            assert state.label[at] == label
            assert {c: n for c, n in enumerate(state.votes[at]) if n} == {c: n for c, n in votes.items() if n}


def test_turned_grid_is_sampled_by_the_nearest_center():
    rng = np.random.default_rng(2)
    seen = random_occupancy(rng)
    world_from_ego = turned(7.3, -2.1, 0.7, 0.4, 0.15)
    world_grid = VoxelGrid((4.0, -5.6, -1.2), 0.4, (17, 18, 8))
    found = resampled(seen, world_from_ego, world_grid)
    centers_m = apply(world_from_ego, GRID.centers_m().reshape(-1, 3).astype(np.float64))
    hits = 0
    for cell in np.ndindex(world_grid.shape):
        center = center_m(cell, world_grid)
        away_m = apply(np.linalg.inv(world_from_ego), center)
        inside = all(o <= a < u for o, a, u in zip(GRID.origin_m, away_m, GRID.upper_m, strict=True))
        nearest = np.unravel_index(((centers_m - center) ** 2).sum(axis=1).argmin(), GRID.shape)
        assert found.observed[cell] == (inside and seen.observed[nearest])
        if found.observed[cell]:
            hits += 1
            assert found.labels[cell] == seen.labels[nearest]
    assert hits > 200


def test_map_follows_by_whole_cells_and_forgets_what_it_leaves():
    rolling_map = RollingMap(GRID, OCC3D, MapSettings(size_m=(6.0, 6.0, 2.0), half_life_s=1e9))
    held = sum(array.nbytes for array in rolling_map.state()[1:])
    rolling_map.fuse(occupancy_of_cells([(0, 5, 2), (9, 5, 2)]), HERE, STAMP)
    near, far = center_m((9, 5, 2)), center_m((0, 5, 2))
    rolling_map.fuse(occupancy_of_cells(observed=False), turned(1.9, 0.0, 0.0), STAMP)
    first = np.array(rolling_map.grid.origin_m) / 0.4
    np.testing.assert_allclose(first, np.round(first), atol=1e-9)
    assert label_at(rolling_map.occupancy(), near) == "manmade"
    assert not rolling_map.grid.index_of(far[None])[1][0]
    rolling_map.fuse(occupancy_of_cells(observed=False), HERE, STAMP)
    assert label_at(rolling_map.occupancy(), far) is None  # it had been left
    assert label_at(rolling_map.occupancy(), near) == "manmade"
    rolling_map.fuse(occupancy_of_cells(observed=False), turned(1e5, -1e5, 0.0), STAMP)
    assert not rolling_map.occupancy().observed.any()
    assert sum(array.nbytes for array in rolling_map.state()[1:]) == held


def test_time_set_back_starts_a_new_map_and_a_late_moment_does_not():
    rolling_map = RollingMap(GRID, OCC3D)
    rolling_map.fuse(occupancy_of_cells([(5, 5, 2)]), HERE, STAMP)
    rolling_map.fuse(occupancy_of_cells(observed=False), HERE, STAMP - SECOND // 2)
    assert label_at(rolling_map.occupancy(), center_m((5, 5, 2))) == "manmade"
    rolling_map.fuse(occupancy_of_cells(observed=False), HERE, STAMP - 100 * SECOND)
    assert not rolling_map.occupancy().observed.any()
    rolling_map.fuse(occupancy_of_cells([(5, 5, 2)]), HERE, STAMP - 100 * SECOND)
    rolling_map.reset()
    assert not rolling_map.occupancy().observed.any()


def test_what_cannot_be_fused_says_why():
    rolling_map = RollingMap(GRID, OCC3D)
    with pytest.raises(InvalidInput, match="the map is of occ3d in VoxelGrid"):
        rolling_map.fuse(occupancy_of_cells(grid=VoxelGrid(GRID.origin_m, 0.4, (9, 10, 4))), HERE, STAMP)
    with pytest.raises(InvalidInput, match="world_from_ego must be finite"):
        rolling_map.fuse(occupancy_of_cells(), np.full((4, 4), np.nan), STAMP)
    with pytest.raises(InvalidInput, match="limit 1e\\+07 m"):
        rolling_map.fuse(occupancy_of_cells(), pose((1e9, 0, 0)), STAMP)
    with pytest.raises(InvalidInput, match="limit 1024 MiB"):
        RollingMap(OCC3D_GRID, OCC3D, MapSettings(size_m=(1000, 1000, 100)))
    with pytest.raises(InvalidInput, match="map setting 'half_life_s': input should be greater than 0, got -1"):
        settings_of(half_life_s=-1)


@pytest.mark.parametrize("grid", [OCC3D_GRID, SEMANTIC_KITTI_GRID])
def test_default_size_holds_the_grid_at_any_heading(grid):
    shape = map_shape(grid, 20, MapSettings())
    reach_m = np.hypot(*(max(abs(a), abs(b)) for a, b in list(zip(grid.origin_m, grid.upper_m, strict=True))[:2]))
    assert min(shape[:2]) * grid.voxel_size_m >= 2 * reach_m
    assert shape[2] > grid.shape[2]
