"""Bodies of robots as their own cameras see them: small robots, cars and vans, and what carries the sensors on top."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from occ_core.world.classes import OWN_BODY
from occ_core.world.embree import EmbreeScene
from occ_core.world.materials import CARBODY, LAMP, METAL, PAINT, RUBBER
from occ_core.world.scene_builder import any_color, seed_of
from occ_core.world.solids import Builder, Solids, yaw_pose
from occ_core.world.vehicles import TYRE, car

SMALL_SHARE = 0.35  # of bodies that are no car's
AXLE = 0.31  # of a car's length: so far behind its middle is the rear axle, where the ego frame lies
BLACK = (0.015, 0.015, 0.017)


@dataclass(frozen=True, eq=False)
class Hull:
    """A body without what carries the sensors, ego frame.

    Attributes:
        solids: of class OWN_BODY.
        lower_m, upper_m: (3,), corners of the box around it.
        roof_m: (2, 2), lower and upper (x, y) of its top.
    """

    solids: Solids
    lower_m: np.ndarray
    upper_m: np.ndarray
    roof_m: np.ndarray

    @staticmethod
    def of(solids: Solids) -> Hull:
        lower, upper = solids.bounds_m()
        top = upper[:, 2] > upper[:, 2].max() - 0.05
        roof_m = np.stack([lower[top, :2].min(axis=0), upper[top, :2].max(axis=0)])
        return Hull(own(solids), lower.min(axis=0), upper.max(axis=0), roof_m)


class BodyOcclusion:
    """Tests whether solids, as an embree scene, stand between eyes and points."""

    def __init__(self, solids: Solids) -> None:
        mesh = solids.mesh()
        self._scene = EmbreeScene([(mesh.vertices, mesh.faces)])

    def hidden(self, eye_m: np.ndarray, points_m: np.ndarray) -> np.ndarray:
        """Whether a solid is between the eye (3,) and each of the points (N, 3), bool (N,)."""
        to = (points_m - eye_m).astype(np.float32)
        reach = np.linalg.norm(to, axis=1)
        eyes = np.ascontiguousarray(np.broadcast_to(eye_m, to.shape), dtype=np.float32)
        return self._scene.blocked(eyes, to / reach[:, None], reach)


def own(solids: Solids) -> Solids:
    """Return the same solids as parts of the robot itself."""
    return replace(solids, class_id=np.full(len(solids), OWN_BODY, np.uint8))


def make_hull(rng: np.random.Generator) -> Hull:
    """A small robot, or one of the city's cars with its rear axle over the origin."""
    if rng.random() < SMALL_SHARE:
        return Hull.of(_small_robot(rng))
    solids = car(rng)
    lower, upper = solids.bounds_m()
    length = upper[:, 0].max() - lower[:, 0].min()
    return Hull.of(solids.transformed(yaw_pose((AXLE * length, 0, 0))))


def _small_robot(rng: np.random.Generator) -> Solids:
    """A box on wheels: a delivery robot, a cart, a bare plate."""
    b = Builder()
    color, seed = any_color(rng), seed_of(rng)
    length, width, height = rng.uniform((0.6, 0.45, 0.35), (1.5, 0.85, 1.0))
    x, radius = rng.uniform(0, 0.4) * length, rng.uniform(0.08, 0.17)
    low = radius * rng.uniform(0.5, 1.2)
    paint = CARBODY if rng.random() < 0.6 else PAINT
    b.box((x, 0, (low + height) / 2), (length, width * 0.8, height - low - 0.04), OWN_BODY, paint, color, seed)
    b.box((x, 0, height - 0.02), (length * rng.uniform(0.85, 1.0), width, 0.04), OWN_BODY, METAL, BLACK, seed)
    for end in (-1, 1):
        at = x + end * length * 0.34
        for side in (-1, 1):
            size = (2 * radius, 2 * radius, 0.08)
            b.cylinder((at, side * (width / 2 - 0.04), radius), size, OWN_BODY, RUBBER, TYRE, roll=np.pi / 2)
        b.box((x + end * length / 2, 0, low + 0.06), (0.06, width * 0.9, 0.1), OWN_BODY, RUBBER, BLACK, seed)
    b.box((x + length / 2, 0, height * 0.7), (0.02, width * 0.4, 0.05), OWN_BODY, LAMP, (0.9, 0.9, 0.8))
    return b.solids()
