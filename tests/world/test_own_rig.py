"""The city seen by a rig of one's own: other lenses show the same streets, and the data set holds the rig as given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")

import cv2
from typer.testing import CliRunner

from occ_core.camera import Camera, Rig
from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput
from occ_core.occupancy import load_occ3d
from occ_core.rig_file import load_rig_file, rig_text
from occ_core.sources.open import open_source
from occ_core.world.city import build_city
from occ_core.world.classes import OWN_BODY
from occ_core.world.lidar import sweep
from occ_core.world.make import read_settings
from occ_core.world.own_rig import own_rig, placed
from occ_core.world.render import RenderedImage, render
from occ_core.world.robots import robot_with
from occ_core.world.saved import load_truth
from occ_core.world.scene import Settings
from occ_core.world.sensors import camera_stamps_us, mounted
from occ_core.world.tracer import Tracer

FISHEYE = (0.04, -0.012, 0.004, -0.001)
BARREL = (-0.3, 0.08, 0.001, -0.001)


def camera(name: str, size: tuple[int, int], focal_px: float, *lens, yaw_deg: float = 0.0) -> Camera:
    k = np.array([[focal_px, 0, size[0] / 2 - 3], [0, focal_px * 1.02, size[1] / 2 + 2], [0, 0, 1]])
    return Camera(name, k, size, mounted((1.2, 0.1, 1.3), np.radians([yaw_deg, 4, 1])), *lens)


def small_rig(blind: np.ndarray | None) -> Rig:
    return Rig(
        (
            replace(camera("front", (96, 60), 80.0, "plumb_bob", BARREL), blind=blind),
            camera("rear_fisheye", (80, 80), 26.0, "equidistant", FISHEYE, yaw_deg=170),
            camera("left", (64, 40), 50.0, yaw_deg=90),
        )
    )


# --- one image -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view_of():
    city = build_city(12, 3.0)
    snapshot = Tracer(city).at(1.0)
    return lambda camera: render(snapshot, camera, city.world_from_ego(1.0) @ camera.ego_from_cam)


@pytest.mark.parametrize(
    "lens",
    [
        camera("fisheye", (160, 120), 55.0, "equidistant", FISHEYE),
        camera("barrel", (160, 100), 90.0, "plumb_bob", BARREL),
    ],
    ids=lambda lens: lens.name,
)
def test_a_lens_shows_what_a_pinhole_in_its_place_sees(view_of, lens):
    """Points of the pinhole's truth lie, by `Camera.project`, where the other image has their depth and class."""
    pinhole = camera("pinhole", (240, 160), 110.0)
    straight, bent = view_of(pinhole), view_of(lens)
    depth_m = straight.depth_m.ravel().astype(np.float64)
    solid = np.flatnonzero(np.isfinite(depth_m))
    points = pinhole.rays(pinhole.pixel_grid()[solid]) * depth_m[solid, None]
    pixels, visible = lens.project(points)
    column, row = np.rint(pixels[visible]).astype(int).T
    same_class = bent.class_id[row, column] == straight.class_id.ravel()[solid][visible]
    assert visible.sum() > 5000 and same_class.mean() > 0.9
    # Between pixels 1 / depth of a plane is all but linear.
    at = pixels[visible].astype(np.float32)
    inverse = cv2.remap(1 / bent.depth_m, at[:, 0], at[:, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    off = np.abs(inverse.ravel() * depth_m[solid][visible] - 1)
    assert np.nanmedian(off) < 0.003 and np.mean(off < 0.02) > 0.75


def test_each_pixel_with_depth_is_where_its_point_projects(view_of):
    lens = camera("fisheye", (120, 120), 34.0, "equidistant", FISHEYE)
    view = view_of(lens)
    pick = np.flatnonzero(np.isfinite(view.depth_m.ravel()))
    directions, _ = lens.directions(lens.pixel_grid()[pick])
    points = directions * (view.depth_m.ravel()[pick] / directions[:, 2])[:, None]
    ahead = directions[:, 2] > 0.1  # beyond it float32 depth times a large factor
    pixels, _ = lens.project(points[ahead])
    assert ahead.sum() > 4000
    np.testing.assert_allclose(pixels, lens.pixel_grid()[pick][ahead], atol=0.05)


def test_where_the_lens_ends_nothing_is_seen_and_beside_it_there_is_no_depth(view_of):
    lens = camera("wide", (120, 120), 28.0, "equidistant", (0.0, 0.0, 0.0, 0.0))
    view = view_of(lens)
    off_axis = np.hypot(*((lens.pixel_grid() - lens.intrinsics[:2, 2]) / lens.intrinsics[[0, 1], [0, 1]]).T)
    angle = np.degrees(off_axis).reshape(120, 120)  # equidistant without coefficients: radius = angle
    assert (view.class_id[angle > 101] == OWN_BODY).all() and (view.class_id[angle < 99] != OWN_BODY).all()
    assert (view.radiance[angle > 101] == 0).all() and (view.radiance[angle < 99].sum(axis=1) > 0).all()
    assert np.isnan(view.depth_m[angle > 91]).all() and not np.isnan(view.depth_m[angle < 89]).any()
    assert (angle > 101).sum() > 500


def test_a_lidar_amid_low_cameras_sees_the_street_around():
    """At 0.8 m it is inside the car whose shadow is cast, and which nobody sees."""
    city = build_city(12, 3.0)
    robot = robot_with(
        Rig((replace(camera("low", (64, 40), 50.0), ego_from_cam=mounted((0.3, 0, 0.5), np.zeros(3))),)), 12
    )
    world_from_lidar = city.world_from_ego(1.0) @ robot.ego_from_lidar
    points = sweep(Tracer(city).at(1.0), world_from_lidar, np.random.default_rng(0), robot.lidar_sees_it)
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    assert robot.ego_from_lidar[2, 3] < 0.9 and len(points) > 10_000
    assert np.histogram(azimuth, 12, (-np.pi, np.pi))[0].min() > 300
    above_road_m = (points[:, :3] @ robot.ego_from_lidar[:3, :3].T + robot.ego_from_lidar[:3, 3])[:, 2]
    near = np.linalg.norm(points[:, :3], axis=1) < 5
    assert abs(np.median(above_road_m[near])) < 0.1


def test_blind_pixels_show_the_robot(view_of):
    blind = np.zeros((40, 64), dtype=np.bool_)
    blind[-8:] = True
    unmasked = camera("left", (64, 40), 50.0)
    view, whole = view_of(replace(unmasked, blind=blind)), view_of(unmasked)
    assert (view.class_id[-8:] == OWN_BODY).all() and np.isnan(view.depth_m[-8:]).all()
    assert np.array_equal(view.class_id[:-8], whole.class_id[:-8]) and isinstance(view, RenderedImage)
    assert view.radiance[-8:].max() < 0.05


# --- a data set ------------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, ["world", "make", *map(str, arguments)])


@pytest.fixture(scope="module")
def rig_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rig")
    mask = np.zeros((60, 96), dtype=np.uint8)
    mask[-12:, 20:70] = 255
    cv2.imwrite(str(folder / "bonnet.png"), mask)
    (folder / "mine.yaml").write_text(rig_text(small_rig(None), {"front": "/front/image_raw"}, {"front": "bonnet.png"}))
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def world(rig_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "city"
    result = run(out, "--rig", rig_file, "--keyframes", 2, "--seed", 3, "--sweeps", "--rate", 4, "--workers", 1)
    assert result.exit_code == 0, result.output
    return out


def same(found: Camera, given: Camera) -> None:
    assert (found.name, found.size, found.distortion_model) == (given.name, given.size, given.distortion_model)
    assert found.distortion == given.distortion and np.array_equal(found.intrinsics, given.intrinsics)
    np.testing.assert_allclose(found.ego_from_cam, given.ego_from_cam, atol=1e-6)  # tables hold micrometres
    assert (found.blind is None) == (given.blind is None)
    assert found.blind is None or np.array_equal(found.blind, given.blind)


def test_the_data_set_has_the_rig_of_the_file(world, rig_file):
    given = {entry.camera.name: entry.camera for entry in load_rig_file(rig_file)}
    assert given["front"].blind is not None and given["rear_fisheye"].distortion == FISHEYE
    source = open_source(world)
    assert len(source) == 2
    for frame in source:
        assert set(frame.rig.names) == set(given)
        for found in frame.rig:
            same(found, given[found.name])
            assert frame.images[found.name].shape[1::-1] == found.size
            _, class_id = load_truth(world, frame.scene, frame.token, found.name)
            if found.blind is not None:
                assert (class_id[found.blind] == OWN_BODY).all()
        grid = load_occ3d(world / "gts" / frame.scene / frame.token / "labels.npz")
        assert 0.01 < grid.observed.mean() < 0.9 and grid.occupied.sum() > 3000
    assert len(list((world / "sweeps" / "left").glob("*.jpg"))) == 1  # 4 Hz: one between two keyframes


def test_a_recording_gives_its_rig(world):
    found = own_rig("nuscenes", world)
    for camera_of_world in open_source(world)[0].rig:
        same(found[camera_of_world.name], camera_of_world)


def test_the_same_command_goes_on_and_another_rig_is_refused(world, rig_file, tmp_path):
    usual = "--keyframes", 2, "--seed", 3, "--sweeps", "--rate", 4, "--workers", 1
    assert run(world, "--rig", rig_file, *usual).exit_code == 0
    result = run(world, "--rig", "random", *usual)
    assert isinstance(result.exception, InvalidInput) and "asked for random" in str(result.exception)
    (tmp_path / "other.yaml").write_text(rig_text(small_rig(None), {}, {}))
    with pytest.raises(InvalidInput, match=r"already holds a data set made with rig [0-9a-f]{16} \(asked for"):
        CliRunner().invoke(
            app, ["world", "make", str(world), "--rig", str(tmp_path / "other.yaml"), *map(str, usual)],
            catch_exceptions=False, standalone_mode=False,
        )  # fmt: skip
    assert read_settings(world).camera_hz == 4


def test_a_bag_made_of_it_has_the_lenses_too(world):
    from occ_core.bags.messages import camera_info
    from occ_core.sources.nuscenes import camera_of
    from occ_core.sources.nuscenes_tables import NuScenesTables

    record = next(r for r in NuScenesTables(world).records("scene-0001") if r.channel == "rear_fisheye")
    info = camera_info(0, "rear", camera_of(record))
    assert info.distortion_model == "equidistant" and tuple(info.d) == FISHEYE


def test_teachers_know_no_depth_of_the_robot_itself(world):
    from occ_core.teachers.oracle import Oracle
    from occ_core.teachers.realistic import Realistic

    frame = open_source(world)[0]
    pinholes = replace(frame, images={name: frame.images[name] for name in ("front", "left")})
    blind = frame.rig["front"].blind
    for teacher in (Oracle(world), Realistic(world)):
        unknown = np.isnan(teacher.depth(pinholes)["front"].depth_m)
        assert blind.sum() == 600 and np.array_equal(unknown, blind)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_said_in_one_line(rig_file, tmp_path):
    with pytest.raises(InvalidInput, match="--rig must be nuscenes, random or a rig file, and there is no file 'tank'"):
        own_rig("tank", None)
    with pytest.raises(InvalidInput, match="give one of them"):
        own_rig("random", tmp_path)
    buried = replace(camera("front", (64, 40), 50.0), ego_from_cam=mounted((1, 0, -0.2), np.zeros(3)))
    with pytest.raises(InvalidInput, match=r"mine: camera 'front' is -0.20 m above the ego frame's origin"):
        placed(Rig((buried,)), "mine")
    with pytest.raises(InvalidInput, match="camera 'LIDAR_TOP': a name has"):
        placed(Rig((camera("LIDAR_TOP", (64, 40), 50.0),)), "mine")
    assert placed(Rig((camera("front/color", (64, 40), 50.0),)), "mine").names == ("front_color",)
    with pytest.raises(InvalidInput, match="camera_hz must be even"):
        Settings(camera_hz=5)
    with pytest.raises(InvalidInput, match="--size 90x160"):
        CliRunner().invoke(
            app, ["world", "make", str(tmp_path / "w"), "--rig", str(rig_file), "--size", "90x160"],
            catch_exceptions=False, standalone_mode=False,
        )  # fmt: skip


def test_a_lens_in_the_tables_that_is_none_is_named(world, tmp_path):
    import json
    import shutil

    from occ_core.sources.nuscenes_tables import NuScenesTables

    for name in ("v1.0-mini", "maps"):
        shutil.copytree(world / name, tmp_path / name)
    table = tmp_path / "v1.0-mini" / "calibrated_sensor.json"
    rows = json.loads(table.read_text())
    next(row for row in rows if "distortion" in row)["distortion"] = ["much"]
    table.write_text(json.dumps(rows))
    with pytest.raises(CorruptInput, match=r"calibrated_sensor.json: row '\w+': distortion must be numbers"):
        NuScenesTables(tmp_path).records("scene-0001")


def test_images_come_as_often_as_asked():
    stamps = [stamp for stamp, _, _ in camera_stamps_us(20_000, 3, True, per_keyframe=5)]
    assert len(stamps) == 11 and set(np.diff(stamps)) == {100_000}
