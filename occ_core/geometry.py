"""Rigid transforms as 4x4 float64 matrices: `a_from_b @ point_b = point_a`. Quaternions are (w, x, y, z)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from occ_core.errors import InvalidInput

Array = np.ndarray


def rotation_from_quaternion(wxyz: Sequence[float] | Array) -> Array:
    """Rotation matrix (3, 3) of a quaternion (w, x, y, z), which is normalised first.

    Raises:
        InvalidInput: if the quaternion is not four finite numbers of norm > 1e-6.
    """
    q = np.asarray(wxyz, dtype=np.float64)
    norm = float(np.linalg.norm(q)) if q.shape == (4,) else 0.0
    if q.shape != (4,) or not np.isfinite(norm) or norm < 1e-6:
        raise InvalidInput(f"quaternion (w, x, y, z) must be four finite numbers of norm > 1e-6, got {q.tolist()}")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: Array) -> Array:
    """Quaternion (..., 4) = (w, x, y, z) with w >= 0 of rotation matrices (..., 3, 3)."""
    m = np.asarray(rotation, dtype=np.float64)
    # The symmetric 4x4 form (Bar-Itzhack 2000): its largest eigenvector is the quaternion, stable for every angle.
    k = np.zeros((*m.shape[:-2], 4, 4))
    k[..., 0, 0] = m[..., 0, 0] - m[..., 1, 1] - m[..., 2, 2]
    k[..., 1, 0] = m[..., 0, 1] + m[..., 1, 0]
    k[..., 1, 1] = m[..., 1, 1] - m[..., 0, 0] - m[..., 2, 2]
    k[..., 2, 0] = m[..., 0, 2] + m[..., 2, 0]
    k[..., 2, 1] = m[..., 1, 2] + m[..., 2, 1]
    k[..., 2, 2] = m[..., 2, 2] - m[..., 0, 0] - m[..., 1, 1]
    k[..., 3, 0] = m[..., 2, 1] - m[..., 1, 2]
    k[..., 3, 1] = m[..., 0, 2] - m[..., 2, 0]
    k[..., 3, 2] = m[..., 1, 0] - m[..., 0, 1]
    k[..., 3, 3] = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    q = np.linalg.eigh(k)[1][..., [3, 0, 1, 2], -1]  # eigh reads the lower triangle only
    return np.where(q[..., :1] < 0, -q, q)


def pose(translation_m: Sequence[float] | Array, wxyz: Sequence[float] | Array = (1.0, 0.0, 0.0, 0.0)) -> Array:
    """4x4 transform from a translation in metres and a quaternion (w, x, y, z)."""
    t = np.asarray(translation_m, dtype=np.float64)
    if t.shape != (3,) or not np.isfinite(t).all():
        raise InvalidInput(f"translation must be three finite numbers in metres, got {t.tolist()}")
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_quaternion(wxyz)
    matrix[:3, 3] = t
    return matrix


def inverse(a_from_b: Array) -> Array:
    """`b_from_a` of a rigid transform."""
    rotation_t = a_from_b[:3, :3].T
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_t
    matrix[:3, 3] = -rotation_t @ a_from_b[:3, 3]
    return matrix


def apply(a_from_b: Array, points_b: Array) -> Array:
    """Transform points (..., 3)."""
    return points_b @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def interpolate(earlier: Array, later: Array, fraction: float) -> Array:
    """Pose between two poses: linear in translation, spherical in rotation. `fraction` 0 is `earlier`, 1 is `later`."""
    q0, q1 = quaternion_from_rotation(np.stack([earlier[:3, :3], later[:3, :3]]))
    return pose((1 - fraction) * earlier[:3, 3] + fraction * later[:3, 3], slerp(q0, q1, fraction))


def slerp(q0: Array, q1: Array, fraction: float) -> Array:
    """Quaternion, not of unit length, on the short way from q0 to q1."""
    dot = float(q0 @ q1)
    if dot < 0:  # q and -q are the same rotation: take the short way round
        q1, dot = -q1, -dot
    if dot > 0.9995:
        return q0 + fraction * (q1 - q0)
    angle = np.arccos(dot)
    return (np.sin((1 - fraction) * angle) * q0 + np.sin(fraction * angle) * q1) / np.sin(angle)


def require_rigid(name: str, matrix: Array) -> Array:
    """The matrix as float64 (4, 4) if it is a rigid transform within 1e-3.

    Raises:
        InvalidInput: naming `name` and what is wrong.
    """
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape != (4, 4):
        raise InvalidInput(f"{name} must have shape (4, 4), got {m.shape}")
    if not np.isfinite(m).all():
        raise InvalidInput(f"{name} must be finite, got {m.tolist()}")
    error = float(np.abs(m[:3, :3] @ m[:3, :3].T - np.eye(3)).max())
    if error > 1e-3 or np.linalg.det(m[:3, :3]) < 0 or not np.allclose(m[3], (0, 0, 0, 1)):
        raise InvalidInput(f"{name} must be a rigid transform: rotation is off orthonormal by {error:.2g}, limit 0.001")
    return m
