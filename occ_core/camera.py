"""Cameras and rigs: how pixels see the ego frame.

Camera frames are optical: x right, y down, z forward. Pixel (u, v) = (0, 0) is the centre of the top-left pixel, as in
OpenCV and ROS. Distortion models and coefficient orders are those of sensor_msgs/CameraInfo.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import cv2
import numpy as np

from occ_core import fisheye
from occ_core.errors import InvalidInput
from occ_core.geometry import require_rigid
from occ_core.limits import MAX_CALIBRATION, MAX_COEFFICIENTS, MAX_PIXELS, MAX_SIDE_PX, MIN_FOCAL_PX, shown

PINHOLE_COEFFICIENTS = (4, 5, 8, 12, 14)
"""OpenCV's: radial and tangential, k3, rational, thin prism, tilted sensor. Both pinhole names take each, as they do in
image_geometry."""
COEFFICIENTS = {
    "none": (0,), "plumb_bob": PINHOLE_COEFFICIENTS, "rational_polynomial": PINHOLE_COEFFICIENTS, "equidistant": (4,)
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Camera:
    """One calibrated camera.

    Attributes:
        name: unique in its rig.
        intrinsics: (3, 3) in pixels.
        size: (width, height) in pixels.
        ego_from_cam: (4, 4), optical camera frame to ego frame.
        distortion_model: none | plumb_bob | rational_polynomial | equidistant (fisheye).
        distortion: coefficients of the model.
        blind: bool (height, width), pixels that show nothing of the world: the robot itself, see `ego_mask`, or what
            lies beyond the lens. None: all show it.
    """

    name: str
    intrinsics: np.ndarray
    size: tuple[int, int]
    ego_from_cam: np.ndarray
    distortion_model: str = "none"
    distortion: tuple[float, ...] = ()
    blind: np.ndarray | None = None

    def __post_init__(self) -> None:
        k = np.asarray(self.intrinsics, dtype=np.float64)
        if k.shape != (3, 3) or not np.isfinite(k).all():
            raise InvalidInput(f"camera '{self.name}': intrinsics must be finite (3, 3), got {k.tolist()}")
        if k[0, 0] <= 0 or k[1, 1] <= 0 or not np.allclose(k[2], (0, 0, 1)):
            raise InvalidInput(
                f"camera '{self.name}': focal lengths must be > 0 px and the last row (0, 0, 1), got {k.tolist()}"
            )
        if min(k[0, 0], k[1, 1]) < MIN_FOCAL_PX or np.abs(k).max() > MAX_CALIBRATION:
            raise InvalidInput(
                f"camera '{self.name}': focal lengths must be at least {MIN_FOCAL_PX} px and no entry beyond "
                f"{MAX_CALIBRATION:g} px, got {k.tolist()}"
            )
        w, h = (int(v) for v in self.size)
        if not (0 < w <= MAX_SIDE_PX and 0 < h <= MAX_SIDE_PX and w * h <= MAX_PIXELS):
            raise InvalidInput(
                f"camera '{self.name}': size must be 1..{MAX_SIDE_PX} px a side and at most {MAX_PIXELS} px in all, "
                f"got {w} x {h}"
            )
        if self.distortion_model not in COEFFICIENTS:
            raise InvalidInput(
                f"camera '{self.name}': distortion model '{shown(self.distortion_model)}' is not one of "
                f"{', '.join(COEFFICIENTS)}"
            )
        if len(self.distortion) > MAX_COEFFICIENTS:
            raise InvalidInput(
                f"camera '{self.name}': at most {MAX_COEFFICIENTS} distortion coefficients, got {len(self.distortion)}"
            )
        d = tuple(float(v) for v in self.distortion)
        if len(d) not in COEFFICIENTS[self.distortion_model] or not np.isfinite(d).all():
            raise InvalidInput(
                f"camera '{self.name}': model '{self.distortion_model}' takes "
                f"{' or '.join(map(str, COEFFICIENTS[self.distortion_model]))} finite coefficients, got {list(d)}"
            )
        if any(abs(v) > MAX_CALIBRATION for v in d):
            raise InvalidInput(
                f"camera '{self.name}': distortion coefficients must be within +-{MAX_CALIBRATION:g}, got {list(d)}"
            )
        if self.blind is not None and (self.blind.shape != (h, w) or self.blind.dtype != np.bool_):
            raise InvalidInput(
                f"camera '{self.name}': blind must be bool {(h, w)}, got {self.blind.dtype} {self.blind.shape}"
            )
        if not any(d) and self.distortion_model != "equidistant":  # all-zero coefficients are the pinhole
            object.__setattr__(self, "distortion_model", "none")
            d = ()
        object.__setattr__(self, "intrinsics", k)
        object.__setattr__(self, "size", (w, h))
        object.__setattr__(self, "distortion", d)
        object.__setattr__(
            self, "ego_from_cam", require_rigid(f"camera '{self.name}': ego_from_cam", self.ego_from_cam)
        )

    def project(self, points_cam_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of points in the camera frame.

        Args:
            points_cam_m: (N, 3) metres.

        Returns:
            pixels float64 (N, 2), NaN out of view; visible bool (N,): in front of the camera (z > 1 mm; of a fisheye:
            in its field, which may be wider), within the image and on no blind pixel.
        """
        points = np.asarray(points_cam_m, dtype=np.float64).reshape(-1, 3)
        pixels = np.full((len(points), 2), np.nan)
        if self.distortion_model == "equidistant":
            plane, front = fisheye.project(points, self.distortion)
            pixels[front] = self._pixels_of(*plane[front].T)
        else:
            front = points[:, 2] > 1e-3
            if front.any():
                pixels[front] = self._project_front(points[front])
        return pixels, self.sees(pixels)

    def sees(self, pixels: np.ndarray) -> np.ndarray:
        """Whether points (N, 2) are in the image and on no blind pixel, bool (N,)."""
        w, h = self.size
        with np.errstate(invalid="ignore"):
            seen = (pixels > -0.5).all(axis=1) & (pixels[:, 0] < w - 0.5) & (pixels[:, 1] < h - 0.5)
        if self.blind is not None:
            column, row = np.rint(pixels[seen]).astype(np.intp).T
            seen[seen] = ~self.blind[np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)]
        return seen

    def _pixels_of(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of places in the image plane, in focal lengths."""
        k = self.intrinsics
        return np.stack([k[0, 0] * x + k[0, 1] * y + k[0, 2], k[1, 1] * y + k[1, 2]], axis=1)

    def _plane_of(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `_pixels_of`."""
        k = self.intrinsics
        y = (pixels[:, 1] - k[1, 2]) / k[1, 1]
        return np.stack([(pixels[:, 0] - k[0, 2] - k[0, 1] * y) / k[0, 0], y], axis=1)

    def _project_front(self, points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
        if self.distortion_model != "none":
            # Beyond the lens' field the polynomial folds back and would put far-off points into the image.
            keep = np.hypot(x, y) < self._max_radius()
            out = np.full((len(points), 2), np.nan)
            if keep.any():
                projected, _ = cv2.projectPoints(
                    points[keep], np.zeros(3), np.zeros(3), self.intrinsics, np.array(self.distortion)
                )
                out[keep] = projected[:, 0]
            return out
        return self._pixels_of(x, y)

    def _max_radius(self) -> float:
        """Largest undistorted radius at which the radial polynomial still grows."""
        k1, k2, _, _, k3, k4, k5, k6 = (*self.distortion, *([0.0] * 8))[:8]
        r = np.linspace(0, 10, 2001)
        scaled = r * (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        falling = np.flatnonzero(np.diff(scaled) <= 0)
        return float(r[falling[0]]) if len(falling) else np.inf

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Viewing directions (N, 3) with z = 1 in the camera frame, of pixels (N, 2); times depth = point.

        Beside a camera there are none: of a fisheye's outermost pixels ask `directions`.
        """
        uv = np.asarray(pixels, dtype=np.float64).reshape(-1, 2)
        if self.distortion_model == "none":
            x, y = self._plane_of(uv).T
        elif self.distortion_model == "equidistant":
            x, y = cv2.fisheye.undistortPoints(uv[:, None], self.intrinsics, np.array(self.distortion))[:, 0].T
        else:
            stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-10)
            k, d, same = self.intrinsics, np.array(self.distortion), np.eye(3)
            x, y = cv2.undistortPointsIter(uv[:, None], k, d, same, same, stop)[:, 0].T
        return np.stack([x, y, np.ones_like(x)], axis=1)

    def directions(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit viewing directions (N, 3) in the camera frame, of pixels (N, 2); which of them the lens has, bool (N,).

        Beyond a fisheye's field, the direction is that of its edge.
        """
        uv = np.asarray(pixels, dtype=np.float64).reshape(-1, 2)
        if self.distortion_model == "equidistant":
            return fisheye.directions(self._plane_of(uv), self.distortion)
        rays = self.rays(uv)
        return rays / np.linalg.norm(rays, axis=1, keepdims=True), np.isfinite(rays).all(axis=1)

    def pixel_grid(self) -> np.ndarray:
        """Centres of all pixels, (height * width, 2), row by row."""
        w, h = self.size
        u, v = np.meshgrid(np.arange(w, dtype=np.float64), np.arange(h, dtype=np.float64))
        return np.stack([u.ravel(), v.ravel()], axis=1)

    def resized(self, size: tuple[int, int]) -> Camera:
        """The same camera after its image was resized to (width, height); pixel centres stay where they belong."""
        sx, sy = size[0] / self.size[0], size[1] / self.size[1]
        k = self.intrinsics.copy()
        k[0] *= sx
        k[1] *= sy
        k[0, 2] += 0.5 * (sx - 1)
        k[1, 2] += 0.5 * (sy - 1)
        blind = None
        if self.blind is not None:  # of each new pixel, that of the old one in which its centre lies
            column, row = (
                ((np.arange(n) + 0.5) * old / n).astype(np.intp) for n, old in zip(size, self.size, strict=True)
            )
            blind = self.blind[row[:, None], column]
        return Camera(self.name, k, size, self.ego_from_cam, self.distortion_model, self.distortion, blind)

    def cropped(self, left: int, top: int, size: tuple[int, int]) -> Camera:
        """The same camera after its image was cropped to (width, height) from (left, top)."""
        k = self.intrinsics.copy()
        k[0, 2] -= left
        k[1, 2] -= top
        blind = None if self.blind is None else self.blind[top : top + size[1], left : left + size[0]]
        return Camera(self.name, k, size, self.ego_from_cam, self.distortion_model, self.distortion, blind)


@dataclass(frozen=True, eq=False)
class Rig:
    """The cameras of one vehicle, in a fixed order."""

    cameras: tuple[Camera, ...]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        names = self.names
        if not names:
            raise InvalidInput("a rig needs at least one camera, got none")
        if len(set(names)) != len(names):
            raise InvalidInput(f"a rig has each camera once, got {names}")
        object.__setattr__(self, "fingerprint", _fingerprint(self.cameras))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    def __len__(self) -> int:
        return len(self.cameras)

    def __iter__(self):
        return iter(self.cameras)

    def __getitem__(self, name: str) -> Camera:
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise InvalidInput(f"rig has no camera '{name}', only: {', '.join(self.names)}")


def _fingerprint(cameras: tuple[Camera, ...]) -> str:
    """Hash of everything that changes a projection."""
    digest = hashlib.sha256()
    for camera in cameras:
        digest.update(f"{camera.name} {camera.size} {camera.distortion_model}".encode())
        digest.update(np.round(camera.intrinsics, 9).tobytes())
        digest.update(np.array(camera.distortion).tobytes())
        digest.update(np.round(camera.ego_from_cam, 9).tobytes())
        if camera.blind is not None:
            digest.update(np.packbits(camera.blind).tobytes())
    return digest.hexdigest()[:16]
