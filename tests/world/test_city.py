"""The simulated city: the same by seed, its bodies what they claim to be, its road free for the ego vehicle."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import trimesh

from occ_core.errors import InvalidInput
from occ_core.geometry import apply, inverse
from occ_core.taxonomy import OCC3D
from occ_core.world.city import City, build_city
from occ_core.world.classes import DRIVEABLE, FREE
from occ_core.world.scene_builder import SceneBuilder
from occ_core.world.solids import BOX, CYLINDER, ELLIPSOID, Builder, Solids, yaw_pose
from occ_core.world.streets import paint_ground
from occ_core.world.vegetation import leaf_color

SEEDS = (0, 1, 2, 11)
DURATION_S = 4.0


@functools.cache
def city_of(seed: int) -> City:
    return build_city(seed, DURATION_S)


def everything_at(city: City, t_s: float) -> Solids:
    return Solids.concatenate([city.solids, *(a.solids.transformed(a.world_from_actor(t_s)) for a in city.actors)])


def arrays_of(city: City) -> list[np.ndarray]:
    parts = [city.ground.height_m, city.ground.class_id, city.ground.material, city.ego.poses, city.weather.lamps_m]
    for solids in (city.solids, *(a.solids for a in city.actors)):
        parts += [getattr(solids, name) for name in solids.__dataclass_fields__]
    return parts + [a.trajectory.poses for a in city.actors]


def test_same_seed_same_city():
    again = build_city(0, DURATION_S)
    first, second = arrays_of(city_of(0)), arrays_of(again)
    assert len(first) == len(second)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert again.weather.name == city_of(0).weather.name


def test_other_seed_other_city():
    assert not np.array_equal(city_of(0).ego.poses, city_of(1).ego.poses)
    assert len(city_of(0).solids) != len(city_of(1).solids)


def test_all_classes_appear_over_a_few_seeds():
    seen: set[int] = set()
    for seed in SEEDS:
        city = city_of(seed)
        seen |= set(np.unique(city.ground.class_id)) | set(np.unique(city.solids.class_id))
        seen |= {actor.class_id for actor in city.actors}
    assert seen == set(range(FREE)), [OCC3D.names[c] for c in set(range(FREE)) - seen]


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
@pytest.mark.parametrize("scale_m", [0.3, 3.0])
def test_analytic_body_and_mesh_are_the_same(kind, scale_m):
    rng = np.random.default_rng(kind)
    for _ in range(3):
        builder = Builder()
        size, angles = scale_m * rng.uniform(0.5, 2, 3), rng.uniform(-3, 3, 3)
        builder.one(kind, rng.uniform(-5, 5, 3), size, 0, 0, (0, 0, 0), 0, *angles)
        solids = builder.solids()
        mesh = solids.mesh()
        body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
        assert body.is_watertight
        volume = np.prod(size) * {BOX: 1, CYLINDER: np.pi / 4, ELLIPSOID: np.pi / 6}[kind]
        assert body.volume == pytest.approx(volume, rel=1e-3)  # positive: faces look outwards
        lower, upper = solids.bounds_m()
        np.testing.assert_allclose(body.bounds, [lower[0], upper[0]], atol=0.06 * size.max())
        points = rng.uniform(lower[0] - 0.1, upper[0] + 0.1, (3000, 3))
        local = apply(inverse(solids.parent_from_solid[0]), points) / solids.half_size_m[0]
        radius = {
            BOX: np.abs(local).max(axis=1),
            CYLINDER: np.maximum(np.hypot(local[:, 0], local[:, 1]), np.abs(local[:, 2])),
            ELLIPSOID: np.linalg.norm(local, axis=1),
        }[kind]
        clear = np.abs(radius - 1) > {BOX: 1e-4, CYLINDER: 0.025, ELLIPSOID: 0.06}[kind]
        inside = solids.contain(points)
        assert np.array_equal(inside[clear], (radius < 1)[clear])
        assert np.array_equal(inside[clear], body.contains(points[clear]))


def test_yaw_pose_turns_in_the_documented_order():
    assert apply(yaw_pose((1, 2, 3), yaw=np.pi / 2), np.array([1.0, 0, 0])) == pytest.approx((1, 3, 3))
    assert apply(yaw_pose((0, 0, 0), pitch=np.pi / 2), np.array([1.0, 0, 0])) == pytest.approx((0, 0, -1))
    assert apply(yaw_pose((0, 0, 0), roll=np.pi / 2), np.array([0, 1.0, 0])) == pytest.approx((0, 0, 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_ego_drives_on_the_road_through_nothing(seed):
    city = city_of(seed)
    axes = [np.linspace(-0.9, 3.1, 9), np.linspace(-0.85, 0.85, 5), np.linspace(0.35, 1.9, 5)]
    box = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    for t_s in np.arange(0, DURATION_S + 0.01, 0.5):
        points = apply(city.world_from_ego(t_s), box)
        solids = everything_at(city, t_s)
        hit = solids.contain(points)
        names = {
            OCC3D.names[c] for c in solids.class_id if hit.any() and solids[solids.class_id == c].contain(points).any()
        }
        assert not hit.any(), (t_s, names)
        assert (city.ground.class_at(points[:, :2]) == DRIVEABLE).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_ego_pose_follows_the_ground_at_a_town_speed(seed):
    city = city_of(seed)
    times = np.arange(0, DURATION_S, 0.1)
    poses = np.stack([city.world_from_ego(t) for t in times])
    speed = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / 0.1
    assert speed.max() < 13
    wheels = np.array([[0, 0.8, 0], [0, -0.8, 0], [2.6, 0.8, 0], [2.6, -0.8, 0]])
    for pose in poses:
        ground_contact = apply(pose, wheels)
        assert city.ground.height_at(ground_contact[:, :2]) == pytest.approx(ground_contact[:, 2], abs=0.02)
        # x points where the vehicle goes
    along = (np.diff(poses[:, :3, 3], axis=0) * poses[:-1, :3, 0]).sum(axis=1)
    assert (along > -1e-6).all()


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_ground_mesh_is_within_centimetres_of_the_raster(seed):
    ground = city_of(seed).ground
    mesh = ground.mesh()
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert (body.face_normals[:, 2] > 0).all()
    edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert uses.max() == 2  # no crack: inner edges are shared by two triangles
    span = np.array(ground.height_m.shape) * ground.cell_m
    rng = np.random.default_rng(0)
    xy = np.array(ground.origin_m) + rng.uniform(0.02, 0.98, (4000, 2)) * span
    origins = np.column_stack([xy, np.full(len(xy), 500.0)])
    at, ray, _ = body.ray.intersects_location(origins, np.tile([0.0, 0, -1], (len(xy), 1)), multiple_hits=False)
    assert len(ray) == len(xy)
    error = np.abs(at[:, 2] - ground.height_at(at[:, :2]))
    assert np.quantile(error, 0.99) < 0.02 and error.max() < 0.1


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_actors_fill_their_boxes_and_stand_on_the_ground(seed):
    city = city_of(seed)
    for actor in city.actors:
        vertices = actor.solids.mesh().vertices
        width, length, height = actor.size_m
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        assert high - low == pytest.approx((length, width, height), abs=0.04 * max(actor.size_m))
        assert (low + high)[:2] == pytest.approx((0, 0), abs=0.1)
        assert (actor.solids.class_id == actor.class_id).all()
        pose = actor.world_from_actor(2.0)
        assert city.ground.height_at(pose[None, :2, 3])[0] == pytest.approx(pose[2, 3], abs=0.15)
        first, last = actor.world_from_actor(0.0), actor.world_from_actor(DURATION_S)
        assert actor.moving or np.array_equal(first, last)
    moved = [
        np.linalg.norm((a.world_from_actor(4.0) - a.world_from_actor(1.0))[:3, 3]) for a in city.actors if a.moving
    ]
    assert len(moved) > 3 and np.median(moved) > 1


def test_actors_do_not_run_into_each_other():
    city = city_of(0)
    for t_s in (0.0, 2.0, 4.0):
        parts = [a.solids.transformed(a.world_from_actor(t_s)) for a in city.actors]
        for k, (part, actor) in enumerate(zip(parts, city.actors, strict=True)):
            if actor.category == "vehicle.trailer":
                continue  # hitched onto its tractor
            others = [p for n, p in enumerate(parts) if n != k and city.actors[n].category != "vehicle.trailer"]
            centers = part.parent_from_solid[:, :3, 3]
            assert not Solids.concatenate(others).contain(centers).any(), (t_s, actor.category)


def test_rows_near_a_cross_street_hold_all_its_cells():
    road = city_of(0).road
    _, painter = paint_ground(road)
    for junction in road.junctions:
        everywhere = painter.along(junction)
        assert everywhere.shape == painter.station.shape
        rows, near = painter.along_near(junction, 12.0)
        assert (near == everywhere[rows]).all()
        assert (np.abs(near) < 12.0).sum() == (np.abs(everywhere) < 12.0).sum() > 0
        assert near.size < everywhere.size


def test_hills_are_a_sum_of_plane_waves():
    city = city_of(0)
    ground, painter = paint_ground(city.road)
    cells = np.random.default_rng(0).integers(painter.station.shape, size=(500, 2))
    x, y = (np.array(ground.origin_m) + (cells + 0.5) * ground.cell_m).T
    hills = sum(a * np.sin(kx * x + ky * y + phase) for kx, ky, phase, a in city.road.relief)
    height = ground.height_m[cells[:, 0], cells[:, 1]]
    assert height == pytest.approx(hills + painter.raised[cells[:, 0], cells[:, 1]], abs=1e-5)


def test_distance_from_the_kerb_is_that_of_the_cell():
    road = city_of(0).road
    ground, painter = paint_ground(road)
    scene = SceneBuilder(road, ground, painter)
    low, span = np.array(ground.origin_m), np.array(ground.height_m.shape) * ground.cell_m
    for xy in low + span * np.random.default_rng(0).uniform(-0.1, 1.1, (300, 2)):  # some lie outside
        assert scene.beyond(xy) == painter.beyond[ground.cell_of(xy)][0]


def test_leaves_of_every_kind_occur_as_often_as_planned():
    rng = np.random.default_rng(0)
    colors = np.array([leaf_color(rng) for _ in range(4000)])
    assert colors.shape == (4000, 3)
    greens = (colors.argmax(axis=1) == 1).mean()  # 0.24 + 0.2 + 0.18, and grey with 0.08
    assert greens == pytest.approx(0.7, abs=0.03)


def test_bad_arguments_are_named():
    with pytest.raises(InvalidInput, match="seed must be >= 0, got -1"):
        build_city(-1)
    with pytest.raises(InvalidInput, match=r"\(0, 40\] s, got 99"):
        build_city(0, 99)
