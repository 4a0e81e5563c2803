"""Depth errors against plain loops and scikit-learn, reading against cv2's resize, LiDAR truth point by point."""

import math

import cv2
import numpy as np
import pytest
from teacher_fixtures import EGO_FROM_CAM, make_frame

from occ_core.errors import InvalidInput
from occ_core.evaluation.depth import (
    ERRORS,
    OCCNERF,
    SELFOCC,
    DepthScores,
    depth_errors,
    lidar_depth,
    nearest_in_pixel,
    read_depth,
)
from occ_core.frame import LidarSweep
from occ_core.geometry import pose
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.teachers.lidar import project

metrics = pytest.importorskip("sklearn.metrics")
EGO_FROM_LIDAR = pose((0.5, 0.1, 1.0), (np.cos(0.05), 0, 0, np.sin(0.05)))
LIDAR_WORLD_FROM_EGO = pose((10.0, 2.0, 0.0), (np.cos(0.1), 0, 0, np.sin(0.1)))
CAMERA_WORLD_FROM_EGO = pose((9.5, 2.1, 0.0), (np.cos(0.08), 0, 0, np.sin(0.08)))


def random_depth(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth_m = rng.uniform(2, 60, count)
    return truth_m * rng.lognormal(0.1, 0.4, count), truth_m


def looped(predicted_m, truth_m) -> dict[str, float]:
    """One point after another."""
    sums = dict.fromkeys(ERRORS, 0.0)
    for p, t in zip(predicted_m, truth_m, strict=True):
        sums["abs_rel"] += abs(p - t) / t
        sums["sq_rel"] += (p - t) ** 2 / t
        sums["rmse_m"] += (p - t) ** 2
        sums["rmse_log"] += (math.log(p) - math.log(t)) ** 2
        for name, limit in (("within_1.25", 1.25), ("within_1.25^2", 1.5625), ("within_1.25^3", 1.953125)):
            sums[name] += p / t < limit and t / p < limit
    means = {name: value / len(truth_m) for name, value in sums.items()}
    return means | {name: math.sqrt(means[name]) for name in ("rmse_m", "rmse_log")}


def test_errors_equal_loops_and_scikit_learn():
    predicted_m, truth_m = random_depth(0)
    found = dict(zip(ERRORS, depth_errors(predicted_m, truth_m), strict=True))
    assert found == pytest.approx(looped(predicted_m, truth_m))
    assert 0 < found["within_1.25"] < found["within_1.25^2"] < found["within_1.25^3"] < 1
    assert found["abs_rel"] == pytest.approx(metrics.mean_absolute_percentage_error(truth_m, predicted_m))
    assert found["rmse_m"] ** 2 == pytest.approx(metrics.mean_squared_error(truth_m, predicted_m))
    log_mse = metrics.mean_squared_error(np.log(truth_m), np.log(predicted_m))
    assert found["rmse_log"] == pytest.approx(math.sqrt(log_mse))
    assert np.allclose(depth_errors(truth_m, truth_m), [0, 0, 0, 0, 1, 1, 1])


def test_cameras_weigh_the_same_and_so_do_the_images_of_one():
    scores = DepthScores(OCCNERF)
    images = [("CAM_A", *random_depth(1, 50)), ("CAM_A", *random_depth(2, 900)), ("CAM_B", *random_depth(3, 100))]
    for name, predicted_m, truth_m in images:
        scores.add(name, predicted_m, truth_m)
    single = [looped(np.clip(p, 0.1, 80), t)["abs_rel"] for _, p, t in images]
    report = scores.report()
    assert report["protocol"] == "occnerf" and report["images"] == 3
    assert report["per_camera"]["CAM_A"]["raw"]["abs_rel"] == pytest.approx((single[0] + single[1]) / 2)
    assert report["raw"]["abs_rel"] == pytest.approx(((single[0] + single[1]) / 2 + single[2]) / 2)


def test_median_scaling_forgives_a_factor_of_each_image():
    predicted_m, truth_m = random_depth(4)
    plain, scaled = DepthScores(SELFOCC), DepthScores(SELFOCC)
    plain.add("CAM", predicted_m, truth_m)
    scaled.add("CAM", 0.2 * predicted_m, truth_m)
    one, other = plain.report(), scaled.report()
    assert other["median"]["abs_rel"] == pytest.approx(one["median"]["abs_rel"])
    assert other["raw"]["abs_rel"] > 2 * one["raw"]["abs_rel"]
    factor = np.median(truth_m) / np.median(predicted_m)
    assert other["median"]["scale"] == pytest.approx(5 * factor)
    expected = looped(np.clip(factor * predicted_m, 1e-3, 80), truth_m)
    assert {name: one["median"][name] for name in ERRORS} == pytest.approx(expected)


@pytest.mark.parametrize("protocol", [OCCNERF, SELFOCC])
def test_range_limits(protocol):
    truth_m = np.array([protocol.nearest_m, 10.0, 20.0, 80.0, 90.0])
    scores = DepthScores(protocol)
    scores.add("CAM", np.array([5.0, 1e-9, 500.0, 5.0, 5.0]), truth_m)  # clamped, where truth is within the limits
    expected = looped([protocol.nearest_m, 80.0], [10.0, 20.0])
    assert scores.report()["raw"] == pytest.approx(expected)
    scores.add("CAM_EMPTY", np.ones(2), np.array([80.0, 0.0]))
    assert scores.report()["images"] == 1 and "CAM_EMPTY" not in scores.report()["per_camera"]
    assert DepthScores(protocol).report()["raw"] == {}


def test_a_map_is_read_as_cv2_resizes_it():
    depth_map_m = np.random.default_rng(5).uniform(1, 50, (12, 20)).astype(np.float32)
    resized = cv2.resize(depth_map_m.astype(np.float64), (80, 36))
    v, u = np.mgrid[:36, :80]
    found = read_depth(depth_map_m, np.stack([u.ravel(), v.ravel()], axis=1), (80, 36))
    assert np.allclose(found.reshape(36, 80), resized, atol=1e-4)
    ramp = np.arange(20.0)[None].repeat(4, 0)
    assert np.allclose(read_depth(ramp, np.array([[3.25, 1.5], [18.5, 0], [-0.4, 3], [19.4, 3]]), (20, 4)),
                       [3.25, 18.5, 0, 19])  # fmt: skip


def sweep_frame(points_m: np.ndarray):
    n = len(points_m)
    sweep = LidarSweep(points_m, np.zeros(n, np.float32), np.zeros(n, np.int32), EGO_FROM_LIDAR, 1,
                       LIDAR_WORLD_FROM_EGO)  # fmt: skip
    return make_frame({"CAM": np.zeros((40, 64, 3), np.uint8)}, camera_from=CAMERA_WORLD_FROM_EGO, lidar=sweep)


def test_lidar_truth_follows_both_sensors_own_poses():
    points_m = np.float32(np.random.default_rng(6).uniform((-20, -20, -3), (40, 20, 6), (800, 3)))
    pixels, depth_m = lidar_depth(sweep_frame(points_m), "CAM")
    cam_from_lidar = np.linalg.inv(CAMERA_WORLD_FROM_EGO @ EGO_FROM_CAM) @ LIDAR_WORLD_FROM_EGO @ EGO_FROM_LIDAR
    expected = []
    for point in points_m:
        x, y, z, _ = cam_from_lidar @ (*point, 1.0)
        u, v = (32 * x / z + 32, 32 * y / z + 20) if z > 0 else (-9, -9)
        if -0.5 < u < 63.5 and -0.5 < v < 39.5:
            expected.append((u, v, z))
    assert len(expected) > 100
    assert np.allclose(np.c_[pixels, depth_m], expected)


def test_maps_by_both_protocols():
    points_m = np.float32(np.random.default_rng(7).uniform((5, -9, -2), (40, 9, 5), (3000, 3)))
    frame = sweep_frame(points_m)
    plane = np.full((10, 16), 20.0)
    pixels, depth_m = lidar_depth(frame, "CAM")
    in_pixel: dict[tuple[int, int], float] = {}
    for (u, v), z in zip(np.rint(pixels).astype(int), depth_m, strict=True):
        in_pixel[u, v] = min(z, in_pixel.get((u, v), np.inf))
    assert len(in_pixel) < len(depth_m)  # some share a pixel
    for protocol, truth_m in ((OCCNERF, list(in_pixel.values())), (SELFOCC, depth_m)):
        scores = DepthScores(protocol)
        scores.add_map(frame, "CAM", plane)
        assert scores.report()["raw"] == pytest.approx(looped(np.full(len(truth_m), 20.0), truth_m))
    whole, nearest_m = nearest_in_pixel(pixels, depth_m)
    assert {(int(u), int(v)): z for (u, v), z in zip(whole, nearest_m, strict=True)} == in_pixel


def test_real_sweep_on_real_cameras(shared_data):
    frame = NuScenesSource(shared_data("nuscenes_scene0061_1kf"))[0]
    scores = DepthScores(OCCNERF)
    for name in frame.images:
        pixels, depth_m = lidar_depth(frame, name)
        assert len(depth_m) > 1000 and depth_m.min() > 0
        whole, nearest_m = nearest_in_pixel(pixels, depth_m)
        rows, columns, teacher_m, _ = project(frame, name)
        order = np.lexsort((whole[:, 0], whole[:, 1]))  # row by row, as the teacher's
        assert np.array_equal(whole[order], np.c_[columns, rows])
        assert np.allclose(nearest_m[order], teacher_m)
        scores.add(name, 1.1 * nearest_m, nearest_m)
    report = scores.report()
    assert report["images"] == 6 and 0.09 < report["raw"]["abs_rel"] < 0.1 + 1e-9  # clamped at 80 m
    assert report["median"]["abs_rel"] == pytest.approx(0, abs=1e-9)


def test_parts_add_up_to_the_whole():
    whole, parts = DepthScores(SELFOCC), [DepthScores(SELFOCC) for _ in range(2)]
    for i in range(5):
        predicted_m, truth_m = random_depth(10 + i)
        for scores in (whole, parts[i % 2]):
            scores.add(f"CAM_{i % 3}", predicted_m, truth_m)
    parts[0].merge(parts[1])
    assert parts[0].report()["median"] == pytest.approx(whole.report()["median"])
    assert parts[0].report()["images"] == 5
    with pytest.raises(InvalidInput, match="'occnerf' cannot be added to 'selfocc'"):
        whole.merge(DepthScores(OCCNERF))


def test_bad_input_is_named():
    scores, truth_m = DepthScores(OCCNERF), np.full(4, 5.0)
    with pytest.raises(InvalidInput, match=r"\(3,\) and truth \(4,\)"):
        scores.add("CAM", np.ones(3), truth_m)
    with pytest.raises(InvalidInput, match="CAM: 1 of 4 predicted depths are NaN"):
        scores.add("CAM", np.array([1, 2, np.nan, 3]), truth_m)
    with pytest.raises(InvalidInput, match="median of the predicted depths must be > 0 m and finite, is 0"):
        scores.add("CAM", np.zeros(4), truth_m)
    with pytest.raises(InvalidInput, match="depth map must be"):
        read_depth(np.ones(3), np.zeros((1, 2)), (4, 4))
    with pytest.raises(InvalidInput, match="needs a sweep"):
        lidar_depth(make_frame({"CAM": np.zeros((40, 64, 3), np.uint8)}), "CAM")
    assert scores.report()["images"] == 0
