"""Annotated boxes of the actors: where they are, how much of them is seen, how many LiDAR points they hold."""

from __future__ import annotations

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.geometry import apply, inverse
from occ_core.world.city import Actor, City
from occ_core.world.nuscenes_tables import attribute_of
from occ_core.world.render import View

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
        self, keyframe: int, t_s: float, views: dict[str, tuple[View, float]], rig: Rig, lidar_world_m: np.ndarray
    ) -> None:
        """Note who is seen at a keyframe.

        Args:
            t_s: LiDAR stamp. views: per camera its view and its own stamp. lidar_world_m: (N, 3).
        """
        self._stamps_s[keyframe] = t_s
        here = self.city.world_from_ego(t_s)[:3, 3]
        in_view = {n: set(np.unique(view.instance).tolist()) for n, (view, _) in views.items()}
        for i, actor in enumerate(self.city.actors):
            pose = actor.world_from_actor(t_s)
            if np.linalg.norm(pose[:3, 3] - here) > RANGE_M:
                continue
            points = _points_inside(actor, pose, lidar_world_m)
            seen = any(i in instances for instances in in_view.values())
            if not seen and not points:
                continue
            share = self._visible_share(i, views, rig) if seen else 0.0
            self._seen.setdefault(i, {})[keyframe] = (share, points)

    def _visible_share(self, i: int, views: dict[str, tuple[View, float]], rig: Rig) -> float:
        """Share of the actor's surface points inside any image whose pixel shows the actor."""
        inside, visible = np.zeros(PROBES, dtype=bool), np.zeros(PROBES, dtype=bool)
        for name, (view, t_s) in views.items():
            camera: Camera = rig[name]
            world = apply(self.city.actors[i].world_from_actor(t_s), self._probes[i])
            world_from_cam = self.city.world_from_ego(t_s) @ camera.ego_from_cam
            pixels, shown = camera.project(apply(inverse(world_from_cam), world))
            uv = np.rint(pixels[shown]).astype(int)
            inside[shown] = True
            visible[np.flatnonzero(shown)[view.instance[uv[:, 1], uv[:, 0]] == i]] = True
        return float(visible.sum() / max(1, inside.sum()))

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
    """LiDAR points within the box."""
    w, length, h = actor.size_m
    near = points_world_m[np.abs(points_world_m - world_from_actor[:3, 3]).max(axis=1) < length + w + h]
    p = apply(inverse(world_from_actor), near)
    return int(((np.abs(p[:, 0]) <= length / 2) & (np.abs(p[:, 1]) <= w / 2) & (p[:, 2] >= 0) & (p[:, 2] <= h)).sum())


def _attributes(actor: Actor, t_s: float) -> list[str]:
    step = actor.world_from_actor(t_s + 0.1)[:3, 3] - actor.world_from_actor(max(0.0, t_s - 0.1))[:3, 3]
    speed = float(np.linalg.norm(step)) / min(0.2, t_s + 0.1)
    rider = bool((actor.solids.class_id == PEDESTRIAN).any()) or actor.moving
    return attribute_of(actor.category, speed > 0.2, actor.moving, rider)
