"""Dense depth completed by LiDAR: truth is a formula, errors are known, returns are drawn from the truth."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_fixtures import EGO_FROM_CAM, make_frame

from occ_core.errors import InvalidInput
from occ_core.frame import LidarSweep
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import DepthMap
from occ_core.teachers.cache import CachedDepth
from occ_core.teachers.completed import FAR, NEAR, CompletedDepth, complete
from occ_core.teachers.lidar import LidarDepth
from occ_core.teachers.load import load_teachers

H, W = 108, 192
ROWS, COLUMNS = np.mgrid[0:H, 0:W].astype(np.float32)


def ground_and_wall_m() -> np.ndarray:
    """Road 1.5 m under the camera, up to a wall at 20 m."""
    with np.errstate(divide="ignore"):
        road_m = np.where(ROWS > H / 2, 1.5 * (W / 2) / (ROWS - H / 2), np.inf)
    return np.minimum(road_m, 20).astype(np.float32)


def wrong(truth_m: np.ndarray, scale: float = 1.2) -> np.ndarray:
    """A factor that swings by a tenth, half a period over the image."""
    return truth_m * np.float32(scale) * np.exp(0.1 * np.sin(np.pi * COLUMNS / W + 2 * ROWS / H))


def dense(depth_m: np.ndarray, confidence: float = 0.8) -> DepthMap:
    return DepthMap(depth_m.astype(np.float32), np.full(depth_m.shape, confidence, np.float32))


def returns(truth_m: np.ndarray, shown: np.ndarray | None = None, confidence: float = 1.0) -> DepthMap:
    """In every fourth row and second column, about as dense as nuScenes' 32 beams; and where `shown`."""
    hit = (ROWS % 4 == 1) & (COLUMNS % 2 == 0) & np.isfinite(truth_m)
    hit &= True if shown is None else shown
    return DepthMap(np.where(hit, truth_m, np.nan).astype(np.float32), np.where(hit, confidence, 0).astype(np.float32))


def error(found: DepthMap, truth_m: np.ndarray) -> np.ndarray:
    return np.abs(np.log(found.depth_m / truth_m))


def test_a_smooth_error_is_taken_away():
    truth_m = ground_and_wall_m()
    before, after = (
        error(dense(wrong(truth_m)), truth_m),
        error(complete(dense(wrong(truth_m)), returns(truth_m)), truth_m),
    )
    assert np.median(before) > 0.15 and np.median(after) < 0.003 and np.quantile(after, 0.99) < 0.02


def test_one_wrong_factor_is_taken_away_where_no_return_is_near():
    """What stands above the beams has the factor of what is below."""
    truth_m = ground_and_wall_m()
    found = complete(dense(1.3 * truth_m), returns(truth_m, ROWS > 60))
    assert error(found, truth_m).max() < 0.01


def test_a_step_stays_sharp_and_each_side_has_its_own_factor():
    """A post before a wall, one estimated too near, one too far."""
    post = np.abs(COLUMNS - 96) < 12
    truth_m = np.where(post, 6, 15).astype(np.float32)
    guess_m = np.where(post, 6 * 0.85, 15 * 1.2).astype(np.float32)
    found = complete(dense(guess_m), returns(truth_m))
    assert error(found, truth_m).max() < 0.01
    np.testing.assert_array_equal((found.depth_m < 9), post)


def test_returns_of_another_surface_hardly_bend_the_factor():
    """One in forty lies on what the camera does not see: twice as far."""
    truth_m = ground_and_wall_m()
    given = returns(truth_m)
    behind = np.random.default_rng(0).random((H, W)) < 1 / 40
    given = DepthMap(np.where(behind, 2, 1).astype(np.float32) * given.depth_m, given.confidence)
    found = complete(dense(wrong(truth_m)), given)
    between = np.isnan(given.depth_m)
    assert np.quantile(error(found, truth_m)[between], 0.95) < 0.05


def test_a_return_stands_and_one_in_doubt_is_not_used():
    truth_m = ground_and_wall_m()
    found, given = complete(dense(wrong(truth_m)), returns(truth_m)), returns(truth_m)
    hit = np.isfinite(given.depth_m)
    np.testing.assert_array_equal(found.depth_m[hit], given.depth_m[hit])
    assert (found.confidence[hit] == 1).all()
    doubted = complete(dense(wrong(truth_m)), returns(2 * truth_m, confidence=0.2))
    np.testing.assert_array_equal(doubted.depth_m, dense(wrong(truth_m)).depth_m)


def test_without_returns_the_depth_is_kept_and_the_confidence_says_so():
    guess_m = wrong(ground_and_wall_m())
    found = complete(dense(guess_m), returns(guess_m, np.zeros((H, W), bool)))
    np.testing.assert_array_equal(found.depth_m, guess_m.astype(np.float32))
    np.testing.assert_allclose(found.confidence, 0.8 * FAR)


def test_confidence_falls_with_the_distance_from_returns():
    truth_m = np.full((H, W), 12, np.float32)
    confidence = complete(dense(truth_m), returns(truth_m, COLUMNS < 40)).confidence[3]  # a row without returns
    assert 0.69 < confidence[20] <= 0.8 * NEAR and np.all(np.diff(confidence[40:]) <= 1e-6)
    assert confidence[60] > confidence[100] + 0.05 and confidence[-1] >= 0.8 * FAR


def test_sky_stays_sky_and_unknown_unknown():
    truth_m = ground_and_wall_m()
    guess_m = wrong(truth_m)
    guess_m[:20], guess_m[20:24] = np.inf, np.nan
    found = complete(dense(guess_m), returns(truth_m, ROWS > 30))
    assert np.isposinf(found.depth_m[:20]).all() and np.isnan(found.depth_m[20:24]).all()
    assert error(found, truth_m)[24:].max() < 0.06


def test_a_smaller_map_is_completed_in_its_own_pixels():
    """Networks may work at another size than the image that the LiDAR was projected into."""
    truth_m = ground_and_wall_m()
    fine = np.repeat(np.repeat(truth_m, 2, axis=0), 2, axis=1)
    hit = np.zeros(fine.shape, bool)
    hit[3::8, 1::4] = True
    given = DepthMap(np.where(hit, fine, np.nan).astype(np.float32), hit.astype(np.float32))
    found = complete(dense(wrong(truth_m)), given)
    assert found.size == (W, H) and np.median(error(found, truth_m)) < 0.003


def test_equal_input_gives_equal_bytes():
    truth_m = ground_and_wall_m()
    first, again = (complete(dense(wrong(truth_m)), returns(truth_m)) for _ in range(2))
    assert first.depth_m.tobytes() == again.depth_m.tobytes()
    assert first.confidence.tobytes() == again.confidence.tobytes()


class Guess:
    """A dense teacher."""

    version = "guess 1"

    def depth(self, frame):
        return {name: dense(wrong(ground_and_wall_m())) for name in frame.images}


def swept_frame():
    """One camera, and a sweep of a LiDAR at its place that sees the truth."""
    truth_m = ground_and_wall_m()
    hit = np.isfinite(returns(truth_m).depth_m)
    in_cam = np.stack([(COLUMNS - W / 2) / (W / 2), (ROWS - H / 2) / (W / 2), np.ones((H, W))], -1) * truth_m[..., None]
    points_m = (in_cam[hit] @ EGO_FROM_CAM[:3, :3].T).astype(np.float32)
    n = len(points_m)
    sweep = LidarSweep(points_m, np.zeros(n, np.float32), np.zeros(n, np.int32), np.eye(4), 1, np.eye(4))
    return make_frame({"CAM": np.zeros((H, W, 3), np.uint8)}, lidar=sweep)


def test_the_teacher_meets_a_real_projection():
    found = CompletedDepth(Guess(), LidarDepth()).depth(swept_frame())["CAM"]
    assert np.median(error(found, ground_and_wall_m())) < 0.005


def test_without_a_sweep_it_is_refused():
    with pytest.raises(InvalidInput, match="needs a sweep; frame 't0' has none"):
        CompletedDepth(Guess(), LidarDepth()).depth(make_frame({"CAM": np.zeros((H, W, 3), np.uint8)}))


def test_the_version_names_both_and_so_does_the_cache(tmp_path):
    plain, completed = Guess(), CompletedDepth(Guess(), LidarDepth())
    assert "guess 1" in completed.version and LidarDepth.version in completed.version
    raw = CachedDepth(plain, tmp_path).depth(swept_frame())["CAM"]
    cached = CachedDepth(completed, tmp_path).depth(swept_frame())["CAM"]
    assert np.median(error(raw, cached.depth_m)) > 0.1  # neither took the other's file
    assert len(list(tmp_path.rglob("*.zip"))) == 2


def test_only_returns_have_full_confidence_also_in_the_cache(tmp_path):
    """Where the dense teacher is sure of everything: recipes count what is measured by its confidence of 1."""

    class Sure:
        version = "sure 1"

        def depth(self, frame):
            return {name: dense(wrong(ground_and_wall_m()), 1.0) for name in frame.images}

    measured = LidarDepth().depth(swept_frame())["CAM"].confidence == 1
    found = CachedDepth(CompletedDepth(Sure(), LidarDepth()), tmp_path).depth(swept_frame())["CAM"]
    np.testing.assert_array_equal(found.confidence == 1, measured)


def test_its_name(tmp_path):
    (tmp_path / "truth").mkdir()
    teachers = load_teachers("realistic+realistic+lidar", tmp_path, OCC3D, seed=3)
    assert isinstance(teachers.depth, CompletedDepth) and isinstance(teachers.depth.lidar, LidarDepth)
    assert teachers.depth.dense is teachers.classes and teachers.classes.version.startswith("realistic-1 seed 3")
    with pytest.raises(InvalidInput, match="CLASSES.DEPTH.lidar.*not by 'radar'"):
        load_teachers("oracle+oracle+radar", tmp_path, OCC3D)
    for name in ("oracle+lidar+lidar", "oracle++lidar"):
        with pytest.raises(InvalidInput, match="no dense depth"):
            load_teachers(name, tmp_path, OCC3D)
    with pytest.raises(InvalidInput, match="'nobody' is no depth teacher.*CLASSES.DEPTH.lidar"):
        load_teachers("oracle+nobody+lidar", tmp_path, OCC3D)


def test_what_only_scales_does_not_stand_for_itself():
    """Three of a hundred returns are wrong by half: near them the factor holds, in their own pixels, too."""
    truth_m = ground_and_wall_m()
    given = returns(truth_m)
    wild = (ROWS % 20 == 1) & (COLUMNS % 20 == 0) & np.isfinite(given.depth_m)
    given = DepthMap(np.where(wild, 1.5 * given.depth_m, given.depth_m).astype(np.float32), given.confidence)
    stands, scales = (complete(dense(wrong(truth_m)), given, exact=exact) for exact in (True, False))
    assert wild.sum() > 20 and (error(stands, truth_m)[wild] > 0.4).all()
    assert error(scales, truth_m)[wild].max() < 0.2 and np.median(error(scales, truth_m)) < 0.02
    assert scales.confidence.max() < 0.8 and stands.confidence.max() == 1


def test_names_of_what_completes(tmp_path):
    (tmp_path / "truth").mkdir()
    depth = load_teachers("oracle+realistic+motion", tmp_path, OCC3D).depth
    assert isinstance(depth, CompletedDepth) and not depth.exact and "scaled by (motion" in depth.version
    with pytest.raises(InvalidInput, match="'motion' has no dense depth"):
        load_teachers("oracle+motion+lidar", tmp_path, OCC3D)
