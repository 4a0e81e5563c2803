"""A room without a ceiling, ray-cast exactly: images and all that a camera network can be taught with."""

from __future__ import annotations

import numpy as np
import torch
from model_fixtures import ring_rig

from occ_core.camera import Camera
from occ_core.grid import VoxelGrid
from occ_core.network_input.rig_images import RigImages, Targets
from occ_core.taxonomy import OCC3D

ROOM_GRID = VoxelGrid((-16.0, -16.0, -1.0), 0.8, (40, 40, 8))
FLOOR, WALL = OCC3D.id_of("driveable_surface"), OCC3D.id_of("manmade")
LOW, HIGH = np.array([-11.0, -9.0, 0.0]), np.array([13.0, 9.0, 5.0])  # metres in the ego frame; open above HIGH
STEP_M = np.array([0.4, 0.1, 0.0])  # of the ego between an image and its neighbours


def room(size: tuple[int, int] = (96, 64)) -> tuple[RigImages, Targets]:
    """One moment in the room, four cameras of `size` (w, h), with all that it can be taught with."""
    cameras = [_resized(camera, size) for camera in ring_rig()]
    views = [[_view(camera, shift) for shift in (0 * STEP_M, -STEP_M, STEP_M)] for camera in cameras]
    images, depth_m, classes = (np.stack([view[0][k] for view in views]) for k in range(3))
    neighbours = np.stack([[view[1][0], view[2][0]] for view in views])
    moved = np.stack([[_moved(camera, -STEP_M), _moved(camera, STEP_M)] for camera in cameras])
    rig_images = RigImages(
        torch.from_numpy(images)[None],
        torch.from_numpy(np.stack([c.intrinsics for c in cameras])).float()[None],
        torch.from_numpy(np.stack([c.ego_from_cam for c in cameras])).float()[None],
        torch.ones(1, len(cameras), dtype=torch.bool),
    )
    targets = Targets(
        labels=torch.from_numpy(_labels())[None],
        class_weights=torch.ones(len(OCC3D)),
        class_map=torch.from_numpy(classes)[None],
        pixel_weights=torch.ones(len(OCC3D)),
        depth_m=torch.from_numpy(depth_m).float()[None],
        neighbours=torch.from_numpy(neighbours)[None],
        neighbour_from_cam=torch.from_numpy(moved).float()[None],
        neighbour_present=torch.ones(1, len(cameras), 2, dtype=torch.bool),
    )
    return rig_images, targets


def _view(camera: Camera, shift_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB uint8 (h, w, 3), depth along the optical axis (h, w), inf = sky, class uint8 (h, w)."""
    w, h = camera.size
    v, u = np.mgrid[0:h, 0:w].astype(float)
    rays = (
        np.stack([u, v, np.ones_like(u)], axis=-1) @ (camera.ego_from_cam[:3, :3] @ np.linalg.inv(camera.intrinsics)).T
    )
    origin = camera.ego_from_cam[:3, 3] + shift_m
    with np.errstate(divide="ignore"):
        to_faces = (np.where(rays > 0, HIGH, LOW) - origin) / rays  # the faces of the room in front of each ray
    depth_m, axis = to_faces.min(axis=-1), to_faces.argmin(axis=-1)
    sky = (axis == 2) & (rays[..., 2] > 0)
    points = origin + depth_m[..., None] * rays
    waves = [np.sin(points @ np.array(k) + phase) for k, phase in (((2, 1, 1), 0), ((1, -2, 2), 1), ((-1, 1.5, 3), 2))]
    image = np.where(sky[..., None], 200, 128 + 90 * np.stack(waves, axis=-1))
    classes = np.where(sky, OCC3D.free_id, np.where(axis == 2, FLOOR, WALL))
    return image.astype(np.uint8), np.where(sky, np.inf, depth_m), classes.astype(np.uint8)


def _labels() -> np.ndarray:
    """Free within the room, its faces a cell thick, unobserved beyond."""
    centers, edge = ROOM_GRID.centers_m(), ROOM_GRID.voxel_size_m
    labels = np.full(ROOM_GRID.shape, 255, dtype=np.uint8)
    labels[((centers > LOW - edge) & (centers < HIGH + edge)).all(axis=-1)] = WALL
    labels[((centers[..., :2] > LOW[:2]) & (centers[..., :2] < HIGH[:2])).all(axis=-1) & (labels == WALL)] = FLOOR
    labels[((centers > LOW) & (centers[..., :] < HIGH + [0, 0, 9])).all(axis=-1)] = OCC3D.free_id
    return labels


def _moved(camera: Camera, shift_m: np.ndarray) -> np.ndarray:
    ego_from_neighbour = camera.ego_from_cam.copy()
    ego_from_neighbour[:3, 3] += shift_m
    return np.linalg.inv(ego_from_neighbour) @ camera.ego_from_cam


def _resized(camera: Camera, size: tuple[int, int]) -> Camera:
    """The same view in another number of pixels."""
    sx, sy = size[0] / camera.size[0], size[1] / camera.size[1]
    resize = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    return Camera(camera.name, resize @ camera.intrinsics, size, camera.ego_from_cam)
