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
FINE_RADIUS_M = 1.6  # balls below it get 80 triangles, up to 6 cm off: less than gaps between leaves
EGO_SHADOW_M = 12.0  # its own shadow and shade end within this distance
# Chassis and cabin of nuScenes' car, which its cameras do not see: lower and upper corners in the ego frame.
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
    """What stands still in a city, parked actors included, ready for rays.

    `body`: the robot's own, in the ego frame, which cameras see; None: a car that only casts a shadow.
    """

    def __init__(self, city: City, body: Solids | None = None) -> None:
        self.city, self.body = city, body
        self.parked = [i for i, actor in enumerate(city.actors) if not actor.moving]
        self.movers = [i for i, actor in enumerate(city.actors) if actor.moving]
        self.actor_meshes = {i: city.actors[i].solids.mesh() for i in self.movers}
        self.body_mesh = Solids.concatenate([]).mesh() if body is None else body.mesh()
        placed = [city.actors[i].solids.transformed(city.actors[i].world_from_actor(0.0)) for i in self.parked]
        solids = Solids.concatenate([city.solids, *placed])
        self.table, self.class_id = solid_table(solids), solids.class_id
        sizes = [len(city.solids), *(len(p) for p in placed)]
        self.instance = np.repeat(np.array([-1, *self.parked], dtype=np.int32), sizes)
        mesh, ground = solids.mesh(FINE_RADIUS_M), city.ground.mesh()
        self.solid_of_face = np.concatenate([mesh.solid_of_face, np.full(len(ground.faces), GROUND)]).astype(np.int32)
        self.scene = _scene(np.concatenate([mesh.vertices[mesh.faces], ground.vertices[ground.faces]]))
        g = city.ground
        self.ground_table = GroundTable(
            float(g.origin_m[0]), float(g.origin_m[1]), float(g.cell_m), g.material, city.seed & 0xFFFF
        )

    def at(self, t_s: float) -> Moment:
        """The city with its actors where they are at `t_s`."""
        return Moment(self, t_s)


class Moment:
    """The city at one time.

    Attributes:
        world_from_actor: pose of every actor.
        table: all solids, those that stand still first.
        class_id: uint8, per solid. instance: int32, per solid: index of the actor, -1 for what is none.
    """

    def __init__(self, tracer: Tracer, t_s: float) -> None:
        city = self.city = tracer.city
        self.t_s, self._tracer = t_s, tracer
        self.ground_table = tracer.ground_table
        self.world_from_actor = [actor.world_from_actor(t_s) for actor in city.actors]
        self._world_from_ego = city.world_from_ego(t_s)
        self._ego = _scene(self._ego_body())
        self.table, self.class_id, self.instance = tracer.table, tracer.class_id, tracer.instance
        self._scene = None
        near = [i for i in tracer.movers if np.linalg.norm(self.world_from_actor[i][:3, 3] - self._here) < FAR_M]
        if near or tracer.body is not None:
            self._add_movers(near)

    @property
    def _here(self) -> np.ndarray:
        return self._world_from_ego[:3, 3]

    def _add_movers(self, movers: list[int]) -> None:
        solids = [self.city.actors[i].solids.transformed(self.world_from_actor[i]) for i in movers]
        meshes = [self._tracer.actor_meshes[i] for i in movers]
        poses = [self.world_from_actor[i] for i in movers]
        if self._tracer.body is not None:  # moves as actors do, but is none
            solids.append(self._tracer.body.transformed(self._world_from_ego))
            meshes.append(self._tracer.body_mesh)
            movers, poses = [*movers, -1], [*poses, self._world_from_ego]
        sizes = [len(s) for s in solids]
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]]) + len(self.class_id)
        vertices = [mesh.vertices @ p[:3, :3].T + p[:3, 3] for mesh, p in zip(meshes, poses, strict=True)]
        self._scene = _scene(np.concatenate([v[mesh.faces] for v, mesh in zip(vertices, meshes, strict=True)]))
        faces = [mesh.solid_of_face + n for mesh, n in zip(meshes, first, strict=True)]
        self._solid_of_face = np.concatenate(faces).astype(np.int32)
        moved = Solids.concatenate(solids)
        self.class_id = np.concatenate([self.class_id, moved.class_id])
        self.instance = np.concatenate([self.instance, np.repeat(np.array(movers, dtype=np.int32), sizes)])
        self.table = SolidTable(*(np.concatenate(pair) for pair in zip(self.table, solid_table(moved), strict=True)))

    def _ego_body(self) -> np.ndarray:
        pose, mesh = self._world_from_ego, self._tracer.body_mesh
        boxes = np.concatenate([_box_triangles(*corners) for corners in EGO_BODY_M])
        triangles = boxes if self._tracer.body is None else mesh.vertices[mesh.faces]
        return triangles @ pose[:3, :3].T + pose[:3, 3]

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hit of each ray; origins (N, 3) or (3,), unit directions (N, 3), world."""
        d = np.ascontiguousarray(directions, dtype=np.float32)
        o = np.ascontiguousarray(np.broadcast_to(origins, d.shape), dtype=np.float32)
        found = self._tracer.scene.run(o, d, output=True)
        hit = found["primID"] >= 0
        distance = np.where(hit, found["tfar"], np.inf).astype(np.float64)
        solid = np.where(hit, self._tracer.solid_of_face[found["primID"]], SKY).astype(np.int32)
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
        """bool (N,): something stands within `within_m` along the ray; the car that carries the sensors counts too."""
        out = np.zeros(len(origins), dtype=bool)
        if not len(origins):
            return out
        d = np.ascontiguousarray(np.broadcast_to(directions, origins.shape), dtype=np.float32)
        o = np.ascontiguousarray(origins, dtype=np.float32)
        reach = np.full(len(o), within_m, dtype=np.float32)
        for scene in (self._tracer.scene, self._scene):
            if scene is not None:
                out |= scene.run(o, d, reach, query="OCCLUDED") >= 0
        near = np.flatnonzero(((o - self._here.astype(np.float32)) ** 2).sum(axis=1) < EGO_SHADOW_M**2)
        out[near] |= self.blocked_by_ego(o[near], d[near], within_m)
        return out

    def blocked_by_ego(self, origins: np.ndarray, directions: np.ndarray, within_m: float = FAR_M) -> np.ndarray:
        """bool (N,): the car's own body is in the way."""
        o, d = (np.ascontiguousarray(v, dtype=np.float32) for v in (origins, directions))
        return self._ego.run(o, d, np.full(len(o), within_m, dtype=np.float32), query="OCCLUDED") >= 0

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
