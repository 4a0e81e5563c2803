"""Lenses that are no pinhole: the fisheye's own mathematics, and the pinhole views made of it, against OpenCV."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from model_fixtures import camera

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.fisheye import MOST_RAD
from occ_core.frame import Frame
from occ_core.geometry import apply, inverse
from occ_core.network_input.pinhole import BAND_DEG, ViewImages, expanded, pinhole_frame, pinhole_rig, views_of

D = (0.05, -0.01, 0.002, -0.001)
SIZE = (352, 128)


def fisheye(name="fish", yaw_deg=0.0, size=(320, 240), focal_px=95.0, d=D, pitch_deg=0.0) -> Camera:
    """About 190 degrees wide."""
    level = camera(name, yaw_deg, size, focal_px)
    p = math.radians(pitch_deg)
    down = np.eye(4)
    down[:3, :3] = [[1, 0, 0], [0, math.cos(p), math.sin(p)], [0, -math.sin(p), math.cos(p)]]
    return replace(level, ego_from_cam=level.ego_from_cam @ down, distortion_model="equidistant", distortion=d)


def points_around(count=4000, seed=0) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True) * np.linspace(0.5, 40, count)[:, None]


@pytest.mark.parametrize("d", [D, (0.0, 0.0, 0.0, 0.0), (-0.02, 0.004, 0.0, 0.0)])
def test_before_the_camera_a_fisheye_projects_as_opencv_does(d):
    cam, points = fisheye(d=d), points_around()
    points = points[points[:, 2] > 1e-2]
    pixels, visible = cam.project(points)
    expected, _ = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), cam.intrinsics, np.array(d))
    expected = expected[:, 0]
    assert visible.sum() > 1000
    assert np.allclose(pixels[visible], expected[visible], atol=1e-7)
    inside = (expected > -0.5).all(1) & (expected < np.array(cam.size) - 0.5).all(1)
    assert np.array_equal(visible, inside)


def test_beside_and_behind_the_camera_it_goes_on_up_to_its_field():
    cam = fisheye(size=(640, 640))
    for angle_deg, seen in ((85, True), (95, True), (99, True), (101, False), (179, False)):
        theta = math.radians(angle_deg)
        pixels, visible = cam.project(np.array([[-3 * math.sin(theta), 0, 3 * math.cos(theta)]]))
        assert visible[0] == seen
        if seen:
            radius = 95 * sum(k * theta**n for k, n in zip((1, *D), (1, 3, 5, 7, 9), strict=True))
            assert np.allclose(pixels[0], (319.5 - radius, 319.5))
    turned_back = fisheye(size=(640, 640), d=(-0.2, 0.0, 0.0, 0.0))  # grows up to 74 degrees only
    _, visible = turned_back.project(np.array([[math.sin(a), 0, math.cos(a)] for a in (1.25, 1.35)]))
    assert visible.tolist() == [True, False]


def test_directions_are_the_inverse_of_projection():
    cam, points = fisheye(), points_around()
    pixels, visible = cam.project(points)
    directions, valid = cam.directions(pixels[visible])
    assert valid.all() and (points[visible, 2] < 0).any()
    assert np.allclose(directions, points[visible] / np.linalg.norm(points[visible], axis=1, keepdims=True), atol=1e-9)
    corner, valid = fisheye(size=(900, 900)).directions(np.array([[0.0, 0.0], [449.5, 449.5]]))
    assert valid.tolist() == [False, True] and np.allclose(corner[1], (0, 0, 1))
    assert np.allclose(math.acos(corner[0, 2]), MOST_RAD) and np.allclose(np.linalg.norm(corner, axis=1), 1)


def test_an_ideal_fisheye_is_no_pinhole():
    cam = fisheye(d=(0, 0, 0, 0))
    assert cam.distortion_model == "equidistant"
    assert np.allclose(cam.project(np.array([[1.0, 0, 1.0]]))[0], (159.5 + 95 * math.pi / 4, 119.5))


def test_a_narrow_lens_is_one_view_as_opencv_rectifies_it():
    rng = np.random.default_rng(1)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8), (0, 0), 3)
    barrel = camera("b", 0, (320, 240), 260.0, distortion_model="plumb_bob", distortion=(-0.25, 0.05, 0.001, 0.0))
    narrow = fisheye("n", focal_px=300.0)
    for lens in (barrel, narrow):
        (view,) = views_of(lens, SIZE)
        k = view.camera.intrinsics
        library = cv2.fisheye if lens is narrow else cv2
        maps = library.initUndistortRectifyMap(
            lens.intrinsics, np.array(lens.distortion), np.eye(3), k, (320, 240), cv2.CV_32FC1
        )
        expected = cv2.remap(picture, *maps, cv2.INTER_LINEAR)
        got = view.image(picture)
        shown = ((view.pixels > 1) & (view.pixels < (318, 238))).all(axis=2)  # borders are continued in other ways
        assert shown.mean() > 0.8 and np.abs(got.astype(int) - expected)[shown].max() <= 2
        assert view.camera.distortion_model == "none" and np.array_equal(view.camera.ego_from_cam, lens.ego_from_cam)


@pytest.mark.parametrize("pitch_deg", [0, 35])
def test_a_wide_lens_gets_level_views_that_show_what_it_sees_of_the_ground_around(pitch_deg):
    lens = fisheye(yaw_deg=70, pitch_deg=pitch_deg, size=(640, 480), focal_px=190.0)
    views = views_of(lens, SIZE)
    assert 2 <= len(views) <= 6
    points_m = points_around(20000) + lens.ego_from_cam[:3, 3]
    pixels, visible = lens.project(apply(inverse(lens.ego_from_cam), points_m))
    towards = points_m - lens.ego_from_cam[:3, 3]
    elevation = np.degrees(np.arcsin(towards[:, 2] / np.linalg.norm(towards, axis=1)))
    band = visible & (elevation > BAND_DEG[0] + 1) & (elevation < BAND_DEG[1] - 1)
    shown = np.zeros(len(points_m), bool)
    for view in views:
        level = view.camera.ego_from_cam[:3, 0]
        assert abs(level[2]) < 1e-9 and view.camera.size[0] * SIZE[1] == view.camera.size[1] * SIZE[0]
        at, seen = view.camera.project(apply(inverse(view.camera.ego_from_cam), points_m))
        assert not (seen & ~visible).sum() > 0.002 * visible.sum()  # a view shows nothing that the lens does not
        column, row = np.rint(at[seen & visible]).astype(int).T
        assert np.abs(view.pixels[row, column] - pixels[seen & visible]).max() < 3.0
        shown |= seen
    assert (shown & band).sum() > 0.9 * band.sum()


def test_a_spot_in_the_fisheyes_image_is_where_the_view_says():
    lens = fisheye(yaw_deg=-40, size=(640, 480), focal_px=190.0)
    views, found = views_of(lens, SIZE), 0
    for azimuth_deg in (-75, -30, 10, 60):  # against the lens' axis
        a = math.radians(azimuth_deg)
        point_cam = np.array([[5 * math.sin(a), 0.9, 5 * math.cos(a)]])
        spot, _ = cv2.fisheye.projectPoints(
            point_cam[:, None], np.zeros(3), np.zeros(3), lens.intrinsics, np.array(lens.distortion)
        )
        image = np.zeros((480, 640, 3), dtype=np.uint8)
        cv2.circle(image, tuple(np.rint(spot[0, 0] * 16).astype(int).tolist()), 4 * 16, (255,) * 3, -1, cv2.LINE_AA, 4)
        point_ego = apply(lens.ego_from_cam, point_cam)
        for view in views:
            p = inverse(view.camera.ego_from_cam) @ np.append(point_ego, 1)
            u, v = (view.camera.intrinsics @ p[:3])[:2] / p[2]
            w, h = view.camera.size
            if p[2] > 0 and 20 < u < w - 20 and 20 < v < h - 20:
                seen = view.image(image)[..., 0].astype(float)
                vs, us = np.mgrid[:h, :w]
                at = (us * seen).sum() / seen.sum(), (vs * seen).sum() / seen.sum()
                assert math.hypot(at[0] - u, at[1] - v) < 0.012 * w
                found += 1
    assert found >= 3


def test_a_smaller_version_of_the_image_gives_the_same_view():
    lens = fisheye(size=(640, 480), focal_px=190.0)
    picture = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 255, (480, 640, 3), dtype=np.uint8), (0, 0), 12)
    half = cv2.resize(picture, (320, 240), interpolation=cv2.INTER_AREA)
    for view in views_of(lens, SIZE):
        shown = ~view.camera.blind if view.camera.blind is not None else np.ones(view.camera.size[::-1], bool)
        assert np.abs(view.image(half).astype(int) - view.image(picture))[shown].mean() < 1.5


def test_what_the_lens_does_not_see_is_blind_in_its_views():
    lens = fisheye(size=(640, 480), focal_px=190.0)
    own = np.zeros((480, 640), bool)
    own[330:] = True
    masked = replace(lens, blind=own)
    hidden = 0
    for view in views_of(masked, SIZE):
        w, h = view.camera.size
        u, v = np.meshgrid(np.arange(w), np.arange(h))
        rays = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3) @ np.linalg.inv(view.camera.intrinsics).T
        turn = lens.ego_from_cam[:3, :3].T @ view.camera.ego_from_cam[:3, :3]
        pixels, seen = lens.project(rays @ turn.T)
        seen[seen] = np.rint(pixels[seen, 1]) < 330
        blind = np.zeros((h, w), bool) if view.camera.blind is None else view.camera.blind
        assert (blind.ravel() != ~seen).mean() < 1e-3
        hidden += not seen.all()
    assert hidden >= 2
    with pytest.raises(InvalidInput, match="'fish': no pixel"):
        views_of(replace(lens, blind=np.ones((480, 640), bool)), SIZE)


def test_a_frame_of_mixed_lenses_becomes_one_of_pinholes():
    lens, straight = fisheye(size=(640, 480), focal_px=190.0), camera("f", 0)
    rig = Rig((lens, straight))
    pose = np.eye(4)
    pose[0, 3] = 3.0
    images = {c.name: np.full((c.size[1], c.size[0], 3), 90, np.uint8) for c in rig}
    frame = Frame(5, np.eye(4), rig, images, {"fish": 3, "f": 4}, {"fish": pose, "f": np.eye(4)})
    flat = pinhole_frame(frame, SIZE)
    names = [view.camera.name for view in views_of(lens, SIZE)]
    assert flat.rig.names == (*names, "f") and set(flat.images) == {*names, "f"}
    assert all(flat.camera_stamp_ns[name] == 3 and flat.camera_world_from_ego[name][0, 3] == 3.0 for name in names)
    assert pinhole_rig(rig, SIZE).fingerprint == flat.rig.fingerprint
    assert pinhole_frame(flat, SIZE) is flat
    moved = frame.rig_at_stamps
    given = ViewImages(np.zeros((len(names), 1, 1, 3), np.uint8), views_of(lens, SIZE))
    _, there = expanded({"fish": given, "f": np.zeros((1, 1, 3), np.uint8)}, moved)
    assert np.allclose([c.ego_from_cam for c in there], [c.ego_from_cam for c in flat.rig_at_stamps])


def test_a_sweep_that_was_not_downloaded_is_not_read_for_views_of_the_images():
    def not_here():
        raise AssertionError("read")

    cam, pose = fisheye(), np.eye(4)
    images = {"fish": np.zeros((240, 320, 3), np.uint8)}
    frame = Frame(1, pose, Rig((cam,)), images, {"fish": 1}, {"fish": pose}, lidar=not_here)
    flat = pinhole_frame(frame, SIZE)
    assert len(flat.rig) > 1 and flat.with_fields(token="a").token == "a"
    with pytest.raises(AssertionError, match="read"):
        flat.lidar  # noqa: B018
