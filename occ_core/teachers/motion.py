"""Measures depth without a network: from how the world moves through the images while the robot drives, metric by its
odometry.

`plane_sweep` gives every pixel a depth; here is decided which of them can be believed. The rest is NaN: pixels in which
too little is to be seen, which move too little, whose match from the other side leads elsewhere (hidden, or moved by
itself), and whatever would lie below the road.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from occ_core.camera import Camera
from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.teachers.base import DepthMap
from occ_core.teachers.nearby_images import NearbyImage, NearbyImages
from occ_core.teachers.plane_sweep import HYPOTHESES, NEAR_M, View, inverse_depths, looked_up, sweep

WIDTH_PX = (160, 480)  # of the maps
STEP_PX = 1.5  # most that a pixel may move from one plane to the next, in the nearest image
WORST_COST = 16.0  # of the 48 bits of the census; chance has 24
LEAST_TEXTURE = 1.5  # standard deviation of grey values around a pixel
RETURN_PX = 1.5  # how far beside itself a pixel may come back
MATCH_PX = 0.5  # error of a match
WORST_ERROR = 0.15  # of depth, that an error of MATCH_PX may make
SPECKLE_PX = 60  # smaller islands of depth are taken for chance
ROAD_M, ROAD_SLOPE = 15.0, 0.17  # what lies nearer, on rays that fall steeper, is mostly ground; with ROAD_PX of it
ROAD_PX = 500  # it is known how high the ground is
BELOW_M, BELOW_SLOPE = 0.5, 0.06  # how far, and how much steeper than level, ground may lie below that


class MotionDepth:
    """Depth maps from plane sweeps over the same camera's images before and after, by the poses of each.

    Args:
        dataroot: what `open_source` opens, where the neighbours are.
        version: table folder of nuScenes layout.
    """

    def __init__(self, dataroot: Path, version: str | None = None) -> None:
        self.nearby = NearbyImages(dataroot, version)
        self.version = "motion-1"

    def reads(self, frame: Frame) -> list[Path | np.ndarray]:
        """See `base.seen_key`: the other images, and where all of them were taken."""
        seen: list[Path | np.ndarray] = []
        for name in sorted(frame.images):
            seen.append(frame.camera_world_from_ego[name] @ frame.rig[name].ego_from_cam)
            for side in self.nearby.around(frame, name):
                for shot in side:
                    seen += [shot.world_from_cam, shot.read()]
        return seen

    def depth(self, frame: Frame) -> dict[str, DepthMap]:
        """Measure maps at most WIDTH_PX wide; NaN where depth cannot be measured, which is everywhere if the robot
        stood still.

        Raises:
            InvalidInput: nobody says where the robot was.
        """
        if not frame.has_pose:
            raise InvalidInput(
                f"frame '{frame.token or frame.stamp_ns}': nobody says where the robot was; depth from motion needs "
                "odometry"
            )
        return above_road(frame, {name: self._map(frame, name) for name in frame.images})

    def _map(self, frame: Frame, name: str) -> DepthMap:
        camera, (before, after) = frame.rig[name], self.nearby.around(frame, name)
        world_from_cam = frame.camera_world_from_ego[name] @ camera.ego_from_cam
        width_px = working_width(camera, world_from_cam, [side[0] for side in (before, after) if side])
        size = width_px, max(1, round(width_px * camera.size[1] / camera.size[0]))
        own = pinhole_view(camera, frame.images[name], world_from_cam, camera, size)
        sides = [
            [pinhole_view(shot.camera, shot.read(), shot.world_from_cam, camera, size) for shot in side]
            for side in (before, after)
            if side
        ]
        return DepthMap(*in_lens(depth_of(own, sides), camera, size))


class DepthMatch(NamedTuple):
    """Depth in m, float32 (h, w), NaN where there is none; and the share of it that a match's error may make."""

    depth_m: np.ndarray
    error: np.ndarray


def depth_of(own: View, sides: Sequence[Sequence[View]]) -> DepthMatch:
    """Measure the depth of the pixels for which it can be measured.

    Args:
        sides: the views before, those after; of each the nearest first.
    """
    others = [view for side in sides for view in side]
    if not others:
        nothing = np.full(own.grey.shape, np.nan, np.float32)
        return DepthMatch(nothing, nothing)
    depth_m, cost = sweep(own, others)
    error = np.min([match_error(own, other, depth_m) for other in others], axis=0)
    agrees, differs = zip(*(seen_back(own, side[0], depth_m) for side in sides), strict=True)
    believed = np.any(agrees, axis=0) & ~np.any(differs, axis=0)
    believed &= (cost <= WORST_COST) & (texture(own.grey) >= LEAST_TEXTURE) & (error <= WORST_ERROR)
    depth_m = np.where(believed, depth_m, np.nan).astype(np.float32)
    return DepthMatch(without_speckles(depth_m), error.astype(np.float32))


def working_width(camera: Camera, world_from_cam: np.ndarray, nearest: Sequence[NearbyImage]) -> int:
    """Width of the maps, px: as wide as the planes are dense enough for."""
    if not nearest:
        return WIDTH_PX[0]
    (w, h), k = camera.size, camera.intrinsics * WIDTH_PX[1] / camera.size[0]
    k[2, 2] = 1
    size = WIDTH_PX[1], round(WIDTH_PX[1] * h / w)
    blank = np.zeros((4, 4), np.uint8)
    moved_px = 0.0
    for shot in nearest:
        turn, shift = View(blank, k, world_from_cam).ways_in(View(blank, k, shot.world_from_cam))
        corners = np.array([[u, v, 1] for u in (0, size[0] / 2, size[0]) for v in (size[1] / 2, size[1])], float)
        far, near = corners @ turn.T, corners @ turn.T + shift / (2 * NEAR_M)
        seen = (far[:, 2] > 0.1) & (near[:, 2] > 0.1)
        if seen.any():
            flow = near[seen, :2] / near[seen, 2:] - far[seen, :2] / far[seen, 2:]
            moved_px = max(moved_px, float(np.linalg.norm(flow, axis=1).max()))
    most = WIDTH_PX[1] * (HYPOTHESES / 2) * STEP_PX / max(moved_px, 1e-6)
    return int(np.clip(most, *WIDTH_PX))


def pinhole_view(
    camera: Camera, image: np.ndarray, world_from_cam: np.ndarray, like: Camera, size: tuple[int, int]
) -> View:
    """The image of a camera as one without distortion, with the focal length of `like`, shows it at `size`."""
    ideal = Camera(like.name, like.intrinsics, like.size, like.ego_from_cam).resized(size)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    same = camera.distortion_model == "none" and np.array_equal(camera.intrinsics, like.intrinsics)
    if same and camera.size == like.size:
        return View(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), ideal.intrinsics, world_from_cam)
    small = camera.resized((size[0], max(1, round(size[0] * camera.size[1] / camera.size[0]))))
    grey = cv2.resize(grey, small.size, interpolation=cv2.INTER_AREA)
    pixels, _ = small.project(ideal.rays(ideal.pixel_grid()))
    place = np.nan_to_num(pixels, nan=-1e4).astype(np.float32).reshape(size[1], size[0], 2)
    return View(cv2.remap(grey, place[..., 0], place[..., 1], cv2.INTER_LINEAR), ideal.intrinsics, world_from_cam)


def in_lens(found: DepthMatch, camera: Camera, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth and confidence float32 (h, w) at the pixels of the camera itself, whose lens may distort; blind: NaN."""
    own = camera.resized(size)
    depth_m, error = found
    if camera.distortion_model != "none":
        ideal = Camera(camera.name, camera.intrinsics, camera.size, camera.ego_from_cam).resized(size)
        pixels, _ = ideal.project(own.rays(own.pixel_grid()))
        place = np.nan_to_num(pixels, nan=-1e4).astype(np.float32).reshape(size[1], size[0], 2)
        depth_m, error = (
            cv2.remap(m, place[..., 0], place[..., 1], cv2.INTER_NEAREST, borderValue=(float("nan"),)) for m in found
        )
    known = np.isfinite(depth_m) if own.blind is None else np.isfinite(depth_m) & ~own.blind
    confidence = np.where(known, 1 / (1 + (np.where(known, error, 0) / WORST_ERROR) ** 2), 0)
    return np.where(known, depth_m, np.nan).astype(np.float32), confidence.astype(np.float32)


def above_road(frame: Frame, maps: dict[str, DepthMap]) -> dict[str, DepthMap]:
    """Remove depths below the ground, which come from mirrored light or from what moves along with the robot, such as
    the car ahead."""
    heights, distances, steep = {}, {}, {}
    for name, found in maps.items():
        camera = frame.rig[name].resized(found.size)
        rays = camera.rays(camera.pixel_grid()) @ camera.ego_from_cam[:3, :3].T
        slope = -rays[:, 2] / np.hypot(rays[:, 0], rays[:, 1])
        shape = found.depth_m.shape
        heights[name] = (rays[:, 2] * found.depth_m.ravel() + camera.ego_from_cam[2, 3]).reshape(shape)
        distances[name] = (np.hypot(rays[:, 0], rays[:, 1]) * found.depth_m.ravel()).reshape(shape)
        steep[name] = slope.reshape(shape) >= ROAD_SLOPE
    with np.errstate(invalid="ignore"):
        low = [heights[name][steep[name] & (distances[name] < ROAD_M)] for name in maps]
    if sum(map(len, low)) < ROAD_PX:
        return maps
    road_m = float(np.median(np.concatenate(low)))
    out = {}
    for name, found in maps.items():
        with np.errstate(invalid="ignore"):
            below = heights[name] < road_m - BELOW_M - BELOW_SLOPE * distances[name]
        depth_m = np.where(below, np.nan, found.depth_m).astype(np.float32)
        out[name] = DepthMap(depth_m, np.where(below, 0, found.confidence).astype(np.float32))
    return out


def match_error(own: View, other: View, depth_m: np.ndarray) -> np.ndarray:
    """Share of the depth that it changes by when the match in `other` is MATCH_PX off; inf where it is not seen."""
    there, _ = looked_up(own, other, depth_m)
    nearer, _ = looked_up(own, other, depth_m / 1.01)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = 0.01 * MATCH_PX / np.linalg.norm(nearer - there, axis=-1)
    h, w = other.grey.shape
    seen = (there >= 0).all(axis=-1) & (there[..., 0] <= w - 1) & (there[..., 1] <= h - 1)
    return np.where(seen, error, np.inf)


def seen_back(own: View, other: View, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The depth that `other` alone gives to the places of `own`'s pixels.

    Returns:
        agrees bool (h, w): its depth there leads back to the pixel. differs bool (h, w): it looks through that place,
        at what is farther; what is nearer only hides it.
    """
    back_m, _ = sweep(other, [own])
    there, expected_m = looked_up(own, other, depth_m)
    home, _ = looked_up(other, own, back_m)
    place = np.nan_to_num(there, nan=-1e4).astype(np.float32)
    nan = float("nan")
    known_m = np.dstack([home, back_m]).astype(np.float32)
    landed = cv2.remap(known_m, place[..., 0], place[..., 1], cv2.INTER_NEAREST, borderValue=(nan, nan, nan))
    rows, columns = np.indices(depth_m.shape)
    with np.errstate(invalid="ignore"):
        off_px = np.hypot(landed[..., 0] - columns, landed[..., 1] - rows)
        return off_px <= RETURN_PX, (off_px > 2 * RETURN_PX) & (landed[..., 2] > expected_m)


def texture(grey: np.ndarray) -> np.ndarray:
    """Standard deviation of grey values around each pixel, float32 (h, w)."""
    grey = grey.astype(np.float32)
    mean, square = cv2.blur(grey, (7, 7)), cv2.blur(grey * grey, (7, 7))
    return np.sqrt(np.maximum(square - mean * mean, 0))


def without_speckles(depth_m: np.ndarray) -> np.ndarray:
    """Remove islands of less than SPECKLE_PX; an island ends where the inverse depth steps by two planes."""
    planes = inverse_depths()
    code = np.where(np.isfinite(depth_m), (1 / depth_m - planes[0]) / (planes[1] - planes[0]) * 16 + 16, 0)
    code = np.nan_to_num(code).astype(np.int16)
    cv2.filterSpeckles(code, 0, SPECKLE_PX, 32)
    return np.where(code > 0, depth_m, np.nan).astype(np.float32)
