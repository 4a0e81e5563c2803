"""Robots that vary from city to city: within their ranges, exact about their bodies, read by all that follows."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")

from model_fixtures import SMALL
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import InvalidInput
from occ_core.geometry import apply, inverse
from occ_core.occupancy import load_occ3d
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.world.city import build_city
from occ_core.world.classes import OWN_BODY
from occ_core.world.lidar import sweep
from occ_core.world.make import make_world, read_settings
from occ_core.world.render import render
from occ_core.world.robots import (
    ASPECT_SHARES,
    FOCAL,
    HEIGHTS_M,
    MOST_HIDDEN,
    hidden_shares,
    nuscenes_car,
    random_robot,
)
from occ_core.world.scene import Settings
from occ_core.world.sensors import CAMERAS, nuscenes_rig
from occ_core.world.solids import Solids
from occ_core.world.tracer import Tracer
from occ_core.world.truth import occupancy_truth

SIZE = (480, 270)
TWO = Settings(scenes=2, seed=36, width=96, height=54, keyframes=2, rig="random")  # robots of 3 and of 1 camera


@pytest.fixture(scope="module")
def robots():
    return [random_robot(SIZE, seed) for seed in range(150)]


def test_a_seed_is_one_robot_and_another_seed_another(robots):
    again = random_robot(SIZE, 7)
    assert again.rig.fingerprint == robots[7].rig.fingerprint and again.lag_us == robots[7].lag_us
    assert np.array_equal(again.ego_from_lidar, robots[7].ego_from_lidar)
    assert np.array_equal(again.body.parent_from_solid, robots[7].body.parent_from_solid)
    assert len({robot.rig.fingerprint for robot in robots}) == len(robots)


def test_robots_vary_within_their_ranges(robots):
    assert {len(robot.rig) for robot in robots} == set(range(1, 9))
    cameras = [camera for robot in robots for camera in robot.rig]
    focal = np.array([c.intrinsics[0, 0] / c.size[0] / FOCAL for c in cameras])
    assert 0.5 <= focal.min() < 0.55 and 1.9 < focal.max() <= 2.0
    height_m = np.array([c.ego_from_cam[2, 3] for c in cameras])
    assert height_m.min() == HEIGHTS_M[0] and height_m.max() == HEIGHTS_M[1]
    assert ((height_m > 0.8) & (height_m < 1.2)).any() and ((height_m > 1.4) & (height_m < 1.7)).any()
    pitch_deg = np.degrees(np.arcsin([c.ego_from_cam[2, 2] for c in cameras]))
    assert -8 <= pitch_deg.min() < -5 and 2 < pitch_deg.max() <= 8
    off = np.array([(c.intrinsics[:2, 2] - (np.array(c.size) - 1) / 2) / c.size for c in cameras])
    assert (np.abs(off) <= (0.04, 0.06)).all() and (np.abs(off).max(axis=0) > (0.035, 0.055)).all()
    for aspect in ASPECT_SHARES:
        sizes = {robot.rig.cameras[0].size for robot in robots}
        assert any(abs(w / h - aspect) < 0.02 for w, h in sizes)
    assert all(abs(c.size[0] * c.size[1] / (SIZE[0] * SIZE[1]) - 1) < 0.02 for c in cameras)


def test_first_cameras_look_ahead_and_the_others_follow_clockwise(robots):
    for robot in robots:
        forward = np.stack([c.ego_from_cam[:2, 2] for c in robot.rig])
        yaw_deg = np.degrees(np.arctan2(forward[:, 1], forward[:, 0]))
        assert abs(yaw_deg[0]) == np.abs(yaw_deg).min()
        assert (np.diff((yaw_deg[0] - yaw_deg) % 360) >= 0).all()
        assert robot.rig.names == tuple(f"CAM_{i}" for i in range(len(yaw_deg)))
        # Where the LiDAR's turn passes: straight ahead as nuScenes' front camera, to the right later.
        lag_us = np.array(list(robot.lag_us.values()))
        assert ((lag_us > 0) & (lag_us <= 50_000)).all()
        expected = 35_440 + yaw_deg / 360 * 50_000
        assert np.allclose((lag_us - expected + 25_000) % 50_000, 25_000, atol=60)


def test_half_of_the_robots_see_themselves_and_none_too_much(robots):
    shares = [max(hidden_shares(robot.body, list(robot.rig))) for robot in robots]
    assert max(shares) <= MOST_HIDDEN
    assert 0.3 < np.mean(np.array(shares) > 0.01) < 0.7


def test_nuscenes_car_is_what_it_was():
    car = nuscenes_car(SIZE, 3)
    assert car.body is None and car.rig.fingerprint == nuscenes_rig(SIZE, 3).fingerprint
    assert car.lag_us == {name: entry[3] for name, entry in CAMERAS.items()}
    assert "rig" not in Settings().fixed() and Settings(rig="random").fixed()["rig"] == "random"
    with pytest.raises(InvalidInput, match="rig must be nuscenes or random, got 'tank'"):
        Settings(rig="tank")


# --- the own body ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene():
    """A city, a robot whose first camera sees itself, and the snapshot."""
    seed = next(
        s for s in range(100, 300) if hidden_shares((r := random_robot((320, 180), s)).body, [*r.rig])[0] > 0.15
    )
    city, robot = build_city(seed, 3.0), random_robot((320, 180), seed)
    return city, robot, Tracer(city, robot.body).at(1.0)


def test_own_body_is_seen_where_it_is_and_has_no_class(scene):
    city, robot, snapshot = scene
    camera = robot.rig["CAM_0"]
    view = render(snapshot, camera, city.world_from_ego(1.0) @ camera.ego_from_cam)
    mine = view.class_id == OWN_BODY
    assert mine.mean() == pytest.approx(hidden_shares(robot.body, [camera])[0], abs=0.03)
    assert (view.instance[mine] == -1).all()
    pick = np.flatnonzero(mine)[:: max(1, int(mine.sum()) // 300)]
    rays = apply(camera.ego_from_cam, camera.rays(camera.pixel_grid()[pick])) - camera.ego_from_cam[:3, 3]
    first_m = [_first_inside_m(robot.body, camera.ego_from_cam[:3, 3], ray) for ray in rays]
    assert np.mean(np.abs(first_m - view.depth_m.ravel()[pick]) < 0.02) > 0.95
    assert view.depth_m[mine].max() < 6.0


def test_lidar_does_not_return_from_the_own_body(scene):
    city, robot, snapshot = scene
    points = sweep(snapshot, city.world_from_ego(1.0) @ robot.ego_from_lidar, np.random.default_rng(0))
    inside = apply(robot.ego_from_lidar, points[:, :3].astype(np.float64))
    lower, upper = robot.body.bounds_m()
    box = (inside > lower.min(axis=0) - 0.05).all(axis=1) & (inside < upper.max(axis=0) + 0.05).all(axis=1)
    assert len(points) > 5000 and not (box & (inside[:, 2] > 0.3)).any()


def test_own_body_is_in_no_voxel_and_what_it_hides_is_not_observed(scene):
    city, robot, _ = scene
    arguments = city, 1.0, robot.rig, robot.ego_from_lidar
    bodiless, clothed = occupancy_truth(*arguments), occupancy_truth(*arguments, body=robot.body)
    assert np.array_equal(bodiless.labels, clothed.labels) and np.array_equal(bodiless.mask_lidar, clothed.mask_lidar)
    assert not (clothed.observed & ~bodiless.observed).any()
    lost = np.argwhere(bodiless.observed & ~clothed.observed & (bodiless.labels != 17))
    assert len(lost) > 20
    # All corners of a lost voxel that are in a camera's image are behind the body, or at its outline.
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    hidden = []
    for voxel in lost:
        points = np.array(bodiless.grid.origin_m) + (voxel + corners) * bodiless.grid.voxel_size_m
        for camera in robot.rig:
            _, inside = camera.project(apply(inverse(camera.ego_from_cam), points))
            hidden += [_is_behind(robot.body, camera.ego_from_cam[:3, 3], p) for p in points[inside]]
    assert np.mean(hidden) > 0.5


def _is_behind(body: Solids, eye_m: np.ndarray, point_m: np.ndarray) -> bool:
    return _first_inside_m(body, eye_m, point_m - eye_m) < 1.0


def _first_inside_m(body: Solids, eye_m: np.ndarray, ray: np.ndarray) -> float:
    """In lengths of the ray, by points every 5 mm of its first 6 m; inf where none is inside."""
    along = np.arange(0, 6.0, 0.005) / np.linalg.norm(ray)
    inside = body.contain(eye_m + ray * along[:, None])
    return float(along[inside.argmax()]) if inside.any() else np.inf


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "city"
    make_world(out, TWO, show_progress=False)
    return out


def test_devkit_and_source_read_rigs_that_differ_by_scene(world):
    devkit = pytest.importorskip("nuscenes.nuscenes", reason="another reader of this layout; `make setup` installs it")
    nusc = devkit.NuScenes("v1.0-mini", str(world), verbose=False)
    robots = [random_robot((TWO.width, TWO.height), TWO.city_seed(i)) for i in range(2)]
    assert [len(robot.rig) for robot in robots] == [3, 1]
    for sample in nusc.sample:
        robot = robots[int(nusc.get("scene", sample["scene_token"])["name"][-1]) - 1]
        assert set(sample["data"]) == {*robot.rig.names, "LIDAR_TOP"}
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["timestamp"]
        for camera in robot.rig:
            path, _, intrinsics = nusc.get_sample_data(sample["data"][camera.name])
            row = nusc.get("sample_data", sample["data"][camera.name])
            assert Path(path).is_file() and (row["width"], row["height"]) == camera.size
            assert np.allclose(intrinsics, camera.intrinsics)
            assert lidar - row["timestamp"] == robot.lag_us[camera.name]
    assert {s["channel"] for s in nusc.sensor} == {*robots[0].rig.names, "LIDAR_TOP"}
    frames = list(NuScenesSource(world))
    assert [len(frame.rig) for frame in frames] == [3, 3, 1, 1]
    for frame, robot in zip(frames, np.repeat(robots, 2), strict=True):
        for camera in frame.rig:
            assert np.allclose(camera.ego_from_cam, robot.rig[camera.name].ego_from_cam, atol=1e-5)
            assert frame.images[camera.name].shape[1::-1] == camera.size


def test_settings_are_kept_and_another_rig_is_refused(world, tmp_path):
    assert read_settings(world) == TWO
    with pytest.raises(InvalidInput, match=r"rig random \(asked for nuscenes\)"):
        make_world(world, Settings(2, 36, 96, 54, 2), show_progress=False)
    record = json.loads((world / "world.json").read_text())
    del record["rig"]
    (tmp_path / "world.json").write_text(json.dumps(record))  # as older versions wrote it
    assert read_settings(tmp_path).rig == "nuscenes"


def run(*arguments) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("recipe", "teacher"), [("best", "realistic"), ("lidar", "realistic+lidar")])
def test_labels_and_training_batches_of_different_rigs(world, tmp_path, recipe, teacher):
    pytest.importorskip("torch", reason="training needs torch")
    from nano_fixtures import drawn, open_scenes

    from occ_core.training.config import TrainingConfig

    run("labels", "make", world, tmp_path / "labels", "--recipe", recipe, "--teacher", teacher, "--workers", 1)
    files = sorted((tmp_path / "labels").glob("*/*/labels.npz"))
    assert len(files) == 4
    assert all(load_occ3d(path).occupied.sum() > 100 for path in files)
    grid = {"grid_shape": (200, 200, 16), "grid_origin_m": (-40.0, -40.0, -1.0), "voxel_size_m": 0.4}
    config = SMALL.model_copy(update=grid)
    scenes = open_scenes(world, str(tmp_path / "labels"), config, tmp_path / "cache")
    assert [scene["images"].shape[:2] for scene in scenes] == [(2, 3), (2, 1)]
    training = TrainingConfig(model=config, batch_size=2, camera_dropout=0.0, nano={"columns": 50, "image_batch": 8})
    batches = drawn(scenes, training)
    _nothing_is_taught_on_the_own_body(world, scenes[0])
    counts = {len(next(batches).rig_images.images) for _ in range(8)}
    assert 4 in counts  # three cameras and one
    assert next(drawn(scenes, training, "images")).rig_images.images.shape == (8, 64, 128, 3)  # all images of both rigs


def _nothing_is_taught_on_the_own_body(world: Path, scene) -> None:
    masks = sorted((world / "masks" / "scene-0001").glob("*.png"))
    assert [path.stem for path in masks] == ["CAM_0", "CAM_1", "CAM_2"]
    for path in masks:
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for token in scene.tokens:
            with np.load(world / "truth" / "scene-0001" / token / f"{path.stem}.npz") as arrays:
                assert ((arrays["class_id"] == OWN_BODY) == (mask > 0)).mean() > 0.995  # all but outlines
    assert (mask[-5:] > 0).all()  # of the last camera, as many rows as one row of features covers
    for name in ("depth", "pixel_class"):
        assert (scene[name][:, 2, -1] == 255).all() and (scene[name][:, 2, :-1] != 255).any()


def test_a_picture_shows_rigs_of_any_size(world, tmp_path):
    run("world", "show", world, "--scene", "scene-0002", "-o", tmp_path / "look.png")
    assert (tmp_path / "look.png").stat().st_size > 10_000
