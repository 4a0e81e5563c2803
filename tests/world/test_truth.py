"""Occupancy of the simulated city against independent computations: rays through meshes, and small-step marching."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from occ_core.camera import Camera, Rig
from occ_core.geometry import apply, inverse
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.world.city import City, build_city
from occ_core.world.classes import FREE
from occ_core.world.truth import SUB, VisibilityTargets, mark_visible, occupancy_truth, voxelize

TIME_S = 2.0
EGO_FROM_LIDAR = np.array([[1.0, 0, 0, 0.94], [0, 1, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def city() -> City:
    return build_city(1, 4.0)


@pytest.fixture(scope="module")
def voxels(city):
    return voxelize(city, TIME_S, OCC3D_GRID)


@pytest.fixture(scope="module")
def rig() -> Rig:
    cameras = []
    for k, yaw in enumerate(np.radians((0, -55, 55, 180))):
        forward = np.array([np.cos(yaw), np.sin(yaw), 0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([np.cross(forward, (0, 0, 1)), (0, 0, -1), forward], axis=1)
        pose[:3, 3] = 0.7 * forward + (1.0, 0, 1.5)
        focal = 300.0 if k < 3 else 190.0
        intrinsics = np.array([[focal, 0, 199.5], [0, focal, 112.0], [0, 0, 1]])
        cameras.append(Camera(f"cam{k}", intrinsics, (400, 225), pose))
    return Rig(tuple(cameras))


def body_at(city: City, t_s: float) -> trimesh.Trimesh:
    """All meshes, in the ego frame."""
    parts = [city.solids.mesh(), city.ground.mesh()]
    parts += [a.solids.transformed(a.world_from_actor(t_s)).mesh() for a in city.actors]
    body = trimesh.util.concatenate([trimesh.Trimesh(m.vertices, m.faces, process=False) for m in parts])
    vertices = apply(inverse(city.world_from_ego(t_s)), np.asarray(body.vertices))
    near = (np.abs(vertices) < (48, 48, 30)).all(axis=1)
    return trimesh.Trimesh(vertices, body.faces[near[body.faces].any(axis=1)], process=False)


def inside(body: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Upward rays: a point is within some closed surface, or below ground, if more of them are left than entered."""
    up = np.tile([0.0, 0.0, 1.0], (len(points), 1))
    faces, rays = body.ray.intersects_id(points, up, multiple_hits=True, max_hits=60)
    sign = np.where(body.face_normals[faces, 2] > 0, 1, -1)
    return np.bincount(rays, weights=sign, minlength=len(points)) > 0


def test_voxels_agree_with_rays_through_the_meshes(city, voxels):
    solid, labels = voxels
    surface = labels != FREE
    rng = np.random.default_rng(0)
    decided = surface | ~solid
    touching = np.zeros_like(solid)  # free voxels beside a surface
    touching[1:] |= surface[:-1]
    touching[:-1] |= surface[1:]
    touching[:, :, 1:] |= surface[:, :, :-1]
    picked = np.concatenate(
        [
            rng.permutation(np.argwhere(decided))[:1200],
            rng.permutation(np.argwhere(surface))[:300],
            rng.permutation(np.argwhere(touching & ~solid))[:300],
        ]
    )
    sub = (np.stack(np.meshgrid(*[np.arange(SUB)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) + 0.5) / SUB
    points = (picked[:, None] + sub) * OCC3D_GRID.voxel_size_m + OCC3D_GRID.origin_m
    expected = inside(body_at(city, TIME_S), points.reshape(-1, 3)).reshape(len(picked), -1).any(axis=1)
    agree = expected == solid[tuple(picked.T)]
    print(f"agreement everywhere {agree[:1200].mean():.4%}, at surfaces {agree[1200:].mean():.4%}")
    assert agree[:1200].mean() >= 0.995
    assert agree[1200:].mean() >= 0.97  # round bodies are polyhedra in the mesh: centimetres


def test_labels_are_surfaces_of_the_bodies_inside(city, voxels):
    """Classes of single-body voxels, and interiors, decided again point by point from the analytic bodies."""
    solid, labels = voxels
    world_from_ego = city.world_from_ego(TIME_S)
    rng = np.random.default_rng(1)
    sub = (np.stack(np.meshgrid(*[np.arange(SUB)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) + 0.5) / SUB
    parts = [city.solids] + [a.solids.transformed(a.world_from_actor(TIME_S)) for a in city.actors]
    for index in rng.permutation(np.argwhere(solid))[:150]:
        points = apply(world_from_ego, (index + sub) * OCC3D_GRID.voxel_size_m + OCC3D_GRID.origin_m)
        below = points[:, 2] < city.ground.height_at(points[:, :2])
        classes = np.where(below, city.ground.class_at(points[:, :2]), FREE)
        for part in parts:
            lower, upper = part.bounds_m()
            for n in np.flatnonzero(
                (lower < points.max(axis=0)).all(axis=1) & (upper > points.min(axis=0)).all(axis=1)
            ):
                classes[part[n : n + 1].contain(points)] = part.class_id[n]
        counts = np.bincount(classes, minlength=FREE + 1)[:FREE]
        if labels[tuple(index)] != FREE:
            assert labels[tuple(index)] == counts.argmax()
        else:  # interior: no neighbour in the grid is free
            for axis in range(3):
                for step in (-1, 1):
                    beside = index + step * np.eye(3, dtype=int)[axis]
                    if (beside >= 0).all() and (beside < OCC3D_GRID.shape).all():
                        assert solid[tuple(beside)]


def test_padding_decides_at_the_border(city):
    """A voxel at the border of a small grid is labelled as the same voxel within a large grid."""
    small = VoxelGrid((-8.0, -8.0, -1.0), 0.4, (40, 40, 8))
    _, whole = voxelize(city, TIME_S, OCC3D_GRID)
    _, part = voxelize(city, TIME_S, small)
    assert np.array_equal(part, whole[80:120, 80:120, :8])


def march(solid: np.ndarray, grid: VoxelGrid, origin: np.ndarray, direction: np.ndarray, step_m: float = 0.004):
    """Voxels in the order in which a ray meets them, by small steps, up to the first solid one."""
    lengths = np.arange(0, 120, step_m)
    points = origin + lengths[:, None] * direction / np.linalg.norm(direction)
    index, inside_grid = grid.index_of(points)
    index = index[: int(np.argmin(inside_grid)) if not inside_grid.all() else len(index)]
    blocked = np.flatnonzero(solid[tuple(index.T)])
    return index[: blocked[0] + 1] if len(blocked) else index


def test_a_look_sees_what_small_steps_see(voxels):
    """One line of sight at a time: either it reaches its target and marks the way there, or it marks nothing."""
    solid, labels = voxels
    targets = VisibilityTargets.of(solid, labels, OCC3D_GRID)
    origin = EGO_FROM_LIDAR[:3, 3]
    rng = np.random.default_rng(2)
    reached = 0
    for pick in rng.permutation(len(targets.points_m))[:400]:
        direction = targets.points_m[pick] - origin
        seen = np.zeros(solid.shape, dtype=bool)
        mark_visible(solid, origin, targets, np.arange(len(targets.points_m)) == pick, OCC3D_GRID, seen)
        if direction @ targets.normals[pick] >= 0:
            assert not seen.any()  # it looks away
            continue
        path = march(solid, OCC3D_GRID, origin, direction)
        cut = np.argwhere(seen)
        on_path = np.zeros(solid.shape, dtype=bool)
        on_path[tuple(path.T)] = True
        # Steps may jump over a corner that the line cuts by millimetres, and go on where that corner is solid.
        extra = cut[~on_path[tuple(cut.T)]]
        assert all(chord_m(origin, direction, index) < 0.005 for index in extra)
        if np.array_equal(path[-1], targets.voxels[pick]) and not len(extra):
            reached += 1
            assert seen[tuple(targets.voxels[pick])] and len(cut) == len(np.unique(path, axis=0))
    assert reached > 20


def chord_m(start: np.ndarray, direction: np.ndarray, index: np.ndarray) -> float:
    """Length of a ray inside a voxel."""
    unit = direction / np.linalg.norm(direction)
    low = np.array(OCC3D_GRID.origin_m) + index * OCC3D_GRID.voxel_size_m
    with np.errstate(divide="ignore"):
        a, b = (low - start) / unit, (low + OCC3D_GRID.voxel_size_m - start) / unit
    return float(np.maximum(a, b).min() - np.minimum(a, b).max())


def test_masks_hold_what_is_seen_and_nothing_behind_it(city, voxels, rig):
    solid, labels = voxels
    truth = occupancy_truth(city, TIME_S, rig, EGO_FROM_LIDAR)
    assert truth.mask_lidar is not None
    assert np.array_equal(truth.labels, labels)
    assert not (truth.observed & solid & (labels == FREE)).any()  # interiors are in no mask
    rng = np.random.default_rng(3)
    seen_surface = np.argwhere(truth.observed & (labels != FREE))
    assert len(seen_surface) > 1000
    for index in rng.permutation(seen_surface)[:60]:  # some camera has a free line to some face of it
        assert any(reaches(solid, camera.ego_from_cam[:3, 3], index) for camera in rig)
    hidden_surface = np.argwhere(~truth.observed & (labels != FREE))
    blocked = [
        not any(reaches(solid, camera.ego_from_cam[:3, 3], index) and in_image(camera, index) for camera in rig)
        for index in rng.permutation(hidden_surface)[:60]
    ]
    assert np.mean(blocked) > 0.95  # lines of sight that graze a corner may be decided either way
    share = truth.observed.mean(), truth.mask_lidar.mean()
    assert 0.03 < share[0] < 0.5 and 0.03 < share[1] < 0.6


def reaches(solid: np.ndarray, origin: np.ndarray, index: np.ndarray) -> bool:
    """A line from `origin` to the middle of one of the voxel's faces meets this voxel first."""
    center = OCC3D_GRID.centers_m().astype(np.float64)[tuple(index)]
    for normal in np.concatenate([np.eye(3), -np.eye(3)]):
        point = center + 0.49 * OCC3D_GRID.voxel_size_m * normal
        if (origin - point) @ normal > 0:
            path = march(solid, OCC3D_GRID, origin, point - origin, 0.01)
            if np.array_equal(path[-1], index):
                return True
    return False


def in_image(camera: Camera, index: np.ndarray) -> bool:
    """All of the voxel is in the image."""
    corners = np.stack(np.meshgrid(*[(0, 1)] * 3), axis=-1).reshape(-1, 3)
    points = np.array(OCC3D_GRID.origin_m) + (index + corners) * OCC3D_GRID.voxel_size_m
    return bool(camera.project(apply(inverse(camera.ego_from_cam), points))[1].all())


def test_truth_is_in_the_ego_frame_of_the_moment(city):
    """What stands still moves through the grid as the ego drives: compare two moments by their world positions."""
    first, second = voxelize(city, 0.5, OCC3D_GRID)[1], voxelize(city, 3.0, OCC3D_GRID)[1]
    static = np.isin(first, (15,))
    centers = OCC3D_GRID.centers_m().astype(np.float64)[static]
    then = apply(inverse(city.world_from_ego(3.0)) @ city.world_from_ego(0.5), centers)
    index, inside_grid = OCC3D_GRID.index_of(then)
    inside_grid &= (index > 1).all(axis=1) & (index < np.array(OCC3D_GRID.shape) - 2).all(axis=1)
    near = np.zeros(inside_grid.sum(), dtype=bool)
    for shift in np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3):
        near |= second[tuple((index[inside_grid] + shift).T)] == 15
    assert near.mean() > 0.98
