"""Annotated boxes of the actors: where they are, how much of them is seen, how many LiDAR points they hold."""

from __future__ import annotations

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.geometry import apply, inverse
from occ_core.world.city import Actor, City
from occ_core.world.nuscenes_tables import attribute_of
from occ_core.world.render import RenderedImage

RANGE_M = 80.0
PROBES = 64
PEDESTRIAN = 7


class SceneBoxes:
    """Collects boxes keyframe by keyframe."""

    def __init__(self, city: City) -> None:
        self.city = city
        self._probes = [_surface_points(actor) for actor in city.actors]
        self._seen: dict[int, dict[int, tuple[float, int]]] = {}  # actor -> keyframe -> (visible share, LiDAR points)
        self._stamps_s: dict[int, float] = {}

    def add(
        self,
        keyframe: int,
        t_s: float,
        views: dict[str, tuple[RenderedImage, float]],
        rig: Rig,
        lidar_world_m: np.ndarray,
    ) -> None:
        """Note who is seen at a keyframe.

        Args:
            t_s: LiDAR stamp. views: per camera its view and its own stamp. lidar_world_m: (N, 3).
        """
        self._stamps_s[keyframe] = t_s
        here = self.city.world_from_ego(t_s)[:3, 3]
        columns = np.ascontiguousarray(lidar_world_m.T)
        in_view = set().union(*(np.unique(view.instance).tolist() for view, _ in views.values()))
        found: dict[int, int] = {}  # actor -> LiDAR points
        poses = np.array([actor.world_from_actor(t_s) for actor in self.city.actors]).reshape(-1, 4, 4)
        for i in np.flatnonzero(np.linalg.norm(poses[:, :3, 3] - here, axis=1) <= RANGE_M).tolist():
            actor, pose = self.city.actors[i], poses[i]
            points = _points_inside(actor, pose, columns)
            if i in in_view or points:
                found[i] = points
        shares = self._visible_shares([i for i in found if i in in_view], views, rig)
        for i, points in found.items():
            self._seen.setdefault(i, {})[keyframe] = (shares.get(i, 0.0), points)

    def _visible_shares(
        self, actors: list[int], views: dict[str, tuple[RenderedImage, float]], rig: Rig
    ) -> dict[int, float]:
        """Per actor the share of its surface points inside any image whose pixel shows the actor."""
        inside, visible = np.zeros((2, len(actors), PROBES), dtype=bool)
        for name, (view, t_s) in views.items():
            camera: Camera = rig[name]
            cam_from_world = inverse(self.city.world_from_ego(t_s) @ camera.ego_from_cam)
            world = [apply(self.city.actors[i].world_from_actor(t_s), self._probes[i]) for i in actors]
            pixels, shown = camera.project(apply(cam_from_world, np.reshape(world, (-1, 3))))
            u, v = np.rint(pixels[shown]).astype(int).T
            inside.reshape(-1)[shown] = True
            visible.reshape(-1)[shown] |= view.instance[v, u] == np.repeat(actors, PROBES)[shown]
        return dict(zip(actors, (visible.sum(axis=1) / np.maximum(1, inside.sum(axis=1))).tolist(), strict=True))

    def instances(self, table_from_world: np.ndarray):
        """Yield (actor, category, boxes) as SceneTables.add_instance takes them; gaps between sightings are filled."""
        for i, sightings in sorted(self._seen.items()):
            actor = self.city.actors[i]
            keyframes = range(min(sightings), max(sightings) + 1)
            boxes = []
            for k in keyframes:
                share, points = sightings.get(k, (0.0, 0))
                pose = actor.world_from_actor(self._stamps_s[k]).copy()
                pose[:3, 3] += pose[:3, 2] * actor.size_m[2] / 2
                boxes.append(
                    {
                        "keyframe": k,
                        "pose": table_from_world @ pose,
                        "size_m": actor.size_m,
                        "visible": share,
                        "lidar_points": points,
                        "attributes": _attributes(actor, self._stamps_s[k]),
                    }
                )
            yield i, actor.category, boxes


def _surface_points(actor: Actor) -> np.ndarray:
    """(PROBES, 3) points on the actor's surface, in its frame, evenly by area."""
    mesh = actor.solids.mesh()
    triangles = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    edges = np.cumsum(area)
    pick = np.searchsorted(edges, (np.arange(PROBES) + 0.5) / PROBES * edges[-1])
    return triangles[np.minimum(pick, len(area) - 1)].mean(axis=1)


def _points_inside(actor: Actor, world_from_actor: np.ndarray, points_world_m: np.ndarray) -> int:
    """LiDAR points, as columns (3, N), within the box."""
    w, length, h = actor.size_m
    near = np.ones(points_world_m.shape[1], dtype=bool)
    for column, center in zip(points_world_m, world_from_actor[:3, 3], strict=True):
        near &= np.abs(column - center) < length + w + h
    x, y, z = apply(inverse(world_from_actor), points_world_m[:, near].T).T
    return int(((np.abs(x) <= length / 2) & (np.abs(y) <= w / 2) & (z >= 0) & (z <= h)).sum())


def _attributes(actor: Actor, t_s: float) -> list[str]:
    step = actor.world_from_actor(t_s + 0.1)[:3, 3] - actor.world_from_actor(max(0.0, t_s - 0.1))[:3, 3]
    speed = float(np.linalg.norm(step)) / min(0.2, t_s + 0.1)
    rider = bool((actor.solids.class_id == PEDESTRIAN).any()) or actor.moving
    return attribute_of(actor.category, speed > 0.2, actor.moving, rider)
