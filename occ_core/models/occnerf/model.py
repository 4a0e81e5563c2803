"""OccNeRF: images -> features -> mean over cameras in a contracted box -> 3D convolutions -> logits -> rays.

After OccNeRF (arXiv 2312.09243). What the cells are is taught by what the cameras would see in them: rendered depth
must warp the neighbours in time onto the image, rendered classes must be those of a 2D teacher. 3D pseudo-labels can be
added. docs/occnerf.md says where it differs from the paper.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import InvalidInput
from occ_core.losses.labels import label_losses
from occ_core.losses.photometric import as_float, photometric_loss, smoothness_loss
from occ_core.losses.ray import pixel_class_loss
from occ_core.losses.rendering import entropy_loss
from occ_core.models import checkpointing
from occ_core.models.contraction import Contraction
from occ_core.models.hourglass import StackedHourglass, conv3d
from occ_core.models.image_network import ImageNetwork
from occ_core.models.occnerf.config import OccNerfConfig
from occ_core.models.volume_rendering import RaySampling, Rendered, render
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.network_input.projection import cell_centers_m, in_view, lift, pixel_rays
from occ_core.network_input.rig_images import RigImages, Targets

STOPPED_AT_FIRST = 0.5  # share of the longest ray: from opaque cells nothing behind can be learned, nor the sky

SEMANTICS_GROW_UNTIL = 0.5
"""Share of the run over which the weight of the rendered classes grows to its full value: the quickest way to render a
class is to let all rays end at the camera, so parallax has its say first."""


class OccNerf(nn.Module):
    """Maps images of a rig to class logits in a box of contracted space."""

    points_ego_m: Tensor
    centers_m: Tensor

    def __init__(self, config: OccNerfConfig) -> None:
        super().__init__()
        self.config = config
        c, classes = config.feature_channels, len(config.classes)
        self.contraction = Contraction(config.grid, config.contraction_ratio, config.volume_shape)
        self.image_network = ImageNetwork(config.backbone, c, config.feature_stride, config.checkpoint)
        self.voxel_weight = nn.Parameter(torch.ones(c, *config.volume_shape))  # how much each feature counts, and where
        self.hourglass = StackedHourglass(c, config.volume_channels, config.hourglass_stacks, config.checkpoint)
        self.head = _head(config.volume_channels, config.head_convolutions, classes)
        self._start_free()
        self.register_buffer("points_ego_m", self.contraction.cell_centers_m(), persistent=False)  # [K, 3]
        self.register_buffer("centers_m", cell_centers_m(config.grid), persistent=False)  # [X * Y * Z, 3]

    def _start_free(self) -> None:
        """Set the bias so that a ray through half of the box loses STOPPED_AT_FIRST of itself, spread over all its
        cells."""
        longest = math.hypot(*self.config.volume_shape) / 2  # cells from the middle to a corner
        bias = self.head[-1].get_parameter("bias")
        nn.init.constant_(bias[self.config.classes.free_id], math.log(longest / STOPPED_AT_FIRST - 1))

    def volume(self, rig_images: RigImages) -> Tensor:
        """Class logits of the box, [B, C, X, Y, Z] of `config.volume_shape`."""
        features = self.image_network(rig_images.images)
        lifted, _ = lift(features, self.points_ego_m, rig_images)
        x = self.hourglass(lifted.unflatten(2, self.config.volume_shape) * self.voxel_weight)
        return checkpointing.run(self.head, x, self.config.checkpoint)

    def grid_logits(
        self,
        volume: Tensor,  # [B, C, *volume_shape]
    ) -> Tensor:  # [B, C, *grid_shape]
        """Logits at the centres of the grid's cells; they are interpolated where several cells share one of the
        volume."""
        f = self.config.cells_per_feature
        x, y, z = self.contraction.inner
        if f == 1:
            return volume[:, :, x, y, z]
        margin = min(1, z.start)  # what the outermost cells are interpolated with; none in a plain grid
        x, y, z = (slice(s.start - margin, s.stop + margin) for s in (x, y, z))
        fine = F.interpolate(volume[:, :, x, y, z], scale_factor=float(f), mode="trilinear", align_corners=False)
        x, y, z = (slice(f * margin, n - f * margin) for n in fine.shape[2:])
        return fine[:, :, x, y, z]

    def forward(self, rig_images: RigImages, targets: Targets, progress: float) -> dict[str, Tensor]:
        """Weighted loss terms by name; their sum is what training minimises. `progress` is 0..1 of the run.

        Raises:
            InvalidInput: targets lack what a loss needs, their labels have another grid, or no camera is present.
        """
        if not rig_images.present.any():
            raise InvalidInput(f"none of {rig_images.present.numel()} cameras is present: there is nothing to render")
        volume = self.volume(rig_images)
        losses: dict[str, Tensor] = {}
        if self.config.loss.renders:
            losses |= self._rendered_losses(volume, rig_images, targets, progress)
        if self.config.loss.labels > 0:
            losses |= self._label_losses(volume, targets)
        return losses

    def _label_losses(self, volume: Tensor, targets: Targets) -> dict[str, Tensor]:
        loss, config = self.config.loss, self.config
        labels = targets.labels_of(config.grid_shape, "labels")
        weights = targets.need("class_weights", "labels")
        free = config.classes.free_id
        terms = label_losses(self.grid_logits(volume), labels, weights, loss.label_terms, free, loss.observed_only)
        return {name: loss.labels * term for name, term in terms.items()}

    def _rendered_losses(
        self, volume: Tensor, rig_images: RigImages, targets: Targets, progress: float
    ) -> dict[str, Tensor]:
        """Losses of the cameras that are present; an absent camera has no image to compare with."""
        loss, present = self.config.loss, rig_images.present
        size = self.config.render_width, self.config.render_height
        seen = self._render(volume, rig_images, size, jittered=True)
        losses: dict[str, Tensor] = {}
        if loss.photometric > 0 or loss.smoothness > 0:
            depth_m = F.interpolate(
                seen.depth_m[present].unsqueeze(1),
                size=rig_images.images.shape[2:4],
                mode="bilinear",
                align_corners=False,
            ).squeeze(1)
            images = as_float(rig_images.images[present])
            sees = None if rig_images.sees is None else rig_images.sees[present]
            if loss.photometric > 0:
                losses["photometric"] = loss.photometric * _photometric(depth_m, images, rig_images, targets)
            if loss.smoothness > 0:
                losses["smoothness"] = loss.smoothness * smoothness_loss(1 / depth_m, images, sees)
        if loss.entropy > 0:
            losses["entropy"] = loss.entropy * entropy_loss(seen.opacity[present])
        if loss.distortion > 0:
            losses["distortion"] = loss.distortion * seen.distortion[present].mean()
        if loss.semantic > 0:
            class_map, weights = targets.need("class_map", "semantic"), targets.need("pixel_weights", "semantic")
            logits = seen.classes[present].movedim(-1, 1)
            grown = min(1.0, progress / SEMANTICS_GROW_UNTIL)
            error = pixel_class_loss(logits, _at_rays(class_map[present], size), weights)
            losses["semantic"] = grown * loss.semantic * error
        return losses

    def _render(self, volume: Tensor, rig_images: RigImages, size: tuple[int, int], jittered: bool) -> Rendered:
        """Render what every camera, present or not, would see: fields [B, N, h, w, ...] of `Rendered`."""
        config = self.config
        origins_m, directions = pixel_rays(rig_images, size)
        b, n, h, w, _ = directions.shape
        origins_m = origins_m[:, :, None, None].expand_as(directions)
        jitter = torch.rand(b, n * h * w, device=volume.device) if jittered else None
        sampling = RaySampling(
            config.samples, config.samples_per_class, config.depth_m, config.rays_per_chunk, config.checkpoint
        )
        rays = origins_m.flatten(1, 3), directions.flatten(1, 3)
        seen = render(volume, config.classes.free_id, self.contraction, *rays, sampling, jitter)
        return Rendered(*(field.unflatten(1, (n, h, w)) for field in seen))

    @torch.no_grad()
    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        """The most likely class of each cell; set the model to eval mode first.

        Observed is what a present camera has in view: the network cannot tell what is hidden.
        """
        free = self.config.classes.free_id
        logits = self.grid_logits(self.volume(rig_images)).float()
        observed = in_view(self.centers_m, rig_images).reshape(-1, *self.config.grid_shape)
        labels = torch.where(observed, logits.argmax(dim=1), free)
        p_free = torch.sigmoid(logits[:, free])  # as it is rendered
        confidence = torch.where(labels == free, p_free, 1 - p_free) * observed * 255
        return VoxelAnswer(labels.to(torch.uint8), confidence.to(torch.uint8), observed.to(torch.uint8))

    @torch.no_grad()
    def rendered_depth(self, rig_images: RigImages, size: tuple[int, int]) -> Tensor:
        """Depth along the optical axis at the centres of `size` = (w, h) cells over each image; set eval mode first.

        Returns:
            float32 [B, N, h, w], metres within `config.depth_m`; of cameras that are absent, too.
        """
        near, far = self.config.depth_m
        return self._render(self.volume(rig_images), rig_images, size, jittered=False).depth_m.clamp(near, far)


def _head(channels: int, convolutions: int, classes: int) -> nn.Sequential:
    hidden = (layer for _ in range(convolutions) for layer in (conv3d(channels, channels), nn.ReLU(inplace=True)))
    return nn.Sequential(*hidden, nn.Conv3d(channels, classes, 3, 1, 1))


def _photometric(depth_m: Tensor, images: Tensor, rig_images: RigImages, targets: Targets) -> Tensor:
    present = rig_images.present
    neighbours, from_cam, there = (
        targets.need(field, "photometric")[present]
        for field in ("neighbours", "neighbour_from_cam", "neighbour_present")
    )
    intrinsics = rig_images.intrinsics[present]
    sees = None if rig_images.sees is None else rig_images.sees[present]
    return photometric_loss(depth_m, images, as_float(neighbours), intrinsics, from_cam, there, sees)


def _at_rays(
    maps: Tensor,  # [M, H, W]
    size: tuple[int, int],  # (w, h)
) -> Tensor:  # [M, h, w]
    """The pixel at the centre of each ray's cell of the image."""
    rows, columns = (
        ((torch.arange(rays, device=maps.device) + 0.5) * pixels / rays).long()
        for rays, pixels in zip((size[1], size[0]), maps.shape[1:], strict=True)
    )
    return maps[:, rows[:, None], columns]
