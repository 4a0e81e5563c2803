"""Prepares a rig's calibration for camera networks, in the same way for training, evaluation and deployment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from occ_core.camera import Rig
from occ_core.errors import InvalidInput
from occ_core.network_input.preprocess import Preprocess
from occ_core.network_input.rig_images import RigImages


def rig_inputs(
    images: np.ndarray,  # uint8 [N, H, W, 3], what `preprocess` made of the rig's images
    present: np.ndarray,  # bool [N]
    rig: Rig,
    preprocess: Preprocess,
    lidar: np.ndarray | None = None,  # float32 [P, 5], what `occ_core.lidar_points` made of the sweeps
) -> RigImages:
    """Make the inputs of one sample, without the batch axis. A lens that is not a pinhole is replaced by the views of
    `network_input.pinhole`.

    Raises:
        InvalidInput: a camera of the rig is no pinhole.
    """
    intrinsics, ego_from_cam = calibration(rig, preprocess)
    cloud = None if lidar is None else torch.from_numpy(lidar)
    sees = seeing_pixels(rig, preprocess)
    return RigImages(torch.from_numpy(images), intrinsics, ego_from_cam, torch.from_numpy(present), cloud, sees)


def seeing_pixels(rig: Rig, preprocess: Preprocess) -> Tensor | None:
    """Mark the pixels of the preprocessed images that show the world, bool [N, H, W]; None if all do."""
    if all(camera.blind is None for camera in rig):
        return None
    sees = np.ones((len(rig), preprocess.height, preprocess.width), dtype=np.bool_)
    for i, camera in enumerate(rig):
        if camera.blind is not None:
            sees[i] = ~preprocess.nearest(camera.blind, camera.size)
    return torch.from_numpy(sees)


def calibration(rig: Rig, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """The intrinsics of the preprocessed images, float32 [N, 3, 3], and ego_from_cam, float32 [N, 4, 4].

    Raises:
        InvalidInput: a lens distorts; camera networks project by a 3 x 3 matrix.
    """
    for camera in rig:
        if camera.distortion_model != "none":
            raise InvalidInput(
                f"camera '{camera.name}' has a lens of model '{camera.distortion_model}', camera networks take pinhole "
                "images: rectify them first, as `network_input.pinhole` does"
            )
    cameras = [preprocess.camera(camera) for camera in rig]
    matrices = (np.stack([c.intrinsics for c in cameras]), np.stack([c.ego_from_cam for c in cameras]))
    intrinsics, ego_from_cam = (torch.from_numpy(matrix.astype(np.float32)) for matrix in matrices)
    return intrinsics, ego_from_cam
