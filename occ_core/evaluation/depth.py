"""Scores depth against LiDAR: the usual seven errors, raw and scaled by the median, as two published codes report them.

Errors of one image are pure functions of two arrays; their sums by camera add up over images and processes. Unlike the
voxel scores these are in the units of the papers: ratios (0..1 for shares) and metres.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.teachers.lidar import visible_points

ERRORS = ("abs_rel", "sq_rel", "rmse_m", "rmse_log", "within_1.25", "within_1.25^2", "within_1.25^3")


class DepthProtocol(NamedTuple):
    """The pixels and depths that a published code counts.

    Attributes:
        name: in reports.
        nearest_m, farthest_m: truth counts strictly between them; predictions are clamped to them, scaled or not.
        whole_pixels: LiDAR points are rounded to pixels, of several in one pixel the nearest counts; else all count.
    """

    name: str
    nearest_m: float
    farthest_m: float
    whole_pixels: bool


OCCNERF = DepthProtocol("occnerf", 0.1, 80.0, whole_pixels=True)
"""Zhang et al., "OccNeRF", 2023: maps at the size of the image, 0.1..80 m."""

SELFOCC = DepthProtocol("selfocc", 1e-3, 80.0, whole_pixels=False)
"""Huang et al., "SelfOcc", CVPR 2024: predictions read between pixels where the LiDAR points fall, 0.001..80 m."""


class RenderedView(NamedTuple):
    """A view of one camera: network input uint8 (H, W, 3), rendered depth (h, w), true depth (M,) at input pixels (M,
    2)."""

    camera: str
    image: np.ndarray
    depth_m: np.ndarray
    pixels: np.ndarray
    truth_m: np.ndarray


def lidar_depth(frame: Frame, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """True depth from a frame's sweep: the points that fall into an image, by the poses at both sensors' own stamps.

    Returns:
        pixels float64 (N, 2), unrounded; depth_m float64 (N,) along the optical axis.

    Raises:
        InvalidInput: the frame has no LiDAR sweep, or no such camera.
    """
    pixels, depth_m, _ = visible_points(frame, camera)
    return pixels, depth_m


def nearest_in_pixel(pixels: np.ndarray, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round pixels (N, 2), and keep only the nearest of several points in one pixel."""
    order = np.argsort(depth_m, kind="stable")
    whole, first = np.unique(np.rint(pixels[order]), axis=0, return_index=True)
    return whole, depth_m[order[first]]


def read_depth(
    depth_map_m: np.ndarray,  # [h, w]
    pixels: np.ndarray,  # [N, 2]
    size: tuple[int, int],
) -> np.ndarray:
    """Read depth float64 (N,) from a map at pixels of an image of `size` (width, height), which the map covers at any
    resolution.

    Bilinear between the centres of the map's pixels, its border value beyond them; at whole pixels that is what
    resizing the map to the image's size gives.
    """
    if depth_map_m.ndim != 2 or min(depth_map_m.shape) < 1:
        raise InvalidInput(f"a depth map must be (h, w), got {depth_map_m.shape}")
    scale = np.array(depth_map_m.shape[::-1]) / np.array(size)
    x, y = ((np.asarray(pixels, dtype=np.float64) + 0.5) * scale - 0.5).T
    x, y = np.clip(x, 0, depth_map_m.shape[1] - 1), np.clip(y, 0, depth_map_m.shape[0] - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = np.minimum(left + 1, depth_map_m.shape[1] - 1), np.minimum(top + 1, depth_map_m.shape[0] - 1)
    depth = depth_map_m.astype(np.float64)
    upper = depth[top, left] + (x - left) * (depth[top, right] - depth[top, left])
    lower = depth[below, left] + (x - left) * (depth[below, right] - depth[below, left])
    return upper + (y - top) * (lower - upper)


def depth_errors(predicted_m: np.ndarray, truth_m: np.ndarray) -> np.ndarray:
    """The errors of one image, float64 (7,), in the order of ERRORS (Eigen et al., NIPS 2014, section 4).

    Args:
        predicted_m, truth_m: (N,), N > 0, all > 0.
    """
    difference = predicted_m - truth_m
    ratio = np.maximum(predicted_m / truth_m, truth_m / predicted_m)
    return np.array(
        [
            np.mean(np.abs(difference) / truth_m),
            np.mean(difference**2 / truth_m),
            np.sqrt(np.mean(difference**2)),
            np.sqrt(np.mean((np.log(predicted_m) - np.log(truth_m)) ** 2)),
            *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
        ]
    )


class DepthScores:
    """Errors of images, summed by camera: a camera's score is the mean over its images, the total the mean over
    cameras.

    Args:
        protocol: OCCNERF or SELFOCC.
    """

    def __init__(self, protocol: DepthProtocol) -> None:
        self.protocol = protocol
        self.images: dict[str, int] = {}
        self.sums: dict[str, np.ndarray] = {}  # camera -> (2, 8): raw and median, the errors and the factor

    def add(self, camera: str, predicted_m: np.ndarray, truth_m: np.ndarray) -> None:
        """Count one image; an image without truth in the protocol's range is left out.

        Args:
            predicted_m, truth_m: (N,), at the same points.

        Raises:
            InvalidInput: shapes differ, a prediction is NaN, or the predictions' median is not above 0.
        """
        truth_m, predicted_m = np.asarray(truth_m, np.float64), np.asarray(predicted_m, np.float64)
        if truth_m.shape != predicted_m.shape or truth_m.ndim != 1:
            raise InvalidInput(f"predicted depth {predicted_m.shape} and truth {truth_m.shape} must be (N,) both")
        near, far = self.protocol.nearest_m, self.protocol.farthest_m
        counts = (truth_m > near) & (truth_m < far)
        truth_m, predicted_m = truth_m[counts], predicted_m[counts]
        if not len(truth_m):
            return
        if np.isnan(predicted_m).any():
            raise InvalidInput(
                f"{camera}: {np.isnan(predicted_m).sum()} of {len(predicted_m)} predicted depths are NaN"
            )
        median_m = float(np.median(predicted_m))
        if not 0 < median_m < np.inf:
            raise InvalidInput(f"{camera}: the median of the predicted depths must be > 0 m and finite, is {median_m}")
        factors = (1.0, np.median(truth_m) / median_m)
        rows = [[*depth_errors(np.clip(f * predicted_m, near, far), truth_m), f] for f in factors]
        self.sums[camera] = self.sums.get(camera, 0) + np.array(rows)
        self.images[camera] = self.images.get(camera, 0) + 1

    def add_map(self, frame: Frame, camera: str, depth_map_m: np.ndarray) -> None:
        """Count one image, with a frame's LiDAR as truth.

        Args:
            depth_map_m: (h, w), covers the camera's image, at any resolution.

        Raises:
            InvalidInput: as `add`, and a frame without LiDAR.
        """
        pixels, truth_m = lidar_depth(frame, camera)
        if self.protocol.whole_pixels:
            pixels, truth_m = nearest_in_pixel(pixels, truth_m)
        self.add(camera, read_depth(depth_map_m, pixels, frame.rig[camera].size), truth_m)

    def merge(self, other: DepthScores) -> None:
        """Add the counts of `other`.

        Raises:
            InvalidInput: by another protocol.
        """
        if other.protocol != self.protocol:
            raise InvalidInput(f"depth by protocol '{other.protocol.name}' cannot be added to '{self.protocol.name}'")
        for camera, sums in other.sums.items():
            self.sums[camera] = self.sums.get(camera, 0) + sums
            self.images[camera] = self.images.get(camera, 0) + other.images[camera]

    def report(self) -> dict[str, Any]:
        """{protocol, images, raw: {abs_rel, ...}, median: {..., scale}, per_camera: {name: {raw, median}}}.

        `scale` is the mean of the factors; without any image raw and median are empty.
        """
        means = {camera: sums / self.images[camera] for camera, sums in self.sums.items()}
        return {
            "protocol": self.protocol.name,
            "images": sum(self.images.values()),
            **_named(np.mean(list(means.values()), axis=0) if means else None),
            "per_camera": {camera: _named(rows) for camera, rows in means.items()},
        }


def _named(rows: np.ndarray | None) -> dict[str, dict[str, float]]:
    """Name the errors of (2, 8): {raw: {abs_rel, ...}, median: {..., scale}}."""
    if rows is None:
        return {"raw": {}, "median": {}}
    raw, median = (dict(zip((*ERRORS, "scale"), map(float, row), strict=True)) for row in rows)
    del raw["scale"]
    return {"raw": raw, "median": median}
