"""Images of a rig as the camera networks take them, for tests."""

from __future__ import annotations

import numpy as np
import torch

from occ_core.camera import Rig
from occ_core.network_input.rig_images import RigImages


def rig_images_of(rig: Rig, moments: int = 1, seed: int = 0) -> RigImages:
    """Noise in place of images; all cameras of the rig must have one size."""
    width, height = rig.cameras[0].size
    noise = np.random.default_rng(seed).integers(0, 256, (moments, len(rig.cameras), height, width, 3), dtype=np.uint8)
    intrinsics = np.stack([c.intrinsics for c in rig.cameras])
    poses = np.stack([c.ego_from_cam for c in rig.cameras])
    return RigImages(
        torch.from_numpy(noise),
        torch.from_numpy(intrinsics).float().expand(moments, -1, 3, 3).clone(),
        torch.from_numpy(poses).float().expand(moments, -1, 4, 4).clone(),
        torch.ones(moments, len(rig.cameras), dtype=torch.bool),
    )
