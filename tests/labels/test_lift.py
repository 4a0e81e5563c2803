"""Lifting against numpy twins that group all points by brute force, and analytic cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from label_scenes import CAR, OPTICAL, ROAD, SMALL_GRID, WALL, camera, frame, look_at_street, maps

from occ_core.geometry import pose
from occ_core.labels.lift import DROP, PASS, POINT, SKY, FrameEvidence, Lifter, sort_pixels
from occ_core.labels.recipes import Recipe
from occ_core.labels.road_scale import road_correction
from occ_core.taxonomy import OCC3D, UNLABELED
from occ_core.teachers.base import ClassMap, DepthMap

FREE = OCC3D.free_id


def lift(of, depth_m, class_id, recipe=None, name="CAM_FRONT") -> FrameEvidence:
    classes, depth = maps(depth_m, class_id)
    return Lifter(recipe or Recipe(), SMALL_GRID, OCC3D).lift(of, {name: classes}, {name: depth})


def all_points(of, depth_m, name="CAM_FRONT"):
    """Every pixel's point in the ego frame (h * w, 3), by the textbook formula."""
    cam = of.rig[name]
    u, v = np.meshgrid(np.arange(depth_m.shape[1]), np.arange(depth_m.shape[0]))
    k = cam.resized((depth_m.shape[1], depth_m.shape[0])).intrinsics
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    points = (np.linalg.inv(k) @ pixels * depth_m.ravel()).T
    at = np.linalg.inv(of.world_from_ego) @ of.camera_world_from_ego[name] @ cam.ego_from_cam
    return points @ at[:3, :3].T + at[:3, 3]


def test_points_and_counts_equal_a_brute_force_grouping():
    rng = np.random.default_rng(0)
    of = frame()
    depth = rng.uniform(1, 9, (64, 96)).astype(np.float32)
    kind = rng.choice([ROAD, WALL, CAR], (64, 96)).astype(np.uint8)
    lifted = lift(of, depth, kind)
    groups: dict[tuple, list] = {}
    for point, what in zip(all_points(of, depth), kind.ravel(), strict=True):
        cell = tuple(np.floor((point - SMALL_GRID.origin_m) / 0.2).astype(int))
        if all(0 <= c < 2 * n for c, n in zip(cell, SMALL_GRID.shape, strict=True)):
            groups.setdefault((*cell, int(what)), []).append(point)
    assert len(lifted.count) == len(groups) > 500
    assert lifted.count.max() > 1
    for point, what, count in zip(lifted.points_ego_m, lifted.class_id, lifted.count, strict=True):
        cell = tuple(np.floor((point.astype(float) - SMALL_GRID.origin_m) / 0.2).astype(int))
        members = groups[(*cell, int(what))]
        assert len(members) == count
        np.testing.assert_allclose(point, np.mean(members, axis=0), atol=1e-5)


def test_each_image_is_lifted_with_its_own_pose():
    still, moved = frame(), frame()
    moved.camera_world_from_ego["CAM_FRONT"] = pose((1.0, 0.5, 0.0))
    depth, kind = np.full((64, 96), 4.0, np.float32), np.full((64, 96), WALL, np.uint8)
    places = [lift(of, depth, kind) for of in (moved, still)]
    middle = [np.average(place.points_ego_m, axis=0, weights=place.count) for place in places]
    np.testing.assert_allclose(middle[0] - middle[1], (1.0, 0.5, 0.0), atol=1e-5)


def test_smaller_maps_see_the_same_wall():
    of = frame(cameras=(camera(size=(96, 64)),))
    for size in ((64, 96), (32, 48), (128, 192)):
        lifted = lift(of, np.full(size, 5.0), np.full(size, WALL))
        np.testing.assert_allclose(lifted.points_ego_m[:, 0], 5.1, atol=1e-5)
        half_width_m = 48 / 60 * 5
        assert abs(lifted.points_ego_m[:, 1].max() - half_width_m) < 0.15


def test_class_map_of_another_resolution_is_read_at_the_same_place():
    of = frame()
    classes = np.full((32, 48), WALL, dtype=np.uint8)
    classes[:, :24] = CAR  # left half
    pair = maps(np.full((64, 96), 5.0), np.zeros((64, 96)))[1], maps(np.zeros((32, 48)), classes)[0]
    lifted = Lifter(Recipe(), SMALL_GRID, OCC3D).lift(of, {"CAM_FRONT": pair[1]}, {"CAM_FRONT": pair[0]})
    y = lifted.points_ego_m[:, 1]
    assert (lifted.class_id[y > 0.2] == CAR).all() and (lifted.class_id[y < -0.2] == WALL).all()


def test_points_outside_are_dropped_and_only_the_artefact_keeps_them():
    of = frame()
    depth, kind = np.full((64, 96), 30.0), np.full((64, 96), WALL)
    assert len(lift(of, depth, kind).count) == 0
    assert lift(of, depth, kind, Recipe(clamp=True)).count.sum() == 64 * 96


def test_surface_offset_is_along_the_ray_and_in_metres():
    of = frame()
    depth, kind = np.full((64, 96), 4.0), np.full((64, 96), FREE)
    kind[10, 90] = WALL
    near, far = lift(of, depth, kind), lift(of, depth, kind, Recipe(surface_offset_m=0.1))
    moved = (far.points_ego_m - near.points_ego_m)[0]
    ray = near.points_ego_m[0] - of.rig["CAM_FRONT"].ego_from_cam[:3, 3]
    np.testing.assert_allclose(moved, 0.1 * ray / np.linalg.norm(ray), atol=1e-5)


def test_far_ground_has_no_stripes_once_filled():
    of = frame()
    street = look_at_street(of, "CAM_FRONT", wall_x_m=50.0)
    for fill, whole in ((0.0, False), (0.3, True)):
        lifted = lift(of, *street, Recipe(fill_ground=fill))
        cells, _ = SMALL_GRID.index_of(lifted.points_ego_m[lifted.class_id == ROAD])
        assert (set(range(30, 40)) <= set(cells[cells[:, 1] == 20][:, 0])) == whole  # x = 4 .. 8 m straight ahead
        assert set(cells[:, 2]) == {2}


def test_outliers_are_points_with_few_others_around():
    of = frame()
    depth, kind = np.full((64, 96), 5.0), np.full((64, 96), FREE)
    kind[30:40, 30:40] = WALL
    kind[5, 90] = CAR
    assert set(lift(of, depth, kind).class_id) == {WALL, CAR}
    assert set(lift(of, depth, kind, Recipe(outlier_points=5)).class_id) == {WALL}


def test_pixels_are_sorted_by_what_they_are_good_for():
    depth = DepthMap(
        np.array([[5, np.nan, 0, -1, np.inf, 80, 5, 5, 5, 90, np.inf, 5]], np.float32),
        np.array([[1, 1, 1, 1, 1, 1, 1, 1, 0.2, 1, 1, 1]], np.float32),
    )
    kind = np.array([[CAR, CAR, CAR, CAR, CAR, CAR, UNLABELED, CAR, CAR, FREE, FREE, FREE]], np.uint8)
    score = np.array([[1, 1, 1, 1, 1, 1, 0, 0.1, 1, 1, 1, 1]], np.float32)
    recipe = Recipe(max_depth_m=50, min_score=0.3, min_confidence=0.5, sky=True)
    expected = [POINT, DROP, DROP, DROP, DROP, PASS, PASS, PASS, DROP, SKY, SKY, DROP]
    assert sort_pixels(depth, kind, score, recipe, FREE)[0].tolist() == expected
    without_sky = recipe.model_copy(update={"sky": False})
    assert SKY not in sort_pixels(depth, kind, score, without_sky, FREE)


def test_edges_are_steps_and_never_oblique_planes():
    of = frame()
    street, kind = look_at_street(of, "CAM_FRONT", wall_x_m=500.0)
    road = kind == ROAD
    assert road.sum() > 1500
    recipe = Recipe(edge_cut=0.1)
    sorted_ = sort_pixels(maps(street, kind)[1], kind, np.ones(kind.shape, np.float32), recipe, FREE)
    assert (sorted_[36:] == POINT).all()  # the last rows before the horizon are next to the far wall
    step = np.full((20, 30), 5.0)
    step[:, 15:] = 9.0
    classes, depth = maps(step, step * 0 + WALL)
    sorted_ = sort_pixels(depth, classes.class_id, classes.score, recipe, FREE)
    assert np.flatnonzero(sorted_[10] == DROP).tolist() == [13, 14, 15, 16]


@pytest.mark.parametrize("error", [0.85, 1.0, 1.2])
@pytest.mark.parametrize("reach", [0.0, 0.1])
def test_road_gives_back_the_scale(error, reach):
    of = frame(cameras=(camera(size=(192, 128)),))
    cam = of.rig["CAM_FRONT"]
    depth, kind = look_at_street(of, "CAM_FRONT", wall_x_m=15.0)
    rays = cam.rays(cam.pixel_grid())[:, :2].reshape(128, 192, 2).astype(np.float32)

    def factor(depth_m, road):
        return road_correction(depth_m, road, rays, cam.ego_from_cam, 0.0, reach)

    np.testing.assert_allclose(factor(depth * np.float32(error), kind == ROAD), 1 / error, rtol=1e-4)
    assert (factor(depth * 2, kind == ROAD) == 1).all()  # beyond belief
    assert (factor(depth, np.zeros_like(kind, dtype=bool)) == 1).all()


def test_road_corrects_a_smooth_error_also_beside_it():
    of = frame(cameras=(camera(size=(192, 128)),))
    cam = of.rig["CAM_FRONT"]
    depth, kind = look_at_street(of, "CAM_FRONT", wall_x_m=15.0)
    rays = cam.rays(cam.pixel_grid())[:, :2].reshape(128, 192, 2).astype(np.float32)
    error = np.exp(np.linspace(-0.08, 0.08, 192))[None].astype(np.float32) * np.ones((128, 1), np.float32)
    left = [
        np.abs(np.log(error * road_correction(depth * error, kind == ROAD, rays, cam.ego_from_cam, 0.0, reach)))
        for reach in (0.0, 0.1)
    ]
    beside = kind == WALL
    beside[:56] = False  # the wall's foot; its top is far from any road
    assert left[1][beside].mean() < 0.5 * left[0][beside].mean()


def test_what_a_frame_hit_it_did_not_see_empty():
    of = frame()
    street = look_at_street(of, "CAM_FRONT")
    raw, kept = lift(of, *street), lift(of, *street, Recipe(grazing_share=0.01))
    road = tuple(SMALL_GRID.index_of(raw.points_ego_m[raw.class_id == ROAD])[0].T)
    assert raw.passes[road].max() > 0
    assert kept.passes[road].mean() < raw.passes[road].mean() / 5
    air = tuple(SMALL_GRID.index_of(np.array([[3.0, 0.05, 1.5]]))[0][0])
    assert kept.passes[air] == raw.passes[air] > 0


def test_every_return_of_a_lidar_casts_a_ray_however_much_sky_is_seen():
    close = replace(camera(), intrinsics=np.diag([10.0, 10, 1]) @ camera().intrinsics, size=(960, 640))
    of = frame(cameras=(close,))
    depth, kind = look_at_street(of, "CAM_FRONT")
    returns = np.zeros(depth.shape, dtype=bool)
    returns[300::20, ::20] = True  # where a dense map's every 15th ray rarely is
    depth[~returns] = np.nan
    kind[:240] = FREE
    sky = lift(of, depth, kind, Recipe(sky=True)).passes
    none = lift(of, depth, np.where(kind == FREE, UNLABELED, kind), Recipe(sky=True)).passes
    low = np.s_[:, :, :6]  # up to 1.4 m: rays into the sky begin above
    np.testing.assert_array_equal(sky[low], none[low])
    at_camera = tuple(((close.ego_from_cam[:3, 3] - SMALL_GRID.origin_m) / 0.4).astype(int))
    assert none[at_camera] == returns.sum()  # each counts once
    assert 0 < sky[at_camera] - none[at_camera] < (kind == FREE).sum() / 15**2 + 100
    assert sky[:, :, 8:].sum() > none[:, :, 8:].sum()


def test_images_that_cannot_be_used_are_named_and_the_others_kept():
    back = camera("CAM_BACK")
    of = frame(cameras=(camera(), back, camera("CAM_LEFT"), camera("CAM_RIGHT")))
    good = maps(*look_at_street(of, "CAM_FRONT"))
    bad_size = ClassMap(np.zeros((64, 80), np.uint8), np.ones((64, 80), np.float32))
    nothing = DepthMap(np.full((64, 96), np.nan, np.float32), np.ones((64, 96), np.float32))
    zero = DepthMap(np.zeros((64, 96), np.float32), np.ones((64, 96), np.float32))
    lifter = Lifter(Recipe(), SMALL_GRID, OCC3D)
    lifted = lifter.lift(
        of,
        {"CAM_FRONT": good[0], "CAM_BACK": bad_size, "CAM_LEFT": good[0], "CAM_RIGHT": good[0]},
        {"CAM_FRONT": good[1], "CAM_BACK": good[1], "CAM_LEFT": nothing, "CAM_RIGHT": zero},
    )
    assert [reason.split(":")[0] for reason in lifted.skipped] == [
        "token0 CAM_BACK", "token0 CAM_LEFT", "token0 CAM_RIGHT"
    ]  # fmt: skip
    assert "80 x 64" in lifted.skipped[0] and "no value > 0" in lifted.skipped[1]
    alone = lift(frame(), *look_at_street(of, "CAM_FRONT"))
    np.testing.assert_array_equal(lifted.points_ego_m, alone.points_ego_m)
    np.testing.assert_array_equal(lifted.passes, alone.passes)


def test_optical_axes_of_the_fixture():
    """The tests above rest on this: camera z is ego x."""
    np.testing.assert_array_equal(OPTICAL @ (0, 0, 1), (1, 0, 0))


def test_a_measured_pixel_is_no_edge_and_counts_as_a_share_of_its_image():
    of, recipe = frame(), Recipe(edge_cut=0.1, measured_share=0.001)
    depth_m, class_id = np.full((64, 96), 4.0, np.float32), np.full((64, 96), WALL, np.uint8)
    depth_m[30, 50] = 6.0  # stands alone: an edge, with the twelve pixels at most two steps away
    classes, depth = maps(depth_m, class_id)
    guessed = DepthMap(depth_m, np.where(depth_m == 6, 1, 0.5).astype(np.float32))
    assert sort_pixels(guessed, class_id, classes.score, recipe, FREE)[30, 49:52].tolist() == [DROP, POINT, DROP]
    as_any = recipe.model_copy(update={"measured_share": 0.0})
    assert (sort_pixels(guessed, class_id, classes.score, as_any, FREE)[30, 49:52] == DROP).all()
    found = Lifter(recipe, SMALL_GRID, OCC3D).lift(of, {"CAM_FRONT": classes}, {"CAM_FRONT": guessed})
    (far,) = np.flatnonzero(found.points_ego_m[:, 0] > 5)
    assert found.count[far] == round(0.001 * 64 * 96) == 6
    np.testing.assert_allclose(found.points_ego_m[far], all_points(of, depth_m)[30 * 96 + 50], atol=1e-5)
    assert found.count.sum() == 64 * 96 - 13 + 6


def test_the_ray_of_a_measured_pixel_counts_as_much_as_its_point():
    of, recipe = frame(), Recipe(measured_share=0.01)
    depth_m, class_id = np.full((64, 96), 4.0, np.float32), np.full((64, 96), WALL, np.uint8)
    classes, depth = maps(depth_m, class_id)
    measured = np.zeros((64, 96), bool)
    measured[20:40:2, 30:60:3] = True
    given = DepthMap(depth_m, np.where(measured, 1, 0.5).astype(np.float32))
    lift = [
        Lifter(r, SMALL_GRID, OCC3D).lift(of, {"CAM_FRONT": classes}, {"CAM_FRONT": given}) for r in (recipe, Recipe())
    ]
    at_camera = tuple(((of.rig["CAM_FRONT"].ego_from_cam[:3, 3] - SMALL_GRID.origin_m) / 0.4).astype(int))
    more = (lift[0].passes.astype(int) - lift[1].passes)[at_camera]
    assert more == measured.sum() * round(0.01 * 64 * 96) == 100 * 61
