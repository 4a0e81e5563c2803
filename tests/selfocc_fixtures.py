"""A SelfOcc small enough for tests, and one moment of a rig around it."""

import numpy as np
import torch
from model_fixtures import camera

from occ_core.models.config import parse
from occ_core.models.selfocc.config import SelfOccConfig
from occ_core.network_input.rig_images import RigImages, Targets

TINY = {
    "name": "tiny",
    "grid_origin_m": (-8.0, -8.0, -1.0),
    "voxel_size_m": 0.8,
    "grid_shape": (20, 20, 8),
    "input_width": 64,
    "input_height": 32,
    "backbone": "mobilenetv4-small",
    "strides": (8, 16),
    "channels": 16,
    "heads": 2,
    "vertices": (21, 21, 9),
    "layers": 1,
    "cross_points": (6, 6, 4),
    "self_points": 3,
    "head_channels": 16,
    "rays": (12, 6),
    "samples": 24,
    "checkpoint": False,
}


def config(**changes):
    return parse(SelfOccConfig, {**TINY, **changes})


def moment(cameras=2, seed=0, batch=1):
    """Cameras in a row of directions, blurred noise in their images, a step forward between neighbours."""
    rng = torch.Generator().manual_seed(seed)
    rig = [camera(str(i), 70.0 * i, (64, 32), 40.0) for i in range(cameras)]
    noise = torch.rand(batch * cameras * 3, 3, 8, 16, generator=rng) * 255
    images = torch.nn.functional.interpolate(noise, size=(32, 64), mode="bilinear").byte()
    images = images.permute(0, 2, 3, 1).unflatten(0, (batch, cameras, 3))
    poses = torch.eye(4).repeat(batch, cameras, 2, 1, 1)
    poses[:, :, 0, 2, 3], poses[:, :, 1, 2, 3] = 0.4, -0.4

    def stack(arrays):
        return torch.tensor(np.stack(arrays), dtype=torch.float32).repeat(batch, 1, 1, 1)

    rig_images = RigImages(
        images[:, :, 0].contiguous(),
        stack([c.intrinsics for c in rig]),
        stack([c.ego_from_cam for c in rig]),
        torch.ones(batch, cameras, dtype=torch.bool),
    )
    targets = Targets(
        labels=torch.randint(0, 18, (batch, 20, 20, 8), generator=rng).byte(),
        class_weights=torch.ones(18),
        class_map=torch.tensor([17] * 12 + [15] * 10 + [11] * 10).byte()[:, None].repeat(batch, cameras, 1, 64),
        pixel_weights=torch.ones(18),
        neighbours=images[:, :, 1:].contiguous(),
        neighbour_from_cam=poses,
        neighbour_present=torch.ones(batch, cameras, 2, dtype=torch.bool),
    )
    return rig_images, targets
