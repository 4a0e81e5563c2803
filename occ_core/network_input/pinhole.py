"""Pinhole views of other lenses, for networks and teachers that can only read pinhole images.

A lens up to WIDEST_DEG wide is rectified: one view of the same size. A wider one gets as many views as it needs to show
what stands around: level, side by side, each at most WIDEST_DEG wide, in as many rows as cover the elevations of
BAND_DEG. What a view shows beyond the lens, or of the robot itself, is blind. docs/backends.md says what that costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, cast

import cv2
import numpy as np

from occ_core.camera import COEFFICIENTS, Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.frame import Frame
from occ_core.geometry import inverse

PINHOLE = ("none",)
NOT_FISHEYE = tuple(model for model in COEFFICIENTS if model != "equidistant")
WIDEST_DEG = 100.0
# from 1 m above the ground this shows the ground from 1 m on, and things 20 m away up to 3.5 m
BAND_DEG = (-45.0, 10.0)
LEVEL_DEG = 15.0  # up and down; within it, how far a lens sees to the sides is measured
SLACK = 0.05  # share of a view that may be missing before another view is added
ROW_OVERLAP = 0.1  # share of a view's height, because its corners reach less far up and down than its middle
LEAST_SHARE = 0.05  # views in which the lens has a smaller share of the pixels are left out
FINEST = 4  # times a view's size, before it is scaled down


@dataclass(frozen=True, eq=False)
class PinholeView:
    """One pinhole view of a lens.

    Attributes:
        camera: the view's calibration; blind where the lens has nothing.
        lens: whose image it is made of.
        pixels: float32 (h, w, 2), where in the lens' image each pixel of the view lies.
    """

    camera: Camera
    lens: Camera
    pixels: np.ndarray

    def image(self, image: np.ndarray) -> np.ndarray:
        """The view's image, uint8 (h, w, 3), made from the lens' image or a smaller version of it; black where the lens
        is blind."""
        share = (np.array([image.shape[1], image.shape[0]]) / self.lens.size).astype(np.float32)
        pixels = self.pixels * share + 0.5 * (share - 1)
        nothing: Any = None  # the second map; cv2's types do not know that there may be none
        out = cv2.remap(image, pixels, nothing, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if self.camera.blind is not None:
            out[self.camera.blind] = 0
        return out

    @property
    def lens_from_view(self) -> np.ndarray:
        """The rotation (4, 4) from the view to its lens."""
        return inverse(self.lens.ego_from_cam) @ self.camera.ego_from_cam

    def on(self, lens: Camera) -> Camera:
        """The calibration of the view when its lens is mounted elsewhere."""
        return replace(self.camera, ego_from_cam=lens.ego_from_cam @ self.lens_from_view)


class ViewImages(NamedTuple):
    """The network's images of one lens, uint8 (K, H, W, 3), one for each of its K views."""

    images: np.ndarray
    views: tuple[PinholeView, ...]


@lru_cache(maxsize=128)  # cameras are told apart by identity: sources and nodes keep theirs
def views_of(lens: Camera, size: tuple[int, int]) -> tuple[PinholeView, ...]:
    """Make the views of a lens.

    Args:
        size: (width, height) of what is made of each view of a wide lens; views are that or a multiple.

    Raises:
        InvalidInput: the lens has no pixel that shows anything.
    """
    pixels = _sampled_pixels(lens)
    directions, valid = lens.directions(pixels)
    directions = directions[valid & lens.sees(pixels)]
    if not len(directions):
        raise InvalidInput(
            f"camera '{lens.name}': no pixel of its image shows the world: look at its mask and its lens"
        )
    slopes = np.abs(directions[:, :2]).max(axis=1) / np.maximum(directions[:, 2], 1e-9)
    if slopes.max() < math.tan(math.radians(WIDEST_DEG / 2)):
        return (_view(lens, _rectified(lens)),)
    views = [_view(lens, camera) for camera in _level(lens, directions, size)]
    seeing = [view for view in views if view.camera.blind is None or view.camera.blind.mean() < 1 - LEAST_SHARE]
    return tuple(seeing or views)


def pinhole_rig(rig: Rig, size: tuple[int, int]) -> Rig:
    """Replace every lens in the rig that is not a pinhole by its views."""
    views = {camera.name: views_of(camera, size) for camera in rig if camera.distortion_model not in PINHOLE}
    return Rig(tuple(c for camera in rig for c in ([v.camera for v in views.get(camera.name, ())] or [camera])))


def pinhole_frame(frame: Frame, size: tuple[int, int] | None = None, kept: tuple[str, ...] = PINHOLE) -> Frame:
    """Replace every lens whose model is not in `kept` by its views; a frame without such a lens is returned as it is.

    Args:
        size: as of `views_of`; None: each lens' own.
    """
    views = {c.name: views_of(c, size or c.size) for c in frame.rig if c.distortion_model not in kept}
    if not views:
        return frame
    cameras: list[Camera] = []
    images, stamps_ns, poses = (
        dict(frame.images),
        dict(frame.camera_stamp_ns),
        dict(frame.camera_world_from_ego),
    )
    for camera in frame.rig:
        cameras += [view.camera for view in views.get(camera.name, ())] or [camera]
        for view in views.get(camera.name, ()):
            if camera.name in frame.images:
                images[view.camera.name] = view.image(frame.images[camera.name])
            for given in cast(tuple[dict[str, Any], ...], (stamps_ns, poses)):
                if camera.name in given:
                    given[view.camera.name] = given[camera.name]
    for given in cast(tuple[dict[str, Any], ...], (images, stamps_ns, poses)):
        for name in views:
            given.pop(name, None)
    files = {name: file for name, file in frame.image_files.items() if name in images}  # a view has none of its own
    return frame.with_fields(
        rig=Rig(tuple(cameras)),
        images=images,
        camera_stamp_ns=stamps_ns,
        camera_world_from_ego=poses,
        image_files=files,
    )


def expanded(images: Mapping[str, np.ndarray | ViewImages], rig: Rig) -> tuple[dict[str, np.ndarray], Rig]:
    """Replace lenses in inputs and rig by their views; a lens without an image has none."""
    out: dict[str, np.ndarray] = {name: given for name, given in images.items() if isinstance(given, np.ndarray)}
    cameras: list[Camera] = []
    for camera in rig:
        given = images.get(camera.name)
        if isinstance(given, ViewImages):
            cameras += [view.on(camera) for view in given.views]
            out |= {view.camera.name: image for view, image in zip(given.views, given.images, strict=True)}
        elif camera.distortion_model in PINHOLE:
            cameras.append(camera)
    if not cameras:
        raise InvalidInput("no image at all: at least one camera is needed")
    return out, Rig(tuple(cameras))


def _sampled_pixels(lens: Camera, most: int = 97) -> np.ndarray:
    """Sample pixels all over the image, its borders included, (N, 2)."""
    u, v = (np.linspace(0, side - 1, min(most, side)) for side in lens.size)
    return np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)


def _rectified(lens: Camera) -> Camera:
    """Make a pinhole of the same size whose middle row shows what the lens' middle row does."""
    (w, h), k = lens.size, lens.intrinsics
    across, _ = lens.directions(np.array([[0, (h - 1) / 2], [w - 1, (h - 1) / 2]]))
    along, _ = lens.directions(np.array([[(w - 1) / 2, 0], [(w - 1) / 2, h - 1]]))
    left, right = across[:, 0] / across[:, 2]
    top, bottom = along[:, 1] / along[:, 2]
    fx = (w - 1) / (right - left)
    fy = fx * k[1, 1] / k[0, 0]
    intrinsics = np.array([[fx, 0, -left * fx], [0, fy, (h - 1) / 2 - fy * (top + bottom) / 2], [0, 0, 1]])
    return Camera(f"{lens.name}.0", intrinsics, lens.size, lens.ego_from_cam)


def _level(lens: Camera, directions: np.ndarray, size: tuple[int, int]) -> list[Camera]:
    """Place level pinholes side by side, in rows, over what a lens sees within BAND_DEG; `directions` are in its frame,
    (N, 3)."""
    x, y, z = lens.ego_from_cam[:3, :3] @ directions.T
    azimuth, elevation = np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1))
    low, high = np.radians(BAND_DEG)
    within = (elevation >= low) & (elevation <= high)
    within = within if within.any() else np.ones_like(within)
    ahead = within & (np.abs(elevation) < np.radians(LEVEL_DEG))
    ahead = ahead if ahead.any() else within  # a camera that looks down sees all around
    middle = math.atan2(y[ahead].mean(), x[ahead].mean())
    turn = (azimuth[ahead] - middle + np.pi) % (2 * np.pi) - np.pi
    columns = max(1, math.ceil(np.degrees(np.ptp(turn)) / WIDEST_DEG - SLACK))
    wide = max(np.ptp(turn) / columns, np.radians(1.0))
    focal_px = size[0] / 2 / math.tan(wide / 2)
    tall = 2 * math.atan(size[1] / 2 / focal_px)
    rows = max(1, math.ceil(np.ptp(elevation[within]) / (tall * (1 - ROW_OVERLAP)) - SLACK))
    step = np.ptp(elevation[within]) / rows
    times = int(np.clip(round(lens.intrinsics[0, 0] / focal_px), 1, FINEST))
    (w, h), focal_px = (times * size[0], times * size[1]), times * focal_px
    intrinsics = np.array([[focal_px, 0, (w - 1) / 2], [0, focal_px, (h - 1) / 2], [0, 0, 1]])
    angles = [
        (middle + turn.max() - (column + 0.5) * wide, elevation[within].max() - (row + 0.5) * step)
        for row in range(rows)
        for column in range(columns)
    ]
    return [
        Camera(f"{lens.name}.{i}", intrinsics, (w, h), _ego_from_view(lens.ego_from_cam[:3, 3], *angle))
        for i, angle in enumerate(angles)
    ]


def _ego_from_view(at_m: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """The pose ego_from_cam (4, 4) of a camera whose rows are level."""
    ahead = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(ahead, right), ahead], axis=1)
    out[:3, 3] = at_m
    return out


def _view(lens: Camera, camera: Camera) -> PinholeView:
    rays, _ = camera.directions(camera.pixel_grid())
    turn = lens.ego_from_cam[:3, :3].T @ camera.ego_from_cam[:3, :3]
    pixels, seen = lens.project(rays @ turn.T)
    (w, h), blind = camera.size, ~seen
    pixels = np.nan_to_num(pixels, nan=-1.0).astype(np.float32).reshape(h, w, 2)
    return PinholeView(replace(camera, blind=blind.reshape(h, w) if blind.any() else None), lens, pixels)
