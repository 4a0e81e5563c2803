"""The parts of every object in the city: unions of boxes, elliptical cylinders and ellipsoids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numba
import numpy as np

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
FINE_RADIUS_M = 0.5  # ellipsoids from this radius on get 320 instead of 80 triangles, so that errors stay below 2 cm


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles, seen from outside counter-clockwise.

    Attributes:
        vertices: float32 (V, 3), metres.
        faces: int32 (F, 3).
        solid_of_face: int32 (F,), index of the solid; -1 for ground.
    """

    vertices: np.ndarray
    faces: np.ndarray
    solid_of_face: np.ndarray


@dataclass(frozen=True, eq=False)
class Solids:
    """N solids as arrays; `parent` is the world for static solids and the actor's frame for an actor's.

    Attributes:
        kind: uint8 (N,): BOX, CYLINDER (axis = the solid's z, elliptical section) or ELLIPSOID.
        parent_from_solid: float64 (N, 4, 4).
        half_size_m: float32 (N, 3), half extents along the solid's axes.
        class_id: uint8 (N,), Occ3D.
        material: uint8 (N,), see `occ_core.world.materials`.
        color: float32 (N, 3), linear RGB albedo 0..1.
        seed: uint32 (N,), varies the texture.
    """

    kind: np.ndarray
    parent_from_solid: np.ndarray
    half_size_m: np.ndarray
    class_id: np.ndarray
    material: np.ndarray
    color: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    def transformed(self, a_from_parent: np.ndarray) -> Solids:
        """Return the same solids in frame `a`."""
        poses = a_from_parent @ self.parent_from_solid
        return Solids(self.kind, poses, self.half_size_m, self.class_id, self.material, self.color, self.seed)

    def __getitem__(self, index) -> Solids:
        """The solids that a mask, slice or index array picks."""
        return Solids(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Solids]) -> Solids:
        if not parts:
            return Builder().solids()
        return Solids(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Solids)))

    def bounds_m(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corners (N, 3) of axis-aligned boxes around the solids, in the parent frame."""
        turned = np.abs(self.parent_from_solid[:, :3, :3] * self.half_size_m[:, None, :])
        # An ellipsoid's extent is a root of squares; a cylinder's that of its disc plus that of its axis.
        square = np.sqrt((turned**2).sum(axis=2))
        disc = np.sqrt((turned[:, :, :2] ** 2).sum(axis=2)) + turned[:, :, 2]
        kind = self.kind[:, None]
        reach = np.where(kind == BOX, turned.sum(axis=2), np.where(kind == CYLINDER, disc, square))
        center = self.parent_from_solid[:, :3, 3]
        return center - reach, center + reach

    def contain(self, points_m: np.ndarray) -> np.ndarray:
        """Whether points (P, 3) of the parent frame lie in any solid, bool (P,)."""
        inside = np.zeros(len(points_m), dtype=np.bool_)
        if len(self) and len(points_m):
            lower, upper = self.bounds_m()
            points = np.ascontiguousarray(points_m, dtype=np.float64)
            near = ((lower <= points.max(axis=0)) & (upper >= points.min(axis=0))).all(axis=1)
            inverses = inverse_poses(self.parent_from_solid[near])
            half = self.half_size_m[near].astype(np.float64)
            _mark_contained(points, self.kind[near], inverses, half, lower[near], upper[near], inside)
        return inside

    def mesh(self, fine_radius_m: float = FINE_RADIUS_M) -> Mesh:
        """Closed triangle meshes of all solids; round ones approximated at equal volume, coarsely below a radius."""
        vertices, faces, owners, used = [], [], [], 0
        radius = self.half_size_m.max(axis=1, initial=0)
        for kind, fine in ((BOX, False), (CYLINDER, False), (ELLIPSOID, False), (ELLIPSOID, True)):
            unit_vertices, unit_faces = _unit_mesh(kind, fine)
            picked = np.flatnonzero(
                (self.kind == kind) & ((radius >= fine_radius_m) == fine if kind == ELLIPSOID else 1)
            )
            poses = self.parent_from_solid[picked]
            local = unit_vertices[None] * self.half_size_m[picked, None, :]
            vertices.append((local @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]).reshape(-1, 3))
            offsets = used + len(unit_vertices) * np.arange(len(picked))
            faces.append((unit_faces[None] + offsets[:, None, None]).reshape(-1, 3))
            owners.append(np.repeat(picked, len(unit_faces)))
            used += len(picked) * len(unit_vertices)
        return Mesh(
            np.concatenate(vertices).astype(np.float32),
            np.concatenate(faces).astype(np.int32),
            np.concatenate(owners).astype(np.int32),
        )


@lru_cache(maxsize=8)
def _unit_mesh(kind: int, fine: bool) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a solid of half size 1."""
    import trimesh

    if kind == BOX:
        mesh = trimesh.creation.box(extents=(2, 2, 2))
    elif kind == CYLINDER:
        mesh = trimesh.creation.cylinder(radius=1, height=2, sections=16)
        mesh.vertices[:, :2] *= np.sqrt(2 * np.pi / mesh.volume)
    else:
        mesh = trimesh.creation.icosphere(subdivisions=2 if fine else 1)
        mesh.vertices *= np.cbrt(4 / 3 * np.pi / mesh.volume)
    return np.array(mesh.vertices, dtype=np.float64), np.array(mesh.faces, dtype=np.int64)


def inverse_poses(a_from_b: np.ndarray) -> np.ndarray:
    """Inverses of rigid transforms (N, 4, 4)."""
    out = np.zeros_like(a_from_b)
    out[:, :3, :3] = a_from_b[:, :3, :3].transpose(0, 2, 1)
    out[:, :3, 3] = -np.einsum("nij,nj->ni", out[:, :3, :3], a_from_b[:, :3, 3])
    out[:, 3, 3] = 1
    return out


@numba.njit(cache=True, inline="always")
def is_inside(kind: int, x: float, y: float, z: float) -> bool:
    """Whether a point, in the solid's frame and divided by its half sizes, is in the solid."""
    if kind == BOX:
        return abs(x) <= 1 and abs(y) <= 1 and abs(z) <= 1
    if kind == CYLINDER:
        return abs(z) <= 1 and x * x + y * y <= 1
    return x * x + y * y + z * z <= 1


@numba.njit(cache=True)
def _mark_contained(points, kinds, solid_from_parent, half, lower, upper, inside):
    for p in range(len(points)):
        q = points[p]
        for n in range(len(kinds)):
            if q[0] < lower[n, 0] or q[1] < lower[n, 1] or q[2] < lower[n, 2]:
                continue
            if q[0] > upper[n, 0] or q[1] > upper[n, 1] or q[2] > upper[n, 2]:
                continue
            m = solid_from_parent[n]
            x = (m[0, 0] * q[0] + m[0, 1] * q[1] + m[0, 2] * q[2] + m[0, 3]) / half[n, 0]
            y = (m[1, 0] * q[0] + m[1, 1] * q[1] + m[1, 2] * q[2] + m[1, 3]) / half[n, 1]
            z = (m[2, 0] * q[0] + m[2, 1] * q[1] + m[2, 2] * q[2] + m[2, 3]) / half[n, 2]
            if is_inside(kinds[n], x, y, z):
                inside[p] = True
                break


def yaw_pose(
    xyz_m: Sequence[float] | np.ndarray, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0
) -> np.ndarray:
    """4x4 pose: turned by roll about x, then pitch about y (nose down positive), then yaw about z."""
    return yaw_poses(np.asarray(xyz_m)[None], np.array([[yaw, pitch, roll]]))[0]


def yaw_poses(xyz_m: np.ndarray, yaw_pitch_roll: np.ndarray) -> np.ndarray:
    """Like `yaw_pose`, for many at once: poses (N, 4, 4) from (N, 3) and (N, 3)."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(yaw_pitch_roll).T, np.sin(yaw_pitch_roll).T
    poses = np.zeros((len(xyz_m), 4, 4))
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 0, 2] = cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr
    poses[:, 1, 0], poses[:, 1, 1], poses[:, 1, 2] = sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr
    poses[:, 2, 0], poses[:, 2, 1], poses[:, 2, 2] = -sp, cp * sr, cp * cr
    poses[:, :3, 3] = xyz_m
    poses[:, 3, 3] = 1
    return poses


class Builder:
    """Collects solids; sizes are full extents, centres are in the builder's frame."""

    def __init__(self) -> None:
        self._parts: list[Solids] = []
        self._singles: list[tuple] = []  # not yet a part: what `one` was given

    def add(self, kind, poses, sizes, class_id, material, colors, seeds) -> None:
        """Many solids of one kind: poses (N, 4, 4), sizes (N, 3), colors (N, 3) or (3,), seeds (N,) or one."""
        n = len(poses)
        colors, seeds = np.broadcast_to(np.asarray(colors), (n, 3)), np.broadcast_to(np.asarray(seeds), (n,))
        self._append(np.full(n, kind), poses, sizes, np.full(n, class_id), np.full(n, material), colors, seeds)

    def one(self, kind, center, size, class_id, material, color, seed=0, yaw=0.0, pitch=0.0, roll=0.0) -> None:
        self._singles.append((kind, center, (yaw, pitch, roll), size, class_id, material, color, seed))

    def _append(self, kind, poses, sizes, class_id, material, colors, seeds) -> None:
        self._join_singles()
        self._parts.append(
            Solids(
                np.asarray(kind, np.uint8),
                np.asarray(poses, np.float64),
                np.asarray(sizes, np.float32) / 2,
                np.asarray(class_id, np.uint8),
                np.asarray(material, np.uint8),
                np.ascontiguousarray(colors, np.float32),
                np.ascontiguousarray(seeds, np.uint32),
            )
        )

    def _join_singles(self) -> None:
        if self._singles:
            kind, center, turn, *looks = zip(*self._singles, strict=True)
            self._singles = []
            self._append(kind, yaw_poses(np.array(center), np.array(turn)), *looks)

    def box(self, *args, **kwargs) -> None:
        self.one(BOX, *args, **kwargs)

    def cylinder(self, *args, **kwargs) -> None:
        """Axis along z before turning; size is (diameter, diameter, height)."""
        self.one(CYLINDER, *args, **kwargs)

    def ellipsoid(self, *args, **kwargs) -> None:
        self.one(ELLIPSOID, *args, **kwargs)

    def place(self, solids: Solids, here_from_parent: np.ndarray) -> None:
        self._join_singles()
        self._parts.append(solids.transformed(here_from_parent))

    def solids(self) -> Solids:
        self._join_singles()
        if self._parts:
            return Solids.concatenate(self._parts)
        return Solids(
            np.zeros(0, np.uint8),
            np.zeros((0, 4, 4)),
            np.zeros((0, 3), np.float32),
            np.zeros(0, np.uint8),
            np.zeros(0, np.uint8),
            np.zeros((0, 3), np.float32),
            np.zeros(0, np.uint32),
        )
