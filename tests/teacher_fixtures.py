"""Frames out of thin air, with and without truth on disk, for tests of teachers; not a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from occ_core.camera import Camera, Rig
from occ_core.frame import Frame, LidarSweep
from occ_core.geometry import pose

EGO_FROM_CAM = np.eye(4)
EGO_FROM_CAM[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # looks forward


def make_frame(
    images: dict[str, np.ndarray],
    token: str = "t0",
    scene: str = "s0",
    world_from_ego: np.ndarray | None = None,
    camera_from: np.ndarray | None = None,
    focal_px: float | None = None,
    lidar: LidarSweep | None = None,
) -> Frame:
    """Cameras that all look forward; `camera_from`: world_from_ego at the images' stamps, if another."""
    world_from_ego = np.eye(4) if world_from_ego is None else world_from_ego
    cameras = []
    for name, image in images.items():
        h, w = image.shape[:2]
        f = focal_px or w / 2
        cameras.append(Camera(name, np.array([[f, 0, w / 2], [0, f, h / 2], [0, 0, 1.0]]), (w, h), EGO_FROM_CAM))
    return Frame(
        stamp_ns=1,
        world_from_ego=world_from_ego,
        rig=Rig(tuple(cameras)),
        images=images,
        camera_stamp_ns=dict.fromkeys(images, 1),
        camera_world_from_ego=dict.fromkeys(images, world_from_ego if camera_from is None else camera_from),
        lidar=lidar,
        token=token,
        scene=scene,
    )


def make_truth(
    root: Path, class_id: np.ndarray, depth_m: np.ndarray, token: str = "t0", scene: str = "s0", at_m: float = 0.0
) -> Frame:
    """A frame with one camera, CAM, at (at_m, 0, 0), and its truth under `root`."""
    path = root / "truth" / scene / token / "CAM.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, class_id=class_id.astype(np.uint8), depth_m=depth_m.astype(np.float16))
    image = np.zeros((*class_id.shape, 3), dtype=np.uint8)
    return make_frame({"CAM": image}, token, scene, pose((at_m, 0, 0)))
