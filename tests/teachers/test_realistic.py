"""The oracle, and the error model on top of it: its statistics against its knobs."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_fixtures import make_truth

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.taxonomy import OCC3D, SEMANTIC_KITTI, UNLABELED
from occ_core.teachers.base import ClassMap, DepthMap
from occ_core.teachers.error_model import CONFUSED_WITH, ErrorModel, segments, smooth_field
from occ_core.teachers.load import load_teachers
from occ_core.teachers.oracle import Oracle
from occ_core.teachers.realistic import Realistic

ROAD, CAR, TRAILER, TRUCK, MANMADE, VEGETATION, SKY = 11, 4, 9, 10, 15, 16, 17
SHAPE = (96, 160)  # a tenth of the reference size: 1 px here is 10 px of the knobs
NO_ERROR = ErrorModel(**{name: 0.0 for name in ErrorModel.model_fields if name != "sky_depth_m"})


def only(**knobs: float) -> ErrorModel:
    """A model with these errors and no other."""
    return NO_ERROR.model_copy(update=knobs)


def street() -> tuple[np.ndarray, np.ndarray]:
    """Sky above a wall above a road, two cars on it."""
    class_id = np.full(SHAPE, ROAD)
    depth_m = np.broadcast_to(np.linspace(40, 4, SHAPE[0])[:, None], SHAPE).copy()
    class_id[:50], depth_m[:50] = MANMADE, 25
    class_id[:20], depth_m[:20] = SKY, np.inf
    for left in (30, 90):
        class_id[50:70, left : left + 30], depth_m[50:70, left : left + 30] = CAR, 10
    return class_id, depth_m


def plane(depth_m: float, class_id: int = MANMADE) -> tuple[np.ndarray, np.ndarray]:
    return np.full(SHAPE, class_id), np.full(SHAPE, depth_m)


def depth_of(root, model, truth, scene: str = "s0", token: str = "") -> np.ndarray:
    frame = make_truth(root, *truth, token=token or scene, scene=scene)
    return Realistic(root, model=model).depth(frame)["CAM"].depth_m


def classes_of(root, model, truth, scene: str = "s0", token: str = "") -> np.ndarray:
    frame = make_truth(root, *truth, token=token or scene, scene=scene)
    return Realistic(root, model=model).classes(frame)["CAM"].class_id


def test_oracle_gives_what_was_rendered(tmp_path):
    class_id, depth_m = street()
    frame = make_truth(tmp_path, class_id, depth_m)
    teachers = load_teachers("oracle", tmp_path, OCC3D)
    classes, depth = teachers.classes.classes(frame)["CAM"], teachers.depth.depth(frame)["CAM"]
    assert (classes.class_id == class_id).all() and (classes.score == 1).all()
    np.testing.assert_array_equal(depth.depth_m, depth_m.astype(np.float16))
    assert np.isposinf(depth.depth_m[:20]).all() and (depth.confidence == 1).all()


def test_oracle_says_what_is_wrong(tmp_path):
    with pytest.raises(MissingInput, match="occ world make"):
        Oracle(tmp_path)
    frame = make_truth(tmp_path, *street())
    with pytest.raises(InvalidInput, match="semantic_kitti"):
        Oracle(tmp_path, SEMANTIC_KITTI)
    path = tmp_path / "truth/s0/t0/CAM.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(CorruptInput, match="CAM.npz"):
        Oracle(tmp_path).depth(frame)
    np.savez(path, class_id=np.zeros((3, 3), np.uint8), depth_m=np.zeros((3, 3), np.float16))
    with pytest.raises(CorruptInput, match="96 x 160"):
        Oracle(tmp_path).classes(frame)
    path.unlink()
    with pytest.raises(MissingInput, match="CAM.npz"):
        Oracle(tmp_path).depth(frame)
    sweep = make_truth(tmp_path, *street(), token="")
    with pytest.raises(InvalidInput, match="keyframes"):
        Oracle(tmp_path).depth(sweep)


@pytest.mark.parametrize("name", ["oracle", "realistic"])
def test_truth_is_read_once_for_a_frame_and_kept_for_one_frame_only(tmp_path, name):
    first = make_truth(tmp_path, *street(), token="t0")
    second = make_truth(tmp_path, *plane(20.0), token="t1")
    expected = load_teachers(name, tmp_path, OCC3D).depth.depth(first)["CAM"].depth_m
    teachers = load_teachers(name, tmp_path, OCC3D)
    classes = teachers.classes.classes(first)["CAM"].class_id
    (tmp_path / "truth/s0/t0/CAM.npz").unlink()
    np.testing.assert_array_equal(teachers.depth.depth(first)["CAM"].depth_m, expected)
    teachers.classes.classes(first)["CAM"].class_id[:] = UNLABELED  # the caller's to write to
    np.testing.assert_array_equal(teachers.classes.classes(first)["CAM"].class_id, classes)
    assert not np.array_equal(teachers.depth.depth(second)["CAM"].depth_m, expected)
    with pytest.raises(MissingInput, match="CAM.npz"):
        teachers.depth.depth(first)


def test_maps_of_wrong_form_are_refused():
    good, score = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.float32)
    assert ClassMap(good, score).size == (5, 4)
    for class_id, other in ((good.astype(int), score), (good, score[:3]), (good[0], score[0]), (good[:0], score[:0])):
        with pytest.raises(InvalidInput, match="class map"):
            ClassMap(class_id, other)
    with pytest.raises(InvalidInput, match="float64"):
        DepthMap(score.astype(np.float64), score)


def test_without_errors_it_is_the_oracle(tmp_path):
    class_id, depth_m = street()
    frame = make_truth(tmp_path, class_id, depth_m)
    teacher = Realistic(tmp_path, model=NO_ERROR)
    assert (teacher.classes(frame)["CAM"].class_id == class_id).all()
    expected = np.where(np.isinf(depth_m), NO_ERROR.sky_depth_m, depth_m.astype(np.float16))
    np.testing.assert_allclose(teacher.depth(frame)["CAM"].depth_m, expected, rtol=1e-5)


def test_same_seed_same_bytes_in_any_order(tmp_path):
    frames = [make_truth(tmp_path, *street(), token=f"t{i}", at_m=i) for i in range(3)]
    first, again, other = Realistic(tmp_path), Realistic(tmp_path), Realistic(tmp_path, seed=1)
    forth = [(first.classes(f)["CAM"], first.depth(f)["CAM"]) for f in frames]
    back = [(again.depth(f)["CAM"], again.classes(f)["CAM"]) for f in reversed(frames)][::-1]
    for (classes, depth), (depth_2, classes_2) in zip(forth, back, strict=True):
        assert classes.class_id.tobytes() == classes_2.class_id.tobytes()
        assert classes.score.tobytes() == classes_2.score.tobytes()
        assert depth.depth_m.tobytes() == depth_2.depth_m.tobytes()
    assert other.depth(frames[0])["CAM"].depth_m.tobytes() != forth[0][1].depth_m.tobytes()
    assert forth[0][1].depth_m.tobytes() != forth[1][1].depth_m.tobytes()
    versions = {first.version, other.version, Realistic(tmp_path, model=NO_ERROR).version}
    assert len(versions) == 3 and first.version == again.version


def test_scale_error_has_the_size_of_its_knobs(tmp_path):
    model = only(scale_camera=0.10, scale_image=0.05)
    log_error = np.array([
        [np.log(depth_of(tmp_path, model, plane(20), f"s{s}", f"s{s}t{t}")[0, 0] / 20) for t in range(6)]
        for s in range(40)
    ])  # fmt: skip
    assert log_error.mean(axis=1).std() == pytest.approx(np.hypot(0.10, 0.05 / np.sqrt(6)), rel=0.3)
    assert log_error.std(axis=1, ddof=1).mean() == pytest.approx(0.05, rel=0.15)


def test_noise_grows_with_range(tmp_path):
    model = only(noise_near=0.02, noise_per_m=0.002, persistence=0.5)
    for depth_m, expected in ((5, 0.03), (40, 0.10)):
        maps = [depth_of(tmp_path, model, plane(depth_m), f"s{s}") for s in range(40)]
        assert np.log(np.array(maps) / depth_m).std() == pytest.approx(expected, rel=0.12)


def test_persistence_is_the_correlation_between_frames(tmp_path):
    for persistence in (0.0, 0.5, 1.0):
        model = only(noise_near=0.05, persistence=persistence)
        pairs = np.array([
            [np.log(depth_of(tmp_path, model, plane(20), f"s{s}", f"s{s}t{t}")).ravel() for t in range(2)]
            for s in range(25)
        ])  # fmt: skip
        first, second = pairs[:, 0].ravel(), pairs[:, 1].ravel()
        assert np.corrcoef(first, second)[0, 1] == pytest.approx(persistence, abs=0.12)


def test_smooth_field_is_standard_normal_and_smooth():
    rows = np.mgrid[0:40, 0:40].transpose(1, 2, 0) * 0.25
    fields = np.array([smooth_field(rows, 1.0, np.random.default_rng(n)) for n in range(200)])
    assert fields.mean() == pytest.approx(0, abs=0.05) and fields.var() == pytest.approx(1, abs=0.05)
    for step in (2, 4, 8):  # 0.5, 1 and 2 lengths: correlation of a Gaussian kernel
        correlation = (fields[:, step:] * fields[:, :-step]).mean()
        assert correlation == pytest.approx(np.exp(-((step * 0.25) ** 2) / 2), abs=0.05)


def test_edges_bleed_over_their_width_and_no_further(tmp_path):
    class_id, depth_m = plane(30.0)
    depth_m[:, 80:] = 10.0
    found = depth_of(tmp_path, only(edge_px=20.0), (class_id, depth_m))[48]  # sigma 2 px here
    between = (found > 10.1) & (found < 29.7)
    assert 4 <= between.sum() <= 14 and between[78:82].any()
    assert (found[:65] == found[0]).all() and (found[95:] == found[-1]).all()
    assert (np.diff(found) <= 1e-4).all()


def test_sky_seems_near_or_nothing_as_often_as_said(tmp_path):
    model = only(sky_near=0.1, sky_missed=0.2)
    truth = plane(np.inf, SKY)
    near = [depth_of(tmp_path, model, truth, scene=f"s{s}") for s in range(150)]
    assert (np.array(near) < 61).mean() == pytest.approx(0.1, abs=0.03)
    assert ((np.array(near) >= 19.9) & (np.array(near) < 150.1)).all()
    missed = [classes_of(tmp_path, model, truth, scene=f"s{s}") for s in range(150)]
    assert (np.array(missed) == UNLABELED).mean() == pytest.approx(0.2, abs=0.04)


def test_sky_grows_in_half_of_the_places(tmp_path):
    class_id, depth_m = plane(30.0, VEGETATION)
    class_id[:40], depth_m[:40] = SKY, np.inf
    model = only(sky_growth_px=20.0)  # 2 px here, so 4 px in half of the places
    maps = np.array([classes_of(tmp_path, model, (class_id, depth_m), scene=f"s{s}") for s in range(60)])
    assert (maps[:, 40:44] == SKY).mean() == pytest.approx(0.5, abs=0.1)
    assert (maps[:, 45:] == VEGETATION).all() and (maps[:, :40] == SKY).all()


def objects(kind: int, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Twelve objects far apart on a road."""
    class_id, depth_m = plane(20.0, ROAD)
    for row in range(3):
        for column in range(4):
            at = np.s_[8 + 30 * row : 8 + 30 * row + side, 10 + 40 * column : 10 + 40 * column + side]
            class_id[at], depth_m[at] = kind, 10.0
    return class_id, depth_m


def test_objects_are_confused_whole_and_as_often_as_the_table_says(tmp_path):
    truth = objects(TRAILER)
    taken = []
    for scene in range(60):
        found = classes_of(tmp_path, only(confusion=1.0), truth, scene=f"s{scene}")
        for row in range(3):
            for column in range(4):
                inside = found[8 + 30 * row : 20 + 30 * row, 10 + 40 * column : 22 + 40 * column]
                assert (inside == inside[0, 0]).all()
                taken.append(inside[0, 0])
    ((name, share),) = CONFUSED_WITH["trailer"]
    assert set(taken) == {TRAILER, OCC3D.id_of(name)}
    assert np.mean(np.array(taken) == TRUCK) == pytest.approx(share, abs=0.06)


def test_surfaces_are_confused_by_patches_in_the_tables_shares(tmp_path):
    maps = np.array([classes_of(tmp_path, only(confusion=1.0), plane(20, 13), scene=f"s{s}") for s in range(150)])
    for name, share in CONFUSED_WITH["sidewalk"]:
        target = OCC3D.id_of(name) if name else UNLABELED
        assert (maps == target).mean() == pytest.approx(share, abs=0.03)
    flips = (maps[:, :, 1:] != maps[:, :, :-1]).mean()
    assert flips < 0.05  # a pixel mostly errs as its neighbour does


def test_confusion_scales_with_its_knob(tmp_path):
    share = [
        np.mean([classes_of(tmp_path, only(confusion=k), plane(20, 13), scene=f"s{s}") != 13 for s in range(80)])
        for k in (0.5, 2.0)
    ]
    assert share[0] == pytest.approx(0.125, abs=0.05) and share[1] == pytest.approx(0.5, abs=0.07)


def test_small_objects_are_missed_more_often(tmp_path):
    model = only(missed=0.1, missed_area_px=5000.0)
    for side in (4, 12):
        truth = objects(CAR, side)
        found = np.array([classes_of(tmp_path, model, truth, scene=f"s{s}") for s in range(60)])
        lost = (found[:, truth[0] == CAR] == UNLABELED).mean()
        expected = 0.1 + 0.9 * np.exp(-(side * side * 100) / 5000)
        assert lost == pytest.approx(expected, abs=0.06)


def test_missed_objects_are_filled_with_what_is_behind(tmp_path):
    model = only(missed=1.0, missed_filled=0.3)
    truth = objects(CAR)
    found = np.array([classes_of(tmp_path, model, truth, scene=f"s{s}") for s in range(40)])[:, truth[0] == CAR]
    assert set(np.unique(found)) == {ROAD, UNLABELED}
    assert (found == ROAD).mean() == pytest.approx(0.3, abs=0.07)


def test_gaps_between_like_objects_are_merged(tmp_path):
    class_id, depth_m = plane(20.0, ROAD)
    class_id[30:60, 40:78] = CAR
    class_id[30:60, 80:120] = CAR  # 2 px apart, 20 of the reference
    model = only(merged=0.4, merged_gap_px=50.0)
    gaps = [classes_of(tmp_path, model, (class_id, depth_m), token=f"t{t}")[40:50, 78:80] for t in range(120)]
    assert np.mean([(gap == CAR).all() for gap in gaps]) == pytest.approx(0.4, abs=0.12)
    assert all((gap == CAR).all() or (gap == ROAD).all() for gap in gaps)


def test_outlines_move_by_the_knobs_size(tmp_path):
    class_id, depth_m = plane(20.0, ROAD)
    class_id[:, 80:] = MANMADE
    model = only(boundary_px=30.0)  # 3 px here
    found = np.array([classes_of(tmp_path, model, (class_id, depth_m), token=f"t{t}") for t in range(40)])
    offset = (found == MANMADE).sum(axis=2) - 80
    assert offset.std() == pytest.approx(3, rel=0.25) and abs(offset.mean()) < 0.5


def test_segments_are_connected_pixels_of_one_class_without_a_jump():
    rng = np.random.default_rng(0)
    class_id, depth_m = rng.integers(0, 3, (14, 15)), rng.choice([5.0, 5.5, 9.0], (14, 15))
    wanted = class_id > 0
    found = segments(class_id.astype(np.uint8), depth_m.astype(np.float32), wanted)

    def same(a, b):
        return wanted[a] and class_id[a] == class_id[b] and abs(np.log(depth_m[a] / depth_m[b])) < 0.15

    expected = np.full(wanted.shape, -1)
    for seed in np.argwhere(wanted):  # flood fill
        if expected[tuple(seed)] >= 0:
            continue
        number, todo = expected.max() + 1, [tuple(seed)]
        while todo:
            v, u = todo.pop()
            if expected[v, u] >= 0:
                continue
            expected[v, u] = number
            for dv, du in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                near = v + dv, u + du
                if 0 <= near[0] < 14 and 0 <= near[1] < 15 and same(near, (v, u)):
                    todo.append(near)
    pairs = {(int(a), int(b)) for a, b in zip(found.ravel(), expected.ravel(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert (found >= 0).sum() == wanted.sum()


def test_names_that_are_no_teacher(tmp_path):
    (tmp_path / "truth").mkdir()
    with pytest.raises(InvalidInput, match="'nobody' is no class teacher; there are: oracle"):
        load_teachers("nobody", tmp_path, OCC3D)
    with pytest.raises(InvalidInput, match="'nobody' is no depth teacher"):
        load_teachers("oracle+nobody", tmp_path, OCC3D)
    mixed = load_teachers("realistic+oracle", tmp_path, OCC3D, seed=5)
    assert "seed 5" in mixed.classes.version and mixed.depth.version == "oracle-1"
