"""Rays into the city: the static city once as an embree scene, the actors anew for each moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

from occ_core.world.city import City
from occ_core.world.shading import GROUND, SKY, GroundTable, SolidTable
from occ_core.world.solids import Solids

FAR_M = 400.0
# Chassis and cabin of the car that carries the sensors: lower and upper corners in the ego frame.
EGO_BODY_M = (((-1.05, -0.88, 0.2), (3.7, 0.88, 0.95)), ((-0.8, -0.7, 0.95), (1.5, 0.7, 1.45)))


@dataclass(frozen=True, eq=False)
class Hits:
    """First surfaces along N rays.

    Attributes:
        distance_m: float64 (N,) along the unit ray, inf in the sky.
        normals: float64 (N, 3) unit, world, facing the eye.
        solid: int32 (N,) index into the moment's solids, GROUND or SKY.
    """

    distance_m: np.ndarray
    normals: np.ndarray
    solid: np.ndarray


def _scene(triangles: np.ndarray) -> rtcore_scene.EmbreeScene:
    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(triangles, dtype=np.float32))
    return scene


def _box_triangles(lower, upper) -> np.ndarray:
    """(12, 3, 3) triangles of an axis-aligned box."""
    corner = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    corner = np.asarray(lower) + corner * (np.asarray(upper) - np.asarray(lower))
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return np.array([corner[[q[i] for i in pick]] for q in quads for pick in ((0, 1, 2), (0, 2, 3))])


def solid_table(solids: Solids) -> SolidTable:
    """The solids as the shading kernel takes them; their parent is the world."""
    rotation_t = np.swapaxes(solids.parent_from_solid[:, :3, :3], 1, 2)
    offset = -np.einsum("nij,nj->ni", rotation_t, solids.parent_from_solid[:, :3, 3])
    return SolidTable(
        np.concatenate([rotation_t, offset[:, :, None]], axis=2),
        solids.half_size_m,
        solids.kind,
        solids.material,
        solids.color,
        (solids.seed & 0xFFFFF).astype(np.int64),
    )


class Tracer:
    """Static part of a city, ready for rays."""

    def __init__(self, city: City) -> None:
        self.city = city
        mesh, ground = city.solids.mesh(), city.ground.mesh()
        self._solid_of_face = np.concatenate([mesh.solid_of_face, np.full(len(ground.faces), GROUND)]).astype(np.int32)
        self._scene = _scene(np.concatenate([mesh.vertices[mesh.faces], ground.vertices[ground.faces]]))
        g = city.ground
        self.ground_table = GroundTable(
            float(g.origin_m[0]), float(g.origin_m[1]), float(g.cell_m), g.material, city.seed & 0xFFFF
        )
        self._static_table = solid_table(city.solids)
        self._actor_meshes = [actor.solids.mesh() for actor in city.actors]

    def at(self, t_s: float, with_ego_body: bool = False) -> Moment:
        """The city with its actors where they are at `t_s`."""
        return Moment(self, t_s, with_ego_body)


class Moment:
    """The city at one time.

    Attributes:
        table: all solids, the static ones first.
        class_id: uint8, per solid. instance: int32, per solid: index of the actor, -1 for the static city.
    """

    def __init__(self, tracer: Tracer, t_s: float, with_ego_body: bool) -> None:
        city = self.city = tracer.city
        self.t_s, self._tracer = t_s, tracer
        self.world_from_actor = [actor.world_from_actor(t_s) for actor in city.actors]
        moved = [a.solids.transformed(p) for a, p in zip(city.actors, self.world_from_actor, strict=True)]
        count = len(city.solids.kind)
        triangles, solid_of_face, instance = [], [], [np.full(count, -1)]
        for i, (mesh, pose) in enumerate(zip(tracer._actor_meshes, self.world_from_actor, strict=True)):
            vertices = mesh.vertices @ pose[:3, :3].T + pose[:3, 3]
            triangles.append(vertices[mesh.faces])
            solid_of_face.append(mesh.solid_of_face + count)
            size = len(city.actors[i].solids.kind)
            instance.append(np.full(size, i))
            count += size
        self.instance = np.concatenate(instance).astype(np.int32)
        self.class_id = np.concatenate([s.class_id for s in (city.solids, *moved)])
        self._solid_of_face = np.concatenate(solid_of_face).astype(np.int32) if moved else np.zeros(0, np.int32)
        self._scene = _scene(np.concatenate(triangles)) if moved else None
        self._ego = _scene(self._ego_body()) if with_ego_body else None
        table = solid_table(Solids.concatenate(moved)) if moved else None
        static = tracer._static_table
        self.table = (
            SolidTable(*(np.concatenate(pair) for pair in zip(static, table, strict=True))) if table else static
        )

    def _ego_body(self) -> np.ndarray:
        pose = self.city.world_from_ego(self.t_s)
        boxes = np.concatenate([_box_triangles(*corners) for corners in EGO_BODY_M])
        return boxes @ pose[:3, :3].T + pose[:3, 3]

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hit of each ray; origins (N, 3) or (3,), unit directions (N, 3), world."""
        d = np.ascontiguousarray(directions, dtype=np.float32)
        o = np.ascontiguousarray(np.broadcast_to(origins, d.shape), dtype=np.float32)
        found = self._tracer._scene.run(o, d, output=True)
        hit = found["primID"] >= 0
        distance = np.where(hit, found["tfar"], np.inf).astype(np.float64)
        solid = np.where(hit, self._tracer._solid_of_face[found["primID"]], SKY).astype(np.int32)
        normals = found["Ng"]
        if self._scene is not None:
            moving = self._scene.run(o, d, output=True)
            nearer = (moving["primID"] >= 0) & (moving["tfar"] < distance)
            distance[nearer] = moving["tfar"][nearer]
            solid[nearer] = self._solid_of_face[moving["primID"][nearer]]
            normals[nearer] = moving["Ng"][nearer]
        normals = normals.astype(np.float64)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
        away = np.einsum("ni,ni->n", normals, d) > 0
        normals[away] *= -1
        return Hits(distance, normals, solid)

    def blocked(self, origins: np.ndarray, directions: np.ndarray, within_m: float = FAR_M) -> np.ndarray:
        """bool (N,): something stands within `within_m` along the ray."""
        d = np.ascontiguousarray(np.broadcast_to(directions, origins.shape), dtype=np.float32)
        o = np.ascontiguousarray(origins, dtype=np.float32)
        out = np.zeros(len(o), dtype=bool)
        for scene in (self._tracer._scene, self._scene, self._ego):
            if scene is not None and len(o):
                reach = np.full(len(o), within_m, dtype=np.float32)
                out |= scene.run(o, d, reach, query="OCCLUDED") >= 0
        return out

    def blocked_by_ego(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """bool (N,): the car's own body is in the way."""
        if self._ego is None:
            return np.zeros(len(origins), dtype=bool)
        d = np.ascontiguousarray(directions, dtype=np.float32)
        return self._ego.run(np.ascontiguousarray(origins, dtype=np.float32), d, query="OCCLUDED") >= 0

    def classes(self, hits: Hits, points: np.ndarray) -> np.ndarray:
        """uint8 (N,): Occ3D class of each hit, 17 in the sky; `points` (N, 3) are the hits in the world."""
        out = np.full(len(hits.solid), 17, dtype=np.uint8)
        on_solid = hits.solid >= 0
        out[on_solid] = self.class_id[hits.solid[on_solid]]
        on_ground = hits.solid == GROUND
        out[on_ground] = self.city.ground.class_at(points[on_ground, :2])
        return out

    def instances(self, hits: Hits) -> np.ndarray:
        """int32 (N,): actor index of each hit, -1 where it is not an actor."""
        return np.where(hits.solid >= 0, self.instance[np.maximum(hits.solid, 0)], -1).astype(np.int32)
