"""The renderer against independent geometry: rays, depths, thin things, textures, isp."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")

from occ_core.geometry import apply, inverse
from occ_core.world import materials as m
from occ_core.world.city import City, build_city
from occ_core.world.ground import TILE, Ground
from occ_core.world.isp import IspModel, apply_isp
from occ_core.world.lidar import sweep
from occ_core.world.noise import keep, noise2
from occ_core.world.render import render
from occ_core.world.sensors import camera_stamps_us, ego_from_lidar, lidar_directions, nuscenes_rig
from occ_core.world.solids import Builder
from occ_core.world.tracer import Tracer

SIZE = (320, 180)


@pytest.fixture(scope="module")
def city() -> City:
    return build_city(3, 3.0)


@pytest.fixture(scope="module")
def snapshot(city):
    return Tracer(city).at(1.0)


class Plain:
    """A flat field with given solids, standing in for a city's data (no behaviour is replaced)."""

    def __init__(self, template: City, solids) -> None:
        cells = 4 * TILE + 1
        flat = np.zeros((cells, cells), dtype=np.float32)
        half = cells * 0.3 / 2
        grey = np.full((cells, cells), m.ASPHALT, dtype=np.uint8)
        self.ground = Ground((-half, -half), 0.3, flat, np.full_like(grey, 11), grey)
        self.solids, self.actors, self.seed = solids, [], 1
        self.weather = template.weather

    def world_from_ego(self, t_s: float) -> np.ndarray:
        return np.eye(4)


def test_depth_is_along_the_rays_of_the_camera(city, snapshot):
    """Points unprojected by Camera.rays and the depth map lie on the ground raster where the map says ground."""
    rig = nuscenes_rig(SIZE, city.seed)
    for name in ("CAM_FRONT", "CAM_BACK_LEFT"):
        camera = rig[name]
        world_from_cam = city.world_from_ego(1.0) @ camera.ego_from_cam
        view = render(snapshot, camera, world_from_cam)
        road = (view.class_id == 11) & (view.depth_m < 40) & (view.instance < 0)
        assert road.sum() > 2000
        pixels = camera.pixel_grid()[road.ravel()]
        world = apply(world_from_cam, camera.rays(pixels) * view.depth_m[road][:, None])
        error = np.abs(world[:, 2] - city.ground.height_at(world[:, :2]))
        assert np.median(error) < 0.01
        assert np.percentile(error, 99) < 0.1
        assert (city.ground.class_at(world[:, :2]) == 11).mean() > 0.99


def test_box_and_cylinder_are_where_geometry_says(city):
    """Depth of a wall and of a 10 cm pole 20 m ahead, against pen and paper."""
    build = Builder()
    build.box([30.0, 0.0, 5.0], [2.0, 30.0, 10.0], 15, m.CONCRETE, [0.4, 0.4, 0.4])
    build.cylinder([20.0, 1.0, 2.0], [0.1, 0.1, 4.0], 15, m.METAL, [0.05, 0.05, 0.05])
    snapshot = Tracer(Plain(city, build.solids())).at(0.0)
    camera = nuscenes_rig((800, 450), 0)["CAM_FRONT"]
    view = render(snapshot, camera, camera.ego_from_cam)
    cam_from_ego = inverse(camera.ego_from_cam)
    top = camera.project(apply(cam_from_ego, np.array([[19.95, 1.0, 3.0]])))[0][0]
    u, v = np.rint(top).astype(int)
    depth = apply(cam_from_ego, np.array([[19.95, 1.0, 3.0]]))[0, 2]
    assert view.depth_m[v, u - 1 : u + 2].min() == pytest.approx(depth, abs=0.03)
    column = view.depth_m[v, u + 25]
    ray = camera.rays(np.array([[u + 25, v]]))[0]
    direction = camera.ego_from_cam[:3, :3] @ ray
    assert column == pytest.approx((29.0 - camera.ego_from_cam[0, 3]) / direction[0], abs=0.01)
    # The pole is 3 px wide and dark before a bright wall: it must show over its whole height, not flicker away.
    rows = [camera.project(apply(cam_from_ego, np.array([[20.0, 1.0, z]])))[0][0] for z in np.linspace(0.5, 3.5, 30)]
    luma = view.radiance.sum(axis=2)
    for u, v in np.rint(rows).astype(int):
        assert luma[v, u - 1 : u + 2].min() < 0.75 * luma[v, u + 20]


def test_classes_and_instances_belong_to_what_is_hit(city, snapshot):
    camera = nuscenes_rig(SIZE, city.seed)["CAM_FRONT"]
    view = render(snapshot, camera, city.world_from_ego(1.0) @ camera.ego_from_cam)
    for i in np.unique(view.instance[view.instance >= 0]):
        classes = set(np.unique(view.class_id[view.instance == i]).tolist())
        assert classes <= set(city.actors[i].solids.class_id.tolist())
    sky = ~np.isfinite(view.depth_m)
    assert ((view.class_id == 17) == sky).all()


def nearest_triangle_m(origin: np.ndarray, direction: np.ndarray, triangles: np.ndarray) -> float:
    """Distance to the first triangle, trying every one (Moeller and Trumbore 1997), float64."""
    edge1, edge2 = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    p = np.cross(direction, edge2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse_det = 1 / np.einsum("ni,ni->n", edge1, p)
        t = origin - triangles[:, 0]
        u = np.einsum("ni,ni->n", t, p) * inverse_det
        q = np.cross(t, edge1)
        v = q @ direction * inverse_det
        distance = np.einsum("ni,ni->n", edge2, q) * inverse_det
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)
    return float(distance[hit].min(initial=np.inf))


def test_hits_match_brute_force(city, snapshot):
    """Every triangle of the nearby static city tried one by one, without embree."""
    near = np.linalg.norm(city.solids.parent_from_solid[:, :2, 3] - city.world_from_ego(1.0)[:2, 3], axis=1) < 25
    mesh = city.solids[near].mesh()
    triangles = mesh.vertices[mesh.faces].astype(np.float64)
    origin = city.world_from_ego(1.0)[:3, 3] + [0, 0, 1.6]
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 40)
    directions = np.stack([np.cos(angle), np.sin(angle), rng.uniform(-0.05, 0.3, 40)], axis=1)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hits = snapshot.cast(origin, directions)
    checked = 0
    for solid, distance_m, direction in zip(hits.solid, hits.distance_m, directions, strict=True):
        if 0 <= solid < len(city.solids) and near[solid] and distance_m < 22:
            # Crowns are coarser when rendered, hence the tolerance.
            assert nearest_triangle_m(origin, direction, triangles) == pytest.approx(distance_m, abs=0.12)
            checked += 1
    assert checked >= 5


def test_lidar_points_lie_on_surfaces(city, snapshot):
    world_from_lidar = city.world_from_ego(1.0) @ ego_from_lidar(city.seed)
    points = sweep(snapshot, world_from_lidar, np.random.default_rng(0))
    assert points.dtype == np.float32
    assert 10_000 < len(points) < len(lidar_directions()[0])
    assert set(np.unique(points[:, 4])) <= set(range(32))
    assert points[:, 3].min() >= 0 and points[:, 3].max() <= 255
    distance = np.linalg.norm(points[:, :3], axis=1)
    hits = snapshot.cast(world_from_lidar[:3, 3], (points[:, :3] / distance[:, None]) @ world_from_lidar[:3, :3].T)
    error = distance - hits.distance_m
    assert np.median(np.abs(error)) < 0.02
    assert abs(np.median(error)) < 0.002


def test_stamps_without_sweeps_are_keyframes_only():
    stamps = camera_stamps_us(35491, 4, sweeps=False)
    assert [k for _, k, _ in stamps] == [0, 1, 2, 3]
    assert all(is_key for _, _, is_key in stamps)
    assert stamps[0][0] > 0


def test_night_is_darker_and_noisier_than_day(city):
    """IspModel: a dim scene stays dim and grainy, though exposure is automatic."""
    camera_isp = IspModel.of(1, 0)
    grey = np.full((90, 160, 3), 0.2, dtype=np.float32)
    by_day = apply_isp(grey, camera_isp, _weather(city, night=False), np.random.default_rng(0))
    by_night = apply_isp(grey * 0.02, camera_isp, _weather(city, night=True), np.random.default_rng(0))
    assert by_night.mean() < 0.8 * by_day.mean()
    assert by_night[40:50, 70:90].std() / by_night.mean() > 2 * by_day[40:50, 70:90].std() / by_day.mean()


def _weather(city: City, night: bool):
    from dataclasses import replace

    return replace(city.weather, night=night, wetness=0.0)


def test_noise_is_smooth_repeatable_and_fades_before_it_aliases():
    x = np.linspace(0, 20, 4001)
    values = np.array([noise2(v, 0.3, 7) for v in x])
    assert values.min() >= 0 and values.max() <= 1
    assert np.abs(np.diff(values)).max() < 0.02
    assert values.std() > 0.1
    assert noise2(1.25, 3.5, 7) == noise2(1.25, 3.5, 7) != noise2(1.25, 3.5, 8)
    assert keep(0.01, 0.1) == 1
    assert keep(0.1, 0.1) == 0
