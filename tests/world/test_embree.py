"""Rays by embree against every triangle tried one by one."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")

from occ_core.world.embree import PACK, EmbreeScene

RAYS = 5 * PACK + 3  # the last pack is not full


def some_mesh(rng: np.random.Generator, triangles: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of a size of about 1 m within 4 m of the origin; they share no vertices."""
    corners = rng.uniform(-4, 4, (triangles, 1, 3)) + rng.uniform(-1, 1, (triangles, 3, 3))
    return corners.reshape(-1, 3).astype(np.float32), np.arange(3 * triangles, dtype=np.int32).reshape(-1, 3)


def some_rays(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    directions = rng.normal(size=(RAYS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return rng.uniform(-4, 4, (RAYS, 3)).astype(np.float32), directions.astype(np.float32)


def distances(origins: np.ndarray, directions: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Of each ray to each triangle (Moeller and Trumbore 1997), float64 (N, F), inf where it does not meet it."""
    a, b, c = np.moveaxis(vertices[faces].astype(np.float64), 1, 0)
    o, d = origins.astype(np.float64)[:, None], directions.astype(np.float64)[:, None]
    edge1, edge2 = b - a, c - a
    p, t = np.cross(d, edge2), o - a
    q = np.cross(t, edge1)
    scale = 1 / (p * edge1).sum(-1)
    u, v, distance = (p * t).sum(-1) * scale, (q * d).sum(-1) * scale, (q * edge2).sum(-1) * scale
    return np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0), distance, np.inf)


def test_first_hits_equal_those_of_trying_every_triangle():
    rng = np.random.default_rng(0)
    meshes = [some_mesh(rng, 200), some_mesh(rng, 300)]
    origins, directions = some_rays(rng)
    found = EmbreeScene(meshes).first(origins, directions, np.full(RAYS, 6.0, np.float32))
    per_mesh = [distances(origins, directions, *mesh) for mesh in meshes]
    every = np.concatenate(per_mesh, axis=1)
    nearest = every.min(axis=1)
    met = nearest < 6.0
    assert 0.2 < met.mean() < 1
    assert ((found.face >= 0) == met).all()
    assert found.distance_m[met] == pytest.approx(nearest[met], rel=1e-4)
    assert (found.distance_m[~met] == 6.0).all()
    assert ((found.face + 200 * found.mesh)[met] == every.argmin(axis=1)[met]).all()
    for i in np.flatnonzero(met):
        vertices, faces = meshes[found.mesh[i]]
        a, b, c = vertices[faces[found.face[i]]]
        across = np.cross(found.normal[i], np.cross(b - a, c - a))
        assert np.abs(across).max() < 1e-4 * np.linalg.norm(found.normal[i]) ** 2


def test_blocked_equals_trying_every_triangle():
    rng = np.random.default_rng(1)
    mesh = some_mesh(rng, 200)
    origins, directions = some_rays(rng)
    scene, within_m = EmbreeScene([mesh]), rng.uniform(1, 8, RAYS).astype(np.float32)
    blocked = distances(origins, directions, *mesh).min(axis=1) < within_m
    assert 0.1 < blocked.mean() < 0.9
    assert (scene.blocked(origins, directions, within_m) == blocked).all()
    within_m[::2] = -1.0
    assert (scene.blocked(origins, directions, within_m) == blocked & (within_m > 0)).all()


def test_one_direction_serves_all_rays():
    rng = np.random.default_rng(2)
    scene = EmbreeScene([some_mesh(rng, 200)])
    (origins, directions), within_m = some_rays(rng), np.full(RAYS, 8.0, np.float32)
    every = np.repeat(directions[:1], RAYS, axis=0)
    assert (scene.blocked(origins, directions[:1], within_m) == scene.blocked(origins, every, within_m)).all()


def test_nothing_is_met_where_nothing_is():
    origins, directions = some_rays(np.random.default_rng(3))
    reach = np.full(RAYS, np.inf, np.float32)
    for scene in (EmbreeScene([]), EmbreeScene([(np.zeros((0, 3)), np.zeros((0, 3), np.int32))])):
        assert not scene.blocked(origins, directions, reach).any()
        assert (scene.first(origins, directions, reach).face == -1).all()
