"""Fusion against plain twins, and the rules about moving things one by one."""

from __future__ import annotations

import numpy as np
import pytest
from label_scenes import CAR, ROAD, SMALL_GRID, WALL

from occ_core.geometry import apply, inverse, pose
from occ_core.labels.fuse import Fuser, add_resampled, decide
from occ_core.labels.lift import FrameEvidence
from occ_core.labels.recipes import Recipe
from occ_core.taxonomy import OCC3D

FREE, PERSON = OCC3D.free_id, OCC3D.id_of("pedestrian")
MOVING = np.array([n in OCC3D.dynamic_ids for n in range(18)])
CELL = (25, 20, 5)
CENTER = np.array(SMALL_GRID.origin_m) + (np.array(CELL) + 0.5) * 0.4


def evidence(points=(), classes=(), counts=(), passes=0, at=None, number=0) -> FrameEvidence:
    """Points of the ego frame; `passes` in every cell."""
    return FrameEvidence(
        f"token{number}", number, np.eye(4) if at is None else at,
        np.array(points, dtype=np.float32).reshape(-1, 3), np.array(classes, dtype=np.uint8),
        np.array(counts, dtype=np.uint16), np.full(SMALL_GRID.shape, passes, dtype=np.uint16),
    )  # fmt: skip


def one(own: FrameEvidence, others=(), **recipe):
    """label, observed, votes of CELL."""
    occupancy, votes = Fuser(Recipe(**recipe), SMALL_GRID, OCC3D).fuse(own, list(others))
    return int(occupancy.labels[CELL]), bool(occupancy.observed[CELL]), int(votes[CELL])


def decide_plainly(votes, own, passes, own_passes, recipe, priority):
    """Twin: the three rules of `decide`, cell by cell, in plain Python."""
    out = []
    for v, o, p, q in zip(votes.astype(int), own.astype(int), passes.astype(int), own_passes.astype(int), strict=True):
        used = np.ones(18, bool) if recipe.moving == "checked" else ~MOVING
        mine, still, window, total = o[MOVING].sum(), o[~MOVING].sum(), v[used].sum(), v.sum()
        ballot = None
        if mine > 0 and mine >= recipe.min_points and mine >= still and mine >= recipe.min_hit_share * (mine + q):
            ballot = np.where(MOVING, o, 0)
        elif window > 0 and window >= recipe.min_points and window >= recipe.min_hit_share * (window + p):
            ballot = np.where(used, v, 0)
        if ballot is not None:
            first = np.where(priority & (ballot >= recipe.priority_share * ballot.sum()), ballot, 0)
            winner = int(np.argmax(first if first.any() else ballot))
            out.append((winner, True, int(ballot[winner])))
        else:
            out.append((FREE, bool(p > 0 and total <= recipe.free_hit_share * (total + p)), 0))
    return out


@pytest.mark.parametrize("moving", ["own", "checked"])
def test_decisions_equal_plain_ones(moving):
    rng = np.random.default_rng(5)
    n = 3000
    own = rng.integers(0, 6, (n, 18)) * (rng.random((n, 18)) < 0.12)
    votes = own + rng.integers(0, 9, (n, 18)) * (rng.random((n, 18)) < 0.1)
    own_passes = rng.integers(0, 20, n) * (rng.random(n) < 0.5)
    passes = own_passes + rng.integers(0, 60, n) * (rng.random(n) < 0.5)
    priority = np.isin(np.arange(18), [PERSON, 8])
    recipe = Recipe(min_points=3, min_hit_share=0.3, free_hit_share=0.1, priority_share=0.3, moving=moving)
    label, observed = np.full(n, FREE, np.uint8), np.zeros(n, bool)
    confidence, points = np.zeros(n, np.float32), np.zeros(n, np.uint16)
    decide(votes.astype(np.uint32), own.astype(np.uint32), passes.astype(np.uint32), own_passes.astype(np.uint16),
           MOVING, priority, moving == "checked", 3, 0.3, 0.1, 0.3, label, observed, confidence, points)  # fmt: skip
    expected = decide_plainly(votes, own, passes, own_passes, recipe, priority)
    assert list(zip(label.tolist(), observed.tolist(), points.tolist(), strict=True)) == expected
    kinds = {(label[i] != FREE, bool(observed[i])) for i in range(n)}
    assert kinds == {(True, True), (False, True), (False, False)}  # occupied, free, unknown: all took part
    assert ((confidence > 0) == observed).all() and confidence.max() <= 1


def test_resampling_equals_a_look_up_of_every_centre():
    rng = np.random.default_rng(1)
    theirs = rng.integers(0, 1000, SMALL_GRID.shape).astype(np.uint16)
    for yaw, place in ((0.3, (2.3, -1.1, 0.17)), (-2.0, (0.4, 9.0, -0.3)), (0.0, (400.0, 0, 0))):
        that_from_own = pose(place, (np.cos(yaw / 2), 0.01, -0.02, np.sin(yaw / 2)))
        got = np.zeros(SMALL_GRID.shape, dtype=np.uint32)
        add_resampled(got, theirs, that_from_own, SMALL_GRID)
        steps = [np.arange(n) for n in SMALL_GRID.shape]
        centers = np.array(SMALL_GRID.origin_m) + (np.stack(np.meshgrid(*steps, indexing="ij"), -1) + 0.5) * 0.4
        index, inside = SMALL_GRID.index_of(apply(that_from_own, centers).reshape(-1, 3))
        expected = np.where(inside, theirs[tuple(index.T)], 0).reshape(SMALL_GRID.shape)
        np.testing.assert_array_equal(got, expected)


def test_votes_of_turned_frames_equal_numpy_add_at():
    rng = np.random.default_rng(2)
    own = evidence(rng.uniform(-9, 9, (500, 3)), rng.choice([ROAD, WALL], 500), rng.integers(1, 9, 500))
    other = evidence(rng.uniform(-9, 9, (900, 3)), rng.choice([ROAD, WALL, CAR], 900), rng.integers(1, 9, 900),
                 at=pose((1.0, 2.0, 0.1), (0.9, 0, 0.1, 0.2)), number=1)  # fmt: skip
    fuser = Fuser(Recipe(), SMALL_GRID, OCC3D)
    occupancy, votes = fuser.fuse(own, [other])
    expected = np.zeros((*SMALL_GRID.shape, 18), dtype=np.int64)
    for part in (own, other):
        points = apply(inverse(own.world_from_ego) @ part.world_from_ego, part.points_ego_m.astype(float))
        index, inside = SMALL_GRID.index_of(points)
        inside &= (part is own) | (part.class_id != CAR)  # a moving class of another frame
        np.add.at(expected, (*index[inside].T, part.class_id[inside]), part.count[inside])
    occupied = expected.any(axis=-1)
    np.testing.assert_array_equal(occupancy.labels, np.where(occupied, expected.argmax(axis=-1), FREE))
    np.testing.assert_array_equal(votes, expected.max(axis=-1))


def test_three_states():
    assert one(evidence([CENTER], [WALL], [5])) == (WALL, True, 5)
    assert one(evidence(passes=3)) == (FREE, True, 0)
    assert one(evidence()) == (FREE, False, 0)
    # Points that passes outvote, but not by enough to call the cell free: nobody knows.
    assert one(evidence([CENTER], [WALL], [5], passes=20), min_hit_share=0.3, free_hit_share=0.1) == (FREE, False, 0)
    assert one(evidence([CENTER], [WALL], [5], passes=80), min_hit_share=0.3, free_hit_share=0.1) == (FREE, True, 0)


def test_a_moving_thing_is_where_its_own_frame_saw_it():
    empty = [evidence(passes=9, number=n) for n in range(1, 9)]
    with_car = one(evidence([CENTER], [CAR], [5]), empty, min_hit_share=0.3)
    assert with_car == (CAR, True, 5)  # others saw it without the car
    gone = [evidence([CENTER], [CAR], [50], number=1)]
    assert one(evidence(passes=9), gone, min_hit_share=0.3) == (FREE, True, 0)
    assert one(evidence(), gone) == (FREE, False, 0)


def test_checked_moving_classes_keep_a_parked_car_and_drop_a_passing_one():
    parked = [evidence([CENTER], [CAR], [5], number=n) for n in range(1, 5)]
    assert one(evidence(), parked, moving="checked", min_hit_share=0.3) == (CAR, True, 20)
    passing = [evidence([CENTER], [CAR], [5], number=1), *(evidence(passes=9, number=n) for n in range(2, 5))]
    assert one(evidence(), passing, moving="checked", min_hit_share=0.3)[0] == FREE


def test_a_rare_class_wins_with_less_than_the_majority():
    both = evidence([CENTER, CENTER], [ROAD, OCC3D.id_of("traffic_cone")], [6, 4])
    assert one(both)[0] == ROAD
    assert one(both, priority=("traffic_cone",), priority_share=0.3)[0] == OCC3D.id_of("traffic_cone")
    assert one(both, priority=("traffic_cone",), priority_share=0.5)[0] == ROAD


def test_clamping_paints_walls_that_dropping_does_not():
    far = evidence([(3.0, 70.0, 1.0)], [WALL], [9])
    dropped, _ = Fuser(Recipe(), SMALL_GRID, OCC3D).fuse(far, [])
    clamped, _ = Fuser(Recipe(clamp=True), SMALL_GRID, OCC3D).fuse(far, [])
    assert not dropped.occupied.any()
    assert np.argwhere(clamped.occupied).tolist() == [[27, 39, 5]]
