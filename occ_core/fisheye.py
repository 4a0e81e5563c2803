"""The equidistant fisheye with OpenCV's four coefficients, also for what lies beside and behind the camera.

theta is the angle off the optical axis, radius = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8) in focal
lengths (Kannala and Brandt, IEEE TPAMI 2006, equation 6; cv2.fisheye, which ends at 90 degrees).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_RAD = np.radians(100.0)
"""Farthest off the axis that a lens is trusted to see: few are wider than 200 degrees, and in the black corners of the
others nothing is to be seen."""
STEPS = 4001


def radius_of(theta: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """Distance from the image's centre, in focal lengths."""
    k1, k2, k3, k4 = coefficients
    t2 = theta * theta
    return theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))


def field_rad(coefficients: Sequence[float]) -> float:
    """Half of the field of view: up to there the radius grows with the angle."""
    theta = np.linspace(0, MOST_RAD, STEPS)
    falling = np.flatnonzero(np.diff(radius_of(theta, coefficients)) <= 0)
    return float(theta[falling[0]]) if len(falling) else float(MOST_RAD)


def project(points_cam_m: np.ndarray, coefficients: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """From points (N, 3) to the image plane (N, 2), in focal lengths, and which are in the field of view, bool (N,)."""
    x, y, z = np.asarray(points_cam_m, dtype=np.float64).T
    off_axis = np.hypot(x, y)
    theta = np.arctan2(off_axis, z)
    radius = radius_of(theta, coefficients)
    scale = np.divide(radius, off_axis, out=np.zeros_like(radius), where=off_axis > 0)  # on the axis x = y = 0
    in_field = (theta < field_rad(coefficients)) & (off_axis + np.abs(z) > 0)
    return np.stack([x * scale, y * scale], axis=1), in_field


def directions(plane: np.ndarray, coefficients: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Unit viewing directions (N, 3) of places (N, 2) in the image plane, in focal lengths, and which are in the field.

    Beyond the field, the direction is that of its edge.
    """
    plane = np.asarray(plane, dtype=np.float64)
    radius, most = np.hypot(*plane.T), field_rad(coefficients)
    table = np.linspace(0, most, STEPS)
    theta = np.interp(radius, radius_of(table, coefficients), table)  # np.interp holds the ends
    for _ in range(3):  # Newton, from a start within 1e-3
        k1, k2, k3, k4 = coefficients
        t2 = theta * theta
        slope = 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
        step = np.divide(radius_of(theta, coefficients) - radius, slope, out=np.zeros_like(theta), where=slope > 1e-6)
        theta = np.clip(theta - step, 0, most)
    scale = np.divide(np.sin(theta), radius, out=np.zeros_like(theta), where=radius > 0)
    unit = np.stack([plane[:, 0] * scale, plane[:, 1] * scale, np.cos(theta)], axis=1)
    return unit, radius < radius_of(np.array(most), coefficients)
