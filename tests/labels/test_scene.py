"""Whole scenes: a wall whose cells are known, windows, determinism, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from label_scenes import CAR, ROAD, SMALL_GRID, WALL, drive, frame, street_teachers

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.geometry import pose
from occ_core.labels.recipes import PRESETS, Recipe
from occ_core.labels.scene import label_scene

WINDOW = Recipe(past=2, future=1, sky=True, grazing_share=0.05, min_points=2, min_hit_share=0.2)


class Lazy:
    """Frames that note when they are read, with tokens known beforehand."""

    def __init__(self, frames):
        self.frames, self.tokens, self.read = frames, [f.token for f in frames], []

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        self.read.append(index)
        return self.frames[index]


def labels(frames, recipe=WINDOW, wanted=None, spoil=None):
    return list(label_scene(frames, street_teachers(spoil), recipe, wanted, SMALL_GRID))


def content(label) -> tuple:
    o = label.occupancy
    arrays = (o.labels, o.observed, o.confidence, label.votes)
    return label.token, *(array.tobytes() for array in arrays), label.skipped


def test_wall_and_road_are_where_they_are_and_behind_is_unknown():
    (label,) = labels([frame()], Recipe(sky=True))
    found, observed = label.occupancy.labels, label.occupancy.observed
    wall, road = np.argwhere(found == WALL), np.argwhere(found == ROAD)
    assert set(wall[:, 0]) == {35}  # x = 6.1 m is in 6.0 .. 6.4
    assert set(road[:, 2]) == {2} and set(wall[:, 2]) >= {3, 6}  # z = 0 is in -0.2 .. 0.2
    assert not observed[36:].any()  # behind the wall
    assert not observed[:, :, 0:2].any()  # below the road
    assert not observed[:20].any()  # behind the camera
    axis = (slice(21, 35), 20, 6)  # along the optical axis, 1.5 m high, up to the wall
    assert observed[axis].all() and (found[axis] == 17).all()
    assert label.skipped == () and label.votes[label.occupancy.occupied].min() >= 1


def test_sky_pixels_make_free_what_nothing_else_can():
    def without_wall(depth, kind):
        return np.where(kind == WALL, np.inf, depth), np.where(kind == WALL, 17, kind)

    spoil = {"token0": without_wall}
    (seen,) = labels([frame()], Recipe(sky=True), spoil=spoil)
    (unseen,) = labels([frame()], Recipe(sky=False), spoil=spoil)
    high = (39, 20, 8)  # 7.8 m ahead, 2.4 m high
    assert seen.occupancy.observed[high] and not seen.occupancy.occupied[high]
    assert not unseen.occupancy.observed[high]


@pytest.mark.parametrize("recipe", [WINDOW, PRESETS["shelf"], PRESETS["best"], PRESETS["easyocc"]])
def test_a_label_is_the_same_whatever_else_is_wanted(recipe):
    frames = drive(6)
    whole = {label.token: content(label) for label in labels(frames, recipe)}
    assert list(whole) == [f"token{n}" for n in range(6)]
    for wanted in ({"token4"}, {"token0", "token5"}, {"token2", "token3"}):
        some = labels(frames, recipe, wanted)
        assert [label.token for label in some] == sorted(wanted)
        assert all(content(label) == whole[label.token] for label in some)


def test_every_frame_is_read_once_and_only_if_needed():
    lazy = Lazy(drive(9))
    labels(lazy)
    assert lazy.read == list(range(9))
    lazy.read.clear()
    labels(lazy, wanted={"token6"})
    assert lazy.read == [4, 5, 6, 7]


def test_time_adds_what_one_frame_cannot_see():
    frames = drive(4, speed_m_s=4.0)
    single, window = labels(frames, Recipe())[2], labels(frames, WINDOW)[2]
    assert window.occupancy.occupied.sum() > 1.3 * single.occupancy.occupied.sum()
    road = window.occupancy.labels == ROAD
    assert road[:20].any() and not (single.occupancy.labels[:20] == ROAD).any()  # behind the car


def test_moving_things_of_other_frames_leave_no_trail():
    def with_car(depth, kind):
        kind, depth = kind.copy(), depth.copy()
        kind[28:44, 40:56], depth[28:44, 40:56] = CAR, 3.0
        return depth, kind

    frames = [frame(n) for n in range(4)]
    found = labels(frames, WINDOW, spoil={"token1": with_car})
    cars = [int((label.occupancy.labels == CAR).sum()) for label in found]
    assert cars[1] > 5 and cars[0] == cars[2] == cars[3] == 0


def test_a_pose_that_jumps_is_left_out_and_listed():
    frames = drive(5)
    frames[2] = frame(2, pose((0.5, 1000.0, 0)))
    found = labels(frames)
    assert "token2: pose is 1000 m away after 0.5 s" in found[3].skipped[0] and "limit 40 m" in found[3].skipped[0]
    clean = labels([f for f in frames if f.token != "token2"], WINDOW.model_copy(update={"past": 1}))
    assert content(found[3])[1:5] == content(clean[2])[1:5]  # as if it had never been
    assert len(found[2].skipped) == 3 and found[2].occupancy.occupied.any()  # it has only itself


@pytest.mark.parametrize("bad", [lambda d, k: (d * np.nan, k), lambda d, k: (d * 0, k), lambda d, k: (d, k[:, :50])])
def test_unusable_maps_are_left_out_and_listed(bad):
    frames = drive(4)
    spoiled = labels(frames, spoil={"token1": bad})
    assert [len(label.skipped) for label in spoiled] == [1, 1, 1, 1]  # token1 is in every window
    assert spoiled[0].skipped[0].startswith("token1 CAM_FRONT: ")
    assert all(label.occupancy.occupied.any() for label in spoiled)
    assert [len(label.skipped) for label in labels(frames, Recipe(), spoil={"token1": bad})] == [0, 1, 0, 0]


class OneBroken(Lazy):
    """Frame 2 cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise CorruptInput("front.jpg: not an image")
        return super().__getitem__(index)


def test_a_broken_file_costs_its_own_label_and_is_listed_in_the_others():
    broken = OneBroken(drive(6))
    unlabelled: dict[str, str] = {}
    found = list(label_scene(broken, street_teachers(), WINDOW, None, SMALL_GRID, unlabelled=unlabelled))
    reason = "token2: front.jpg: not an image"
    assert unlabelled == {"token2": reason}
    assert [label.token for label in found] == ["token0", "token1", "token3", "token4", "token5"]
    assert [label.skipped for label in found] == [(), (reason,), (reason,), (reason,), ()]  # two past, one future
    some = list(label_scene(broken, street_teachers(), WINDOW, {"token3"}, SMALL_GRID))
    assert content(some[0]) == content(found[2])
    clean = labels([f for f in drive(6) if f.token != "token2"], WINDOW.model_copy(update={"past": 1}))
    assert content(found[2])[1:5] == content(clean[2])[1:5]  # as if it had never been


def test_what_a_teacher_cannot_do_is_an_error_of_the_scene():
    def broken(depth, kind):
        raise CorruptInput("weights: broken")

    with pytest.raises(CorruptInput, match="weights"):
        labels(drive(3), spoil={"token1": broken})


def test_no_frame_and_unknown_tokens_are_errors():
    with pytest.raises(InvalidInput, match="at least one frame"):
        labels([])
    with pytest.raises(InvalidInput, match="'nowhere'"):
        labels([frame()], wanted={"nowhere"})
