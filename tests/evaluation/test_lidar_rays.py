"""LiDAR-ray score against fine marching, walls by hand, exact truth of a simulated city, and real sweeps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from ray_maps import FREE, ROAD, ROOF, WALL, empty, only, returns, voxels_of
from small_nuscenes import OPTICAL, make
from typer.testing import CliRunner

from occ_core.camera import Camera, Rig
from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingPackage
from occ_core.evaluation import lidar_rays
from occ_core.frame import Frame, LidarSweep
from occ_core.geometry import apply, inverse, pose
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_VOXELS, VoxelGrid
from occ_core.lidar_points import OWN_BODY_M
from occ_core.sources.kitti import GROUND_Z_M, SemanticKittiSource
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.sources.nuscenes_tables import NuScenesTables
from occ_core.taxonomy import SEMANTIC_KITTI

pytest.importorskip("numba")
from occ_core.evaluation.lidar_rays import BANDS, LidarRayScores, Returns, returns_of, score_lidar_rays


def wall_at(x_m: float) -> np.ndarray:
    """One layer of cells across the whole grid whose near face is at x_m."""
    labels = empty()
    labels[round((x_m + 40) / 0.4)] = WALL
    return labels


def marched(labels: np.ndarray, grid: VoxelGrid, origin: np.ndarray, point: np.ndarray, step_m: float = 1e-3) -> float:
    """Where the ray through `point` first finds an occupied cell, less the point's range; by small steps."""
    range_m = np.linalg.norm(point - origin)
    at_m = np.arange(0, 22, step_m)
    index, inside = grid.index_of(origin + at_m[:, None] * (point - origin) / range_m)
    hit = np.flatnonzero(inside & (labels[tuple(index.T)] != FREE))
    return (at_m[hit[0]] if len(hit) else np.inf) - range_m


def test_counts_are_those_of_fine_marching():
    grid = VoxelGrid((-6.0, -5.0, -1.0), 0.5, (34, 20, 6))
    rng = np.random.default_rng(4)
    labels = np.where(rng.random(grid.shape) < 0.03, WALL, FREE).astype(np.uint8)
    origin = np.array([-5.8, 0.3, 1.2])
    points = rng.uniform(grid.origin_m, grid.upper_m, (300, 3))
    scores = LidarRayScores(grid=grid)
    scores.add(labels, returns(points, origin))
    report = scores.report()
    range_m = np.linalg.norm(points - origin, axis=1)
    errors = np.array([marched(labels, grid, origin, point) for point in points])
    total, medians = 0, []
    for group, high in (("ground", points[:, 2] < 0.3), ("above", points[:, 2] >= 0.3)):
        for band, low_m, high_m in (("0-10m", 3, 10), ("10-20m", 10, 20)):
            found, error = report[group][band], errors[high & (range_m >= low_m) & (range_m < high_m)]
            total += len(error)
            assert found["returns"] == len(error) > 30
            for limit_m in (0.5, 1, 2):
                assert found[f"within_{limit_m}m"] == pytest.approx(100 * np.mean(np.abs(error) <= limit_m))
            assert found["too_near"] == pytest.approx(100 * np.mean(error < -2)) and found["too_near"] > 0
            assert found["missed"] == pytest.approx(100 * np.mean(error > 2)) and found["missed"] > 0
            assert found["within_2m"] + found["too_near"] + found["missed"] == pytest.approx(100)
            # Of an even number the lower of the two in the middle; a bin is 1 cm wide.
            middle_m = np.sort(error)[(len(error) - 1) // 2]
            if np.isinf(middle_m):
                assert np.isnan(found["median_error_m"])
            else:
                assert found["median_error_m"] == pytest.approx(middle_m, abs=0.006)
            medians.append(middle_m)
    assert np.isfinite(medians).sum() >= 2
    assert total + report["left_out"]["own_body"] == 300


@pytest.mark.parametrize(
    "near_face_m, share_of",
    [
        (12.0, {"within_0.5m": 100, "within_1m": 100, "within_2m": 100, "too_near": 0, "missed": 0}),
        (11.2, {"within_0.5m": 0, "within_1m": 100, "within_2m": 100, "too_near": 0, "missed": 0}),
        (10.8, {"within_0.5m": 0, "within_1m": 0, "within_2m": 100, "too_near": 0, "missed": 0}),
        (9.6, {"within_0.5m": 0, "within_1m": 0, "within_2m": 0, "too_near": 100, "missed": 0}),
        (13.6, {"within_0.5m": 0, "within_1m": 0, "within_2m": 100, "too_near": 0, "missed": 0}),
        (15.6, {"within_0.5m": 0, "within_1m": 0, "within_2m": 0, "too_near": 0, "missed": 100}),
    ],
)
def test_a_wall_by_hand(near_face_m, share_of):
    """The laser hits at x = 12.1, in the cell from 12.0 to 12.4; rays from x = 0.9 are longer by what they climb."""
    scores = LidarRayScores()
    points = [(12.1, y, z) for y in (-2, 0, 2) for z in (0.5, 1.8, 3.0)]
    scores.add(wall_at(near_face_m), returns(points))
    found = only(scores.report(), "above", "10-20m")
    assert found["returns"] == 9
    assert {name: found[name] for name in share_of} == share_of
    stretch = np.median(np.linalg.norm(np.array(points) - ROOF, axis=1)) / 11.2
    assert found["median_error_m"] == pytest.approx((near_face_m - 12.1) * stretch, abs=0.006)


def test_without_any_cell_all_is_missed_and_there_is_no_error():
    scores = LidarRayScores()
    scores.add(empty(), returns([(12.2, 0, 1.0), (12.2, 0, 2.0)]))
    found = only(scores.report(), "above", "10-20m")
    assert found["missed"] == 100 and np.isnan(found["median_error_m"])
    assert np.isnan(scores.report()["ground"]["0-10m"]["within_1m"])


def test_a_ray_ends_at_the_first_cell_not_at_the_best():
    labels = wall_at(12.0)
    labels[round((6 + 40) / 0.4), :100] = WALL  # a second wall half as far, on the right
    scores = LidarRayScores()
    scores.add(labels, returns([(12.2, -3, 1.0), (12.2, 3, 1.0), (12.2, 4, 1.0), (12.2, 5, 1.0)]))
    found = only(scores.report(), "above", "10-20m")
    assert (found["within_0.5m"], found["too_near"]) == (75, 25)


def test_rays_from_outside_begin_at_the_grid():
    """A LiDAR 2 m above the grid; only what is in the grid can stop its rays, and their range is the whole way's."""
    labels = empty()
    labels[..., 2] = ROAD  # z from -0.2 to 0.2
    origin, point = np.array([0.0, 0.0, 7.4]), np.array([7.4, 0.0, 0.0])
    scores = LidarRayScores()
    scores.add(labels, returns([point], origin))
    found = only(scores.report(), "ground", "10-20m")
    assert found["median_error_m"] == pytest.approx(-0.2 * np.sqrt(2), abs=0.006)
    labels[round(47.4 / 0.4), :, :] = labels[..., 15] = WALL  # also a lid: 5.0 to 5.4, met at the grid's upper face
    scores = LidarRayScores()
    scores.add(labels, returns([point], origin))
    assert only(scores.report(), "ground", "10-20m")["median_error_m"] == pytest.approx(-5.4 * np.sqrt(2), abs=0.006)


def test_each_return_is_left_out_for_one_reason_or_counted():
    points = [(2.0, 0, 1.5), (60, 0, 1), (20, 0, 8), (12, 0, 1), (12, 0, 0.1), (39, 39, 1), (60, 60, 60), (1, 0, 1.5)]
    in_view = [True, True, False, False, True, True, False, False]
    scores = LidarRayScores()
    scores.add(empty(), returns(points, in_view=in_view))
    report = scores.report()
    assert report["left_out"] == {"own_body": 2, "off_grid": 3, "out_of_view": 1, "far": 1}
    assert only(report, "ground", "10-20m")["returns"] == 1 and report["frames"] == 1


def test_ground_is_told_by_height_over_the_ground():
    kitti = LidarRayScores(SEMANTIC_KITTI, SEMANTIC_KITTI_VOXELS, GROUND_Z_M)
    points = [(8.0, 0, GROUND_Z_M + z) for z in (0.0, 0.29, 0.31, 1.0)]
    kitti.add(np.zeros(SEMANTIC_KITTI_VOXELS.shape, np.uint8), returns(points, (0, 0, 0)))
    assert [kitti.report()[group]["0-10m"]["returns"] for group in ("ground", "above")] == [2, 2]


def test_parts_add_up_and_bad_input_counts_nothing():
    rng = np.random.default_rng(0)
    whole, parts = LidarRayScores(), [LidarRayScores(), LidarRayScores()]
    for number in range(4):
        labels = np.where(rng.random(OCC3D_GRID.shape) < 0.02, WALL, FREE).astype(np.uint8)
        some = returns(rng.normal(0, 15, (300, 3)), in_view=rng.random(300) < 0.8)
        whole.add(labels, some)
        parts[number % 2].add(labels, some)
    parts[0].merge(parts[1])
    assert parts[0].report() == whole.report() and whole.report()["frames"] == 4
    before = json.dumps(whole.report())
    with pytest.raises(InvalidInput, match=r"uint8 \(200, 200, 16\), got uint8 \(200, 200, 15\)"):
        whole.add(empty()[..., 1:], returns([(9, 0, 1)]))
    with pytest.raises(InvalidInput, match="holds label 18, limit 17"):
        whole.add(np.full_like(empty(), 18), returns([(9, 0, 1)]))
    assert json.dumps(whole.report()) == before


def test_without_numba_one_line_says_what_to_install(monkeypatch):
    def lacking(module, extra):
        raise MissingPackage(f"{module} {extra}")

    monkeypatch.setattr(lidar_rays, "need", lacking)
    with pytest.raises(MissingPackage, match="numba world"):
        LidarRayScores()


def frame_of(points_lidar_m, ego_from_lidar=None, sweep_world_from_ego=None) -> Frame:
    """One camera that looks forward from x = 1.7; the world's frame is the ego's."""
    points = np.asarray(points_lidar_m, dtype=np.float32).reshape(-1, 3)
    ego_from_cam = np.eye(4)
    ego_from_cam[:3, :3], ego_from_cam[:3, 3] = OPTICAL, (1.7, 0.0, 1.5)
    camera = Camera("front", np.array([[40.0, 0, 31.5], [0, 41.0, 23.5], [0, 0, 1]]), (64, 48), ego_from_cam)
    where = np.eye(4)
    sweep = LidarSweep(
        points,
        np.zeros(len(points), np.float32),
        np.zeros(len(points), np.int32),
        pose(ROOF) if ego_from_lidar is None else ego_from_lidar,
        0,
        where if sweep_world_from_ego is None else sweep_world_from_ego,
    )
    images = {"front": np.zeros((48, 64, 3), np.uint8)}
    return Frame(0, where, Rig((camera,)), images, {"front": 0}, {"front": where}, sweep)


def test_returns_are_where_the_robot_was_when_the_laser_saw_them():
    """The sweep was taken 2 m ahead and a quarter turn to the left of the frame's own pose."""
    there = pose((2.0, 0.0, 0.0), (np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)))
    found = returns_of(frame_of([(0.1, -10.0, 0.0), (0.1, 10.0, 0.0)], sweep_world_from_ego=there))
    assert np.allclose(found.origin_ego_m, (2.0, 0.9, 1.8))
    assert np.allclose(found.points_ego_m, [(12.0, 1.0, 1.8), (-8.0, 1.0, 1.8)])
    assert found.in_view.tolist() == [True, False] and found.placed


def test_a_camera_without_image_sees_nothing():
    frame = frame_of([(10.0, 0.0, 0.0)])
    assert returns_of(frame).in_view.all()
    assert not returns_of(replace(frame, images={})).in_view.any()
    with pytest.raises(InvalidInput, match="has no LiDAR sweep"):
        returns_of(replace(frame, lidar=None))


def test_rays_do_not_start_in_the_road():
    """Points given in the ego frame: the data set does not say where its LiDAR is."""
    frame = frame_of([(12.2, 0.0, 1.0)], np.eye(4))
    found = returns_of(frame)
    assert not found.placed and np.allclose(found.origin_ego_m, (1.7, 0.0, 1.5))
    assert np.allclose(found.points_ego_m, (12.2, 0.0, 1.0), atol=1e-6)
    on_roof = returns_of(frame, GROUND_Z_M)  # the ego frame is the LiDAR's, with the ground below
    assert on_roof.placed and not on_roof.origin_ego_m.any()
    scores = LidarRayScores()
    scores.add(wall_at(12.0), found)
    assert scores.report()["frames_without_lidar_place"] == 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("lidar") / "set"
    return root, make(root, keyframes=3, sweeps=1)


def expected_of(root, labels_of) -> dict:
    """Frame after frame, with returns computed here by each frame's own matrices."""
    total = LidarRayScores()
    for frame in NuScenesSource(root):
        if frame.token not in labels_of:
            continue
        lidar = frame.lidar
        points = apply(lidar.ego_from_lidar, lidar.points_lidar_m.astype(np.float64))
        in_view = np.zeros(len(points), bool)
        for name in frame.images:
            camera = frame.rig[name]
            cam_from_ego = inverse(frame.camera_world_from_ego[name] @ camera.ego_from_cam) @ lidar.world_from_ego
            in_view |= camera.project(apply(cam_from_ego, points))[1]
        total.add(labels_of[frame.token], Returns(lidar.ego_from_lidar[:3, 3], points, in_view))
    return total.report()


def test_a_data_set_with_gaps_is_scored_and_the_gaps_are_said(dataset, tmp_path):
    root, tokens = dataset
    rng = np.random.default_rng(1)
    labels_of = {t: np.where(rng.random(OCC3D_GRID.shape) < 0.05, WALL, FREE).astype(np.uint8) for t in tokens[1:]}
    for token, labels in labels_of.items():
        np.savez_compressed(tmp_path / f"{token}.npz", pred=labels)
    np.savez_compressed(tmp_path / "elsewhere.npz", pred=labels)
    steps: list[tuple[int, int]] = []
    found = score_lidar_rays(tmp_path, root, lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    gaps = {"frames_without_prediction": 1, "predictions_without_frame": 1}
    assert {key: found.pop(key) for key in gaps} == gaps
    expected = expected_of(root, labels_of)
    assert json.dumps(found) == json.dumps(expected)  # NaN in both, where there are no returns
    assert found["frames"] == 2 and sum(found["left_out"].values()) > 100
    assert sum(found[group][band]["returns"] for group in ("ground", "above") for band in BANDS) > 10
    assert json.dumps(score_lidar_rays(tmp_path, root, workers=2)) == json.dumps(found | gaps)


def test_a_bag_holds_the_same_rays(dataset, tmp_path):
    """Its frames have the key camera's stamp and pose, the data set's the LiDAR's; in the world rays are the same."""
    pytest.importorskip("rosbags")
    from occ_core.bags.writer import write_bag
    from occ_core.sources.open import open_source

    root, _ = dataset
    write_bag(NuScenesTables(root), "scene-0001", tmp_path / "drive")
    bag, data = open_source(tmp_path / "drive"), NuScenesSource(root)
    for frame in data:
        (other,) = (bag[i] for i, name in enumerate(bag.names) if name == frame.token)
        rays = [(f.world_from_ego, returns_of(f)) for f in (frame, other)]
        for attribute in ("origin_ego_m", "points_ego_m"):
            ours, theirs = (apply(world_from_ego, getattr(found, attribute)) for world_from_ego, found in rays)
            assert np.allclose(ours, theirs, atol=1e-3)
        assert np.array_equal(*(found.in_view for _, found in rays))
        np.savez_compressed(tmp_path / f"{frame.token}.npz", pred=empty())
    found = score_lidar_rays(tmp_path, tmp_path / "drive")
    assert found["frames"] == 3 and found["frames_without_prediction"] == len(bag) - 3 > 0


def test_labels_of_anybody_are_scored_by_the_command(dataset, tmp_path):
    root, _ = dataset
    out = CliRunner().invoke(app, ["eval", f"{root}/gts", "--lidar", str(root), "--json", f"{tmp_path}/a.json"])
    assert out.exit_code == 0, out.output
    assert "above, 10-20 m" in out.output and "3 frames; returns not counted" in out.output
    assert "no prediction" not in out.output
    alone = json.loads((tmp_path / "a.json").read_text())
    assert list(alone) == ["lidar"] and set(alone["lidar"]["above"]) == set(BANDS)
    assert alone["lidar"]["frames"] == 3 and alone["lidar"]["frames_without_prediction"] == 0
    both = CliRunner().invoke(
        app, ["eval", f"{root}/gts", f"{root}/gts", "--lidar", str(root), "--json", f"{tmp_path}/b.json"]
    )
    assert both.exit_code == 0, both.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["camera"]["iou"] == 100 and report["lidar"] == alone["lidar"]


def test_what_is_missing_is_said(dataset, tmp_path):
    root, tokens = dataset

    def error_of(*words: object) -> str:
        out = CliRunner().invoke(app, ["eval", *map(str, words)])
        assert out.exit_code == 1 and isinstance(out.exception, MissingInput), out.output
        return str(out.exception)

    assert "give GTS, a folder of true voxels, --lidar DATA" in error_of(root / "gts")
    assert "RayIoU, which needs true voxels" in error_of(root / "gts", "--lidar", root, "--data", root)
    other = tmp_path / "other"
    other.mkdir()
    np.savez_compressed(other / "unknown.npz", pred=empty())
    assert f"no prediction of any of the 3 frames of {root}, such as '{tokens[0]}'" in error_of(other, "--lidar", root)
    blind = tmp_path / "blind"
    make(blind, keyframes=2, sweeps=0, lidar=False)
    assert "no LiDAR sweep in any of the 2 frames that have a prediction" in error_of(blind / "gts", "--lidar", blind)
    np.savez_compressed(other / f"{tokens[0]}.npz", pred=np.full_like(empty(), 200))
    with pytest.raises(CorruptInput, match=f"{tokens[0]}.npz: prediction holds label 200"):
        score_lidar_rays(other, root)


@pytest.mark.slow
def test_exact_voxels_of_a_city_are_near_the_ceiling():
    pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")
    from occ_core.world.city import build_city
    from occ_core.world.lidar import sweep
    from occ_core.world.tracer import Tracer
    from occ_core.world.truth import voxelize

    city, t_s, ego_from_lidar = build_city(2, 4.0), 2.0, pose(ROOF)
    points = sweep(Tracer(city).at(t_s), city.world_from_ego(t_s) @ ego_from_lidar, np.random.default_rng(0))[:, :3]
    found = returns(apply(ego_from_lidar, points.astype(np.float64)))
    shares = []
    for labels in (voxelize(city, t_s, OCC3D_GRID)[1], voxels_of(found.points_ego_m, OCC3D_GRID, FREE, WALL)):
        scores = LidarRayScores()
        scores.add(labels, found)
        above = [scores.report()["above"][band] for band in BANDS]
        assert all(band["returns"] > 1000 for band in above)
        assert all(band["missed"] < 1 for band in above)  # nothing that a laser hits is free in the truth
        assert all(-0.7 < band["median_error_m"] < 0 for band in above)  # a cell is entered before the surface in it
        shares.append([band["within_1m"] for band in above])
    (near, middle, _), own = shares
    assert near > 90 and middle > 75
    # The sweep's own cells are all that cells of this size can do; truth also has what stands beside the rays.
    assert np.allclose((near, middle), own[:2], atol=10)


def sweep_as_labels(frame: Frame, grid: VoxelGrid = OCC3D_GRID, free: int = FREE) -> np.ndarray:
    """Every cell with a return in it, and no other; those of the own body left out."""
    found = returns_of(frame)
    far = np.linalg.norm(found.points_ego_m - found.origin_ego_m, axis=1) > OWN_BODY_M
    return voxels_of(found.points_ego_m[far], grid, free, 1)


def test_a_real_sweep_is_its_own_ceiling(shared_data):
    frame = NuScenesSource(shared_data("nuscenes_scene0061_1kf"))[0]
    scores = LidarRayScores()
    scores.add(sweep_as_labels(frame), returns_of(frame))
    report = scores.report()
    assert report["left_out"]["own_body"] == 8526  # its roof, and beams without a return
    band = report["above"]["10-20m"]
    assert band["returns"] == 3960 and band["missed"] == 0 and 75 < band["within_1m"] < 95


def test_real_rays_that_start_in_the_road_say_nothing(shared_data):
    """DDAD's points are in the vehicle's frame: from its origin, the road would hide the sweep from itself."""
    frame = NuScenesSource(shared_data("ddad_dgp_scene02/nuscenes_style"))[0]
    found, shares = returns_of(frame), []
    assert not found.placed and 1.4 < found.origin_ego_m[2] < 1.7
    for place in (found.origin_ego_m, np.zeros(3)):
        scores = LidarRayScores()
        scores.add(sweep_as_labels(frame), found._replace(origin_ego_m=place))
        shares.append(scores.report()["above"]["10-20m"]["within_1m"])
    assert shares[0] > 40 and shares[1] < 20


def test_real_kitti_is_scored_on_its_own_grid(shared_data, tmp_path):
    root = shared_data("semantickitti_seq08_10f")
    frame = SemanticKittiSource(root)[3]
    labels = sweep_as_labels(frame, SEMANTIC_KITTI_VOXELS, SEMANTIC_KITTI.free_id)
    np.savez_compressed(tmp_path / "08_000003.npz", pred=labels)
    found = score_lidar_rays(tmp_path, root)
    assert found["frames"] == 1 and found["frames_without_prediction"] == 9 and not found["frames_without_lidar_place"]
    assert found["ground"]["0-10m"]["returns"] > 4000 and found["above"]["10-20m"]["returns"] > 1000
    assert found["above"]["10-20m"]["within_1m"] > 70 and found["above"]["10-20m"]["missed"] == 0
    (tmp_path / "labels" / "08" / "000003").mkdir(parents=True)
    np.savez_compressed(tmp_path / "labels" / "08" / "000003" / "labels.npz", semantics=labels)
    assert json.dumps(score_lidar_rays(tmp_path / "labels", root)) == json.dumps(found)
