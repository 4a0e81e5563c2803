"""Rays into the city: the static city once as an embree scene, the actors anew for each snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from occ_core.geometry import apply
from occ_core.world.city import City
from occ_core.world.embree import EmbreeScene
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
        points_m: float64 (N, 3) where, world; the ray's origin in the sky.
        normals: float64 (N, 3) unit, world, facing the eye.
        solid: int32 (N,) index into the snapshot's solids, GROUND or SKY.
    """

    distance_m: np.ndarray
    points_m: np.ndarray
    normals: np.ndarray
    solid: np.ndarray


def _box_faces() -> np.ndarray:
    """Faces (12, 3) of a box whose corners are numbered as `_box_corners` does."""
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return np.array([[q[i] for i in pick] for q in quads for pick in ((0, 1, 2), (0, 2, 3))])


def _box_corners(lower, upper) -> np.ndarray:
    """The corners (8, 3) of an axis-aligned box."""
    corner = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    return np.asarray(lower) + corner * (np.asarray(upper) - np.asarray(lower))


EGO_CORNERS_M = np.concatenate([_box_corners(*corners) for corners in EGO_BODY_M])
EGO_FACES = np.concatenate([_box_faces() + 8 * i for i in range(len(EGO_BODY_M))])


def _moved(world_from_body: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    return apply(world_from_body, vertices).astype(np.float32)


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
    """Everything that stands still in a city, parked actors included, prepared for rays.

    `body`: the robot's own, in the ego frame, which cameras see; None: a car that only casts a shadow.
    """

    def __init__(self, city: City, body: Solids | None = None) -> None:
        self.city, self.body = city, body
        self.parked = [i for i, actor in enumerate(city.actors) if not actor.moving]
        self.movers = [i for i, actor in enumerate(city.actors) if actor.moving]
        self.actor_meshes = {i: city.actors[i].solids.mesh() for i in self.movers}
        self.body_mesh = Solids.concatenate([]).mesh() if body is None else body.mesh()
        self.ego_mesh = (EGO_CORNERS_M, EGO_FACES) if body is None else (self.body_mesh.vertices, self.body_mesh.faces)
        placed = [city.actors[i].solids.transformed(city.actors[i].world_from_actor(0.0)) for i in self.parked]
        solids = Solids.concatenate([city.solids, *placed])
        self.table, self.class_id = solid_table(solids), solids.class_id
        sizes = [len(city.solids), *(len(p) for p in placed)]
        self.instance = np.repeat(np.array([-1, *self.parked], dtype=np.int32), sizes)
        mesh, ground = solids.mesh(FINE_RADIUS_M), city.ground.mesh()
        self.solid_of_face = np.concatenate([mesh.solid_of_face, np.full(len(ground.faces), GROUND)]).astype(np.int32)
        vertices = np.concatenate([mesh.vertices, ground.vertices])
        faces = np.concatenate([mesh.faces, ground.faces + len(mesh.vertices)])
        self.scene = EmbreeScene([(vertices, faces)])
        g = city.ground
        self.ground_table = GroundTable(
            float(g.origin_m[0]), float(g.origin_m[1]), float(g.cell_m), g.material, city.seed & 0xFFFF
        )

    def at(self, t_s: float) -> Snapshot:
        """The city with its actors where they are at `t_s`."""
        return Snapshot(self, t_s)


class Snapshot:
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
        vertices_m, faces = tracer.ego_mesh
        self._ego = EmbreeScene([(_moved(self._world_from_ego, vertices_m), faces)])
        self.table, self.class_id, self.instance = tracer.table, tracer.class_id, tracer.instance
        self._scene: EmbreeScene | None = None
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
        first = len(self.class_id)
        solid_of_face, first_face = [], [0]
        moved_meshes = [(_moved(pose, mesh.vertices), mesh.faces) for mesh, pose in zip(meshes, poses, strict=True)]
        self._scene = EmbreeScene(moved_meshes)
        for mesh, size in zip(meshes, sizes, strict=True):
            solid_of_face.append(mesh.solid_of_face + first)
            first_face.append(first_face[-1] + len(mesh.faces))
            first += size
        self._solid_of_face = np.concatenate(solid_of_face).astype(np.int32)
        self._first_face = np.array(first_face, dtype=np.int64)
        moved = Solids.concatenate(solids)
        self.class_id = np.concatenate([self.class_id, moved.class_id])
        self.instance = np.concatenate([self.instance, np.repeat(np.array(movers, dtype=np.int32), sizes)])
        self.table = SolidTable(*(np.concatenate(pair) for pair in zip(self.table, solid_table(moved), strict=True)))

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hit of each ray; origins (N, 3) or (3,), unit directions (N, 3), world."""
        origins = np.ascontiguousarray(np.broadcast_to(origins, directions.shape))
        d = np.ascontiguousarray(directions, dtype=np.float32)
        o = np.ascontiguousarray(origins, dtype=np.float32)
        n = len(d)
        still = self._tracer.scene.first(o, d, np.full(n, np.inf, dtype=np.float32))
        hits = Hits(np.empty(n), np.empty((n, 3)), np.empty((n, 3)), np.empty(n, dtype=np.int32))
        out = hits.distance_m, hits.points_m, hits.normals, hits.solid
        _first_hits(origins, directions, still, self._tracer.solid_of_face, STILL_FACES, False, out)
        if self._scene is not None:
            moving = self._scene.first(o, d, still.distance_m)  # looks no further than what stands still
            _first_hits(origins, directions, moving, self._solid_of_face, self._first_face, True, out)
        return hits

    def blocked(self, origins: np.ndarray, directions: np.ndarray, within_m: float = FAR_M) -> np.ndarray:
        """Whether something stands within `within_m` along the ray, bool (N,); the car that carries the sensors counts
        too.

        Args:
            origins: (N, 3). directions: (N, 3), or (1, 3) for all.
        """
        o, d = (np.ascontiguousarray(v, dtype=np.float32) for v in (origins, directions))
        reach = np.full(len(o), within_m, dtype=np.float32)
        out = self._tracer.scene.blocked(o, d, reach)
        if self._scene is not None:
            reach[out] = -1.0  # embree passes over these
            out |= self._scene.blocked(o, d, reach)
        near = ((o - self._here.astype(np.float32)) ** 2).sum(axis=1) < EGO_SHADOW_M**2
        ask = np.flatnonzero(near & ~out)
        out[ask] = self.blocked_by_ego(o[ask], d if len(d) == 1 else d[ask], within_m)
        return out

    def blocked_by_ego(self, origins: np.ndarray, directions: np.ndarray, within_m: float = FAR_M) -> np.ndarray:
        """Whether the car's own body is in the way, bool (N,)."""
        o, d = (np.ascontiguousarray(v, dtype=np.float32) for v in (origins, directions))
        return self._ego.blocked(o, d, np.full(len(o), within_m, dtype=np.float32))

    def classes(self, hits: Hits) -> np.ndarray:
        """The Occ3D class of each hit, uint8 (N,); 17 in the sky."""
        out = np.full(len(hits.solid), 17, dtype=np.uint8)
        on_solid = hits.solid >= 0
        out[on_solid] = self.class_id[hits.solid[on_solid]]
        on_ground = hits.solid == GROUND
        out[on_ground] = self.city.ground.class_at(hits.points_m[on_ground, :2])
        return out

    def instances(self, hits: Hits) -> np.ndarray:
        """int32 (N,): actor index of each hit, -1 where it is not an actor."""
        return np.where(hits.solid >= 0, self.instance[np.maximum(hits.solid, 0)], -1).astype(np.int32)


STILL_FACES = np.zeros(1, dtype=np.int64)  # what stands still is one mesh


@njit(cache=True)
def _first_hits(origins, directions, found, solid_of_face, first_face, update, out):
    """Fill `out`, the arrays of `Hits`, with what embree found; with `update` only where it is nearer than before."""
    tfar, face, mesh, ng = found
    distance, points, normals, solid = out
    for i in range(len(tfar)):
        hit = face[i] >= 0
        if update and not (hit and tfar[i] < distance[i]):
            continue
        distance[i] = tfar[i] if hit else np.inf
        solid[i] = solid_of_face[first_face[mesh[i]] + face[i]] if hit else SKY
        x, y, z = np.float64(ng[i, 0]), np.float64(ng[i, 1]), np.float64(ng[i, 2])
        length = np.sqrt(x * x + y * y + z * z) + 1e-12
        x, y, z = x / length, y / length, z / length
        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
        sign = -1.0 if x * np.float32(dx) + y * np.float32(dy) + z * np.float32(dz) > 0 else 1.0
        normals[i, 0], normals[i, 1], normals[i, 2] = sign * x, sign * y, sign * z
        along = distance[i] if hit else 0.0
        points[i, 0] = origins[i, 0] + dx * along
        points[i, 1] = origins[i, 1] + dy * along
        points[i, 2] = origins[i, 2] + dz * along
