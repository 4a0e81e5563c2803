"""Corrects the scale of depth by the road: the calibration says where the road lies, so near road pixels show each
image's error."""

from __future__ import annotations

import cv2
import numpy as np

ROAD = ("driveable_surface", "road")
REACH_M = 12.0  # beyond it slopes matter more than errors of scale
MIN_SAMPLES = 100  # of about 20,000 an image
FACTORS = (0.7, 1.4)  # a median beyond means that something else is wrong
SAMPLES_WIDE = 200
LOCAL_LIMIT = 0.2  # of log depth, against the image's median: more is another class, a kerb, or a step in depth
PRIOR = 0.1  # share of road around a place at which the image's median counts as much as the road there


def road_correction(
    depth_m: np.ndarray,
    road: np.ndarray,
    rays: np.ndarray,
    ego_from_cam: np.ndarray,
    ground_z_m: float,
    reach: float,
) -> np.ndarray:
    """Factor for the depth of each pixel: plane depth / depth, measured on the road within 12 m.

    Monocular metric depth errs mostly by one factor an image, and smoothly within it, so the road's error is also that
    of what stands beside it; far from any road the image's median holds.

    Args:
        depth_m: float32 (h, w). road: bool (h, w), pixels that show road and have a depth.
        rays: float32 (h, w, 2), viewing directions with z = 1.
        ego_from_cam: (4, 4) of the calibration: the road lies under the wheels when the image is taken.
        ground_z_m: its height in the ego frame.
        reach: how far a road pixel's error holds, share of the image's width; 0: one factor an image.

    Returns:
        float32 (h, w); all 1 where too little road is seen, or the median is beyond belief (0.7..1.4).
    """
    h, w = depth_m.shape
    step = max(1, round(w / SAMPLES_WIDE))
    thin = np.s_[step // 2 :: step, step // 2 :: step]
    depth, x, y = depth_m[thin], rays[thin][..., 0], rays[thin][..., 1]
    down = ego_from_cam[2, 0] * x + ego_from_cam[2, 1] * y + ego_from_cam[2, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        plane_m = (ground_z_m - ego_from_cam[2, 3]) / down
        near = road[thin] & (plane_m > 0) & (plane_m < REACH_M)
        error = np.where(near, np.log(plane_m / depth), 0).astype(np.float32)
    if near.sum() < MIN_SAMPLES:
        return np.ones((h, w), dtype=np.float32)
    median = float(np.median(error[near]))
    if not FACTORS[0] < np.exp(median) < FACTORS[1]:
        return np.ones((h, w), dtype=np.float32)
    if reach == 0:
        return np.full((h, w), np.exp(median), dtype=np.float32)
    trusted = (near & (np.abs(error - median) < LOCAL_LIMIT)).astype(np.float32)
    sigma = reach * depth.shape[1]
    there = cv2.GaussianBlur(trusted, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    excess = cv2.GaussianBlur((error - median) * trusted, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    field = np.exp(median + excess / (there + PRIOR))
    return cv2.resize(field, (w, h), interpolation=cv2.INTER_LINEAR)
