"""SelfOcc (Huang et al., CVPR 2024, arXiv 2311.12754): images -> planes -> signed distances -> rays, or cells.

Images teach it: the distance field is rendered into each camera, and what its rays meet must look as it does from
where the camera was a sweep earlier and later. Class maps and 3D labels can be added. docs/selfocc.md says what is
published and what is ours.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from occ_core.losses.labels import label_losses
from occ_core.losses.photometric import as_float, smoothness_loss
from occ_core.models.image_network import FeaturePyramid
from occ_core.models.selfocc.config import SelfOccConfig
from occ_core.models.selfocc.encoder import PlaneEncoder
from occ_core.models.selfocc.head import SdfHead, Volume
from occ_core.models.selfocc.rendering import Box, RenderedRays, VolumeTables, camera_rays, pixel_grid, render
from occ_core.models.selfocc.sdf import eikonal_loss, hessian_loss, sdf_gradient, sharpness, sparsity_loss
from occ_core.models.selfocc.supervision import (
    TargetView,
    colour_loss,
    nearest_values,
    neighbour_loss,
    ray_class_loss,
)
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.network_input.projection import cell_centers_m, project
from occ_core.network_input.rig_images import RigImages, Targets

ANNEALED = 1 / 6  # share of the run after which only a falling field stops rays, as in NeuS
RAYS_AT_ONCE = 4800  # of `rendered_depth`: bounds its memory


class SelfOcc(nn.Module):
    def __init__(self, config: SelfOccConfig):
        super().__init__()
        self.config = config
        self.pyramid = FeaturePyramid(config.backbone, config.channels, config.strides, config.checkpoint)
        self.encoder = PlaneEncoder(config, len(config.strides))
        self.head = SdfHead(config)
        self.v = nn.Parameter(torch.tensor(0.1))  # see `sharpness`
        grid = config.grid
        self.lower_m: Tensor
        self.upper_m: Tensor
        self.register_buffer("lower_m", torch.tensor(grid.origin_m), persistent=False)
        self.register_buffer("upper_m", torch.tensor(grid.upper_m), persistent=False)

    def volume(self, rig_images: RigImages) -> Volume:
        """Compute the values at every vertex."""
        planes = self.encoder(self.pyramid(rig_images.images), rig_images)
        with torch.autocast(rig_images.images.device.type, enabled=False):  # 8 bits of a distance are not smooth
            return self.head({normal: plane.float() for normal, plane in planes.items()})

    def forward(self, rig_images: RigImages, targets: Targets, progress: float) -> dict[str, Tensor]:
        """Weighted loss terms by name; their sum is what training minimises.

        Args:
            progress: 0..1 of the run.

        Raises:
            InvalidInput: a loss needs what `targets` lacks, or labels are of another grid.
        """
        if self.config.loss.labels:
            targets.labels_of(self.config.grid_shape, "labels")  # refused before anything is computed
        volume = self.volume(rig_images)
        with torch.autocast(volume.sdf_m.device.type, enabled=False):  # places and products of weights need float32
            losses = self._regularisers(volume)
            if self.config.loss.renders:
                losses |= self._rendered_losses(volume, rig_images, targets, progress)
            if self.config.loss.labels:
                losses |= self._label_losses(volume, targets)
        return losses

    @torch.no_grad()
    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        """Cells are occupied where the distance at their centre is not positive; their class is the most likely one.

        Without semantics, all that is occupied gets the first class of the taxonomy that is not free. Cells count as
        observed where a present camera has their centre in view. SelfOcc's evaluation also sets cells near the grid's
        border free; that is left to whoever evaluates.
        """
        volume = self.volume(rig_images)
        free = self.config.classes.free_id
        with torch.autocast(volume.sdf_m.device.type, enabled=False):
            sdf_m = self._at_cells(volume.sdf_m[..., None])[..., 0]
            class_logits = self._at_cells(volume.class_logits)
        occupied = sdf_m <= 0
        if self.config.semantics:
            classes = class_logits.argmax(dim=-1)
            classes = classes + (classes >= free)
        else:
            classes = torch.full_like(sdf_m, self.config.classes.occupied_ids[0], dtype=torch.long)
        centers_m = cell_centers_m(self.config.grid).to(sdf_m.device)
        observed = project(centers_m, rig_images)[2].any(dim=1).view_as(occupied)
        labels = torch.where(occupied & observed, classes, free)
        confidence = torch.sigmoid(sdf_m.abs() * sharpness(self.v)) * observed * 255
        return VoxelAnswer(labels.to(torch.uint8), confidence.to(torch.uint8), observed.to(torch.uint8))

    @torch.no_grad()
    def rendered_depth(self, rig_images: RigImages, size: tuple[int, int]) -> Tensor:  # [B, N, h, w]
        """Metres along the optical axis of `size` (w, h) rays over each image; NaN for cameras that are absent."""
        volume = self.volume(rig_images)
        height, width = rig_images.images.shape[2:4]
        pixels = pixel_grid(size, (width, height), self.lower_m.new_zeros(2))
        depth_m = volume.sdf_m.new_full((*rig_images.present.shape, size[0] * size[1]), torch.nan)
        parts = pixels.flatten(0, 1).split(RAYS_AT_ONCE)
        with torch.autocast(volume.sdf_m.device.type, enabled=False):
            for b, tables in enumerate(self._tables(volume)):
                for n in rig_images.present[b].nonzero()[:, 0].tolist():
                    rendered = [self._render(tables, rig_images, b, n, part, 1.0).depth_m for part in parts]
                    depth_m[b, n] = torch.cat(rendered)
        return depth_m.unflatten(2, (size[1], size[0]))

    def _regularisers(self, volume: Volume) -> dict[str, Tensor]:
        weights, losses = self.config.loss, {}
        if weights.eikonal:
            losses["eikonal"] = weights.eikonal * eikonal_loss(sdf_gradient(volume.sdf_m, self.config.spacing_m))
        if weights.hessian:
            losses["hessian"] = weights.hessian * hessian_loss(volume.sdf_m)
        if weights.sparsity:
            losses["sparsity"] = weights.sparsity * sparsity_loss(volume.sdf_m)
        return losses

    def _tables(self, volume: Volume) -> list[VolumeTables]:  # [B]
        gradient = sdf_gradient(volume.sdf_m, self.config.spacing_m)
        geometry = torch.cat([volume.sdf_m[..., None], gradient], dim=-1).flatten(1, 3)
        appearance = torch.cat([volume.rgb, volume.class_logits.softmax(dim=-1)], dim=-1).flatten(1, 3)
        return [VolumeTables(g, a) for g, a in zip(geometry, appearance, strict=True)]

    def _render(
        self, tables: VolumeTables, rig_images: RigImages, b: int, n: int, pixels: Tensor, anneal: float
    ) -> RenderedRays:
        """Render rays of camera `n` of sample `b` through `pixels` [R, 2]."""
        rays = camera_rays(pixels, rig_images.intrinsics[b, n], rig_images.ego_from_cam[b, n])
        box = Box(self.lower_m, self.upper_m, self.config.vertices)
        jitter = torch.rand(len(pixels), 1, device=pixels.device) if self.training else pixels.new_full((1, 1), 0.5)
        args = (tables, box, rays, sharpness(self.v), self.config.samples, self.config.near_m, jitter, anneal)
        if self.config.checkpoint and torch.is_grad_enabled():
            return checkpoint(render, *args, use_reentrant=False)
        return render(*args)

    def _rendered_losses(
        self, volume: Volume, rig_images: RigImages, targets: Targets, progress: float
    ) -> dict[str, Tensor]:
        """The rendering losses; each is the mean over the cameras that have what it needs."""
        anneal = min(1.0, progress / ANNEALED)
        terms: dict[str, list[Tensor]] = {}
        for b, tables in enumerate(self._tables(volume)):
            for n in rig_images.present[b].nonzero()[:, 0].tolist():
                for name, loss in self._camera_losses(tables, rig_images, targets, b, n, anneal).items():
                    terms.setdefault(name, []).append(loss)
        weights = self.config.loss
        names = [name for name in ("photometric", "rgb", "semantic", "smoothness") if getattr(weights, name)]
        nothing = volume.sdf_m.sum() * 0  # a sample without cameras, or neighbours
        return {
            name: getattr(weights, name) * (torch.stack(terms[name]).mean() if name in terms else nothing)
            for name in names
        }

    def _camera_losses(
        self, tables: VolumeTables, rig_images: RigImages, targets: Targets, b: int, n: int, anneal: float
    ) -> dict[str, Tensor]:
        height, width = rig_images.images.shape[2:4]
        shift = self.lower_m.new_zeros(2)
        if self.training:  # all rays of a camera move together: windows of SSIM stay regular
            shift = torch.rand_like(shift) - 0.5
        pixels = pixel_grid(self.config.rays, (width, height), shift)
        sees = None if rig_images.sees is None else rig_images.sees[b, n]
        view = TargetView(pixels, as_float(rig_images.images[b, n][None]), rig_images.intrinsics[b, n][None], sees)
        rays = self._render(tables, rig_images, b, n, pixels.flatten(0, 1), anneal)
        weights, losses = self.config.loss, {}
        target = view.colours(view.image)
        if weights.photometric:
            there = targets.need("neighbour_present", "photometric")[b, n]
            if there.any():
                neighbours = as_float(targets.need("neighbours", "photometric")[b, n][there])
                poses = targets.need("neighbour_from_cam", "photometric")[b, n][there]
                losses["photometric"] = neighbour_loss(rays, view, neighbours, poses, self.config.mvs)
        if weights.rgb:
            losses["rgb"] = colour_loss(rays, view, target)
        if weights.smoothness:
            inverse_depth = (1 / rays.depth_m).view(1, *pixels.shape[:2])
            losses["smoothness"] = smoothness_loss(inverse_depth, target, None if sees is None else view.shown[:, 0])
        if weights.semantic:
            classes = nearest_values(targets.need("class_map", "semantic")[b, n], pixels)
            pixel_weights = targets.need("pixel_weights", "semantic")
            losses["semantic"] = ray_class_loss(rays, classes, pixel_weights, self.config.classes.free_id)
        return losses

    def _label_losses(self, volume: Volume, targets: Targets) -> dict[str, Tensor]:
        weights, free = self.config.loss, self.config.classes.free_id
        labels, class_weights = targets.need("labels", "labels"), targets.need("class_weights", "labels")
        logits = self.label_logits(volume)
        terms = label_losses(logits, labels, class_weights, weights.label_terms, free, weights.observed_only)
        return {name: weights.labels * term for name, term in terms.items()}

    def label_logits(self, volume: Volume) -> Tensor:  # [B, C, X, Y, Z]
        """Logits whose soft-max gives free with probability sigmoid(s * sdf), and otherwise the classes' soft-max.

        So the field and the classes learn from labels through the same s that renders them (ours).
        """
        cells = self._at_cells(torch.cat([volume.sdf_m[..., None], volume.class_logits], dim=-1))
        scaled = cells[..., :1] * sharpness(self.v)
        classes = F.logsigmoid(-scaled) + cells[..., 1:].log_softmax(dim=-1)
        free = self.config.classes.free_id
        return torch.cat([classes[..., :free], F.logsigmoid(scaled), classes[..., free:]], dim=-1).movedim(-1, 1)

    def _at_cells(self, values: Tensor) -> Tensor:
        """Interpolate trilinearly from vertices [B, vx, vy, vz, C] to the centres of cells [B, X, Y, Z, C], one axis
        after the other."""
        for axis, (cells, vertices) in enumerate(zip(self.config.grid_shape, self.config.vertices, strict=True), 1):
            hat = hat_functions(cells, vertices, values)
            values = torch.tensordot(values, hat, dims=([axis], [1])).movedim(-1, axis)
        return values


def hat_functions(cells: int, vertices: int, like: Tensor) -> Tensor:  # [cells, vertices]
    """Linear interpolation along an axis: from vertices, border to border, to the centres of cells."""
    place = (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / cells * (vertices - 1)
    vertex = torch.arange(vertices, device=like.device, dtype=like.dtype)
    return (1 - (place[:, None] - vertex).abs()).clamp(min=0)
