"""Depth from motion: a painted room whose depth is a formula, seen from poses that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_nuscenes
from painted_room import FOCAL_PX, H, K, W, at, world_from_cam
from teacher_fixtures import make_frame

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.geometry import pose
from occ_core.sources.nuscenes import NuScenesSource
from occ_core.taxonomy import OCC3D
from occ_core.teachers.base import DepthMap, seen_key
from occ_core.teachers.load import load_teachers
from occ_core.teachers.motion import WIDTH_PX, DepthMatch, MotionDepth, above_road, depth_of, in_lens, pinhole_view
from occ_core.teachers.nearby_images import NearbyImages
from occ_core.teachers.plane_sweep import View, looked_up


def judged(found: DepthMatch, truth_m: np.ndarray) -> tuple[float, np.ndarray]:
    known = np.isfinite(found.depth_m)
    return float(known.mean()), np.abs(found.depth_m - truth_m)[known] / truth_m[known]


@pytest.mark.parametrize(("look", "step_m", "least_share"), [("ahead", 2.0, 0.5), ("left", 0.8, 0.8)])
def test_depth_of_a_painted_room(look, step_m, least_share):
    own, truth_m = at(look, 0.0)
    share, error = judged(depth_of(own, [[at(look, -step_m)[0]], [at(look, step_m)[0]]]), truth_m)
    assert share > least_share and np.median(error) < 0.025 and np.quantile(error, 0.9) < 0.1


def test_metres_are_those_of_the_poses():
    """Poses twice as far apart, the same images: everything is twice as far away."""
    own, truth_m = at("left", 0.0)
    other, _ = at("left", 0.8)
    own = View(own.grey, K, own.world_from_cam)
    twice = View(other.grey, K, world_from_cam("left", (1.6, 0, 1.5)))
    found = depth_of(own, [[twice]]).depth_m
    assert 1.95 < np.nanmedian(found / truth_m) < 2.05


def test_nothing_is_told_of_what_stands_still_or_has_no_texture():
    own, _ = at("left", 0.0)
    near, _ = at("left", 0.02)
    assert np.isnan(depth_of(own, [[near]]).depth_m).mean() > 0.95
    assert np.isnan(depth_of(own, []).depth_m).all()
    flat = [View(np.full((H, W), 90, np.uint8), K, view.world_from_cam) for view in (own, at("left", 0.8)[0])]
    assert np.isnan(depth_of(flat[0], [[flat[1]]]).depth_m).all()


def test_straight_ahead_is_not_told():
    """Where the robot drives to, nothing moves in the image, whatever its depth."""
    own, _ = at("ahead", 0.0)
    found = depth_of(own, [[at("ahead", -0.8)[0]], [at("ahead", 0.8)[0]]]).depth_m
    assert np.isnan(found[34:38, 62:66]).all()


def test_what_walks_by_itself_is_left_out_or_right():
    """A board that walks towards the road: its pixels leave their epipolar lines, and would get some wrong depth."""
    places = [np.array([0.0, 9.0]), np.array([0.0, 8.0]), np.array([0.0, 7.0])]
    (before, _), (own, truth_m), (after, _) = (
        at("left", x_m, walker_m=place) for x_m, place in zip((-0.8, 0.0, 0.8), places, strict=True)
    )
    board = np.isclose(truth_m, 8.0)
    found = depth_of(own, [[before], [after]]).depth_m
    with np.errstate(invalid="ignore"):
        wrong = np.abs(found - truth_m) / truth_m > 0.25
    assert board.sum() > 300 and wrong[board].mean() < 0.1
    assert np.isfinite(found[~board]).mean() > 0.6


def test_a_lens_that_distorts_has_the_depths_of_its_own_pixels():
    """The ideal view of a distorted image, and back: each pixel of the lens has the depth of what it shows."""
    lens = Camera("cam", K, (W, H), pose((0, 0, 1.5)), "plumb_bob", (-0.25, 0.05, 0, 0))
    rays = lens.rays(lens.pixel_grid())
    slope = rays[:, 0].reshape(H, W)  # of a wall that turns away: depth is a formula of the ray
    image = np.clip(127 + 100 * slope, 0, 255).astype(np.uint8)
    view = pinhole_view(lens, np.repeat(image[..., None], 3, axis=2), np.eye(4), lens, (W, H))
    ideal = (np.indices((H, W))[1] - K[0, 2]) / FOCAL_PX
    inner = (slice(12, -12), slice(20, -20))
    assert np.abs(view.grey[inner] - (127 + 100 * ideal)[inner]).max() < 3
    depth_m, confidence = in_lens(DepthMatch(10 + ideal.astype(np.float32), np.zeros((H, W), np.float32)), lens, (W, H))
    known = np.isfinite(depth_m)
    assert known.mean() > 0.7 and np.abs(depth_m - 10 - slope)[known].max() < 0.02 and (confidence[known] == 1).all()


def test_below_the_road_there_is_nothing():
    """A wall that is taken for far: its foot would lie under the road; what is on the road stays."""
    image = np.zeros((H, W, 3), np.uint8)
    frame = make_frame({"CAM": image}, focal_px=FOCAL_PX)
    camera = frame.rig["CAM"]
    raised = replace(camera, ego_from_cam=pose((0, 0, 1.5)) @ camera.ego_from_cam)
    frame = replace(frame, rig=Rig((raised,)))
    down = (np.indices((H, W))[0] - H / 2) / FOCAL_PX
    with np.errstate(divide="ignore"):
        road_m = np.where(down > 0, 1.5 / down, 40.0).clip(max=40.0)
    mirrored = road_m.copy()
    mirrored[60:70, 40:60] *= 3
    given = DepthMap(mirrored.astype(np.float32), np.ones((H, W), np.float32))
    found = above_road(frame, {"CAM": given})["CAM"]
    assert np.isnan(found.depth_m[60:70, 40:60]).all() and (found.confidence[60:70, 40:60] == 0).all()
    assert np.isnan(found.depth_m).sum() == 200


def test_a_drive_in_files(tmp_path):
    """Through the data set: the neighbours are found, their poses are those of their own stamps."""
    small_nuscenes.make(tmp_path, keyframes=3, sweeps=0, boxes=False, truth=False)
    frame = NuScenesSource(tmp_path)[1]
    before, after = NearbyImages(tmp_path).around(frame, "CAM_FRONT")
    own_m = frame.ego_from_camera_at_its_stamp("CAM_FRONT")[:3, 3]
    moved = [np.linalg.inv(frame.world_from_ego) @ s.world_from_cam for s in (before[0], after[0])]
    assert [len(before), len(after)] == [1, 1]
    assert -4.5 < moved[0][0, 3] - own_m[0] < -3.5 < 3.5 < moved[1][0, 3] - own_m[0] < 4.5
    teacher = load_teachers("lidar+motion", tmp_path, OCC3D).depth
    maps = teacher.depth(frame)
    assert set(maps) == set(frame.images) and all(m.size[0] <= WIDTH_PX[1] for m in maps.values())
    key, moved_away = seen_key(teacher, frame), pose((1.0, 0, 0)) @ frame.camera_world_from_ego["CAM_FRONT"]
    other = replace(frame, camera_world_from_ego=frame.camera_world_from_ego | {"CAM_FRONT": moved_away})
    assert seen_key(teacher, frame) == key != seen_key(teacher, other)
    with pytest.raises(InvalidInput, match="odometry"):
        MotionDepth(tmp_path).depth(replace(frame, has_pose=False))


def test_looked_up_is_the_projection():
    own, other = at("left", 0.0)[0], at("left", 1.0)[0]
    pixels, there_m = looked_up(own, other, np.full((H, W), 9.0))
    assert np.allclose(pixels[10, 50], (50 - FOCAL_PX * 1.0 / 9.0, 10)) and np.allclose(there_m, 9.0)
