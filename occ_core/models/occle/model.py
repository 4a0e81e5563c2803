"""OccLE: images and LiDAR -> a semantic and a geometric volume, learned apart -> Dual Mamba -> voxels.

After OccLE (arXiv 2505.20617), whose code was not public: what is ours is said where it is, and in docs/occle.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import InvalidInput
from occ_core.losses.labels import cell_losses
from occ_core.losses.projection import projection_losses
from occ_core.losses.ray import pixel_class_loss
from occ_core.losses.voxel import semantic_loss
from occ_core.models import checkpointing
from occ_core.models.easyocc.heads import SLABS, blocks_to_cells, position_channels
from occ_core.models.image_network import ImageNetwork
from occ_core.models.occle.branches import GeometryBranch, SemanticBranch
from occ_core.models.occle.config import OccleConfig
from occ_core.models.occle.fusion import DualFusion
from occ_core.models.occle.lidar import (
    DEPTH_CHANNELS,
    ImageDepths,
    depth_evidence,
    image_depths,
    points_in_grid,
    voxel_channels,
    voxelise,
)
from occ_core.models.occle.supervision import (
    balanced_occupancy,
    consistency_loss,
    disturbed,
    evidence_loss,
    lidar_evidence,
    points_taught,
    teacher_weight,
    voxels_taught,
)
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.network_input.projection import cell_centers_m, in_view, lift
from occ_core.network_input.rig_images import RigImages, Targets
from occ_core.taxonomy import UNLABELED

Classes = Callable[[Tensor], Tensor]  # logits [Q, C - 1] of cells with flat indices [Q], without the free class
UNSEEN = 0.01  # added to the probabilities of lifted pixels: where no camera looks, all classes are alike


class OccleHidden(NamedTuple):
    """All results before the heads; the losses of the branches read them."""

    pixel_logits: Tensor  # [B, N, C, h, w]
    lifted_log_probs: Tensor  # [B, x, y, z, C - 1] log class probabilities of the pixels that see each lattice cell
    depths: ImageDepths | None
    semantic: Tensor  # [B, V, x, y, z] of the branch alone
    geometry: Tensor
    fused_semantic: Tensor  # [B, V, x, y, z]
    fused_geometry: Tensor


class Occle(nn.Module):
    """Maps images and LiDAR of a rig to occupancy, and to the classes of what is occupied.

    The same two heads read the branches alone, whose losses keep them apart, and the fused volumes, which answer: a
    cell is occupied where the geometric logit is > 0, and then of the class that the semantic one likes best. In losses
    on labels, P(class c) = P(occupied) P(c | occupied). To join them so is ours.
    """

    points_ego_m: Tensor
    position: Tensor
    centers_m: Tensor
    row_of_cell: Tensor

    def __init__(self, config: OccleConfig):
        super().__init__()
        self.config = config
        c, v, classes = config.feature_channels, config.volume_channels, len(config.classes)
        side = 4 if config.lidar is None else 4 + voxel_channels(config.block)
        depth = 0 if config.lidar is None else DEPTH_CHANNELS
        shape = v, config.lattice, config.checkpoint
        self.image_network = ImageNetwork(config.backbone, c, config.feature_stride, config.checkpoint)
        self.to_pixel_classes = nn.Conv2d(c, classes, 1)
        self.semantic = SemanticBranch(c, classes, side, *shape)
        self.geometry = GeometryBranch(c, side + depth, *shape)
        self.fusion = None
        if config.fusion != "none":
            heads, state, wide = config.fusion_heads, config.fusion_state, config.fusion_channels
            self.fusion = DualFusion(config.fusion, v, wide, config.fusion_stages, heads, state, config.checkpoint)
        cells = config.block[0] * config.block[1] * config.block[2]
        self.to_classes = _head(v, cells * (classes - 1))
        self.to_occupied = _head(v, cells)
        self.pixel_weight = nn.Parameter(torch.ones(()))
        points_ego_m, centers_m = cell_centers_m(config.grid, config.block), cell_centers_m(config.grid)
        extent_m = torch.tensor([config.grid.origin_m, config.grid.upper_m]).abs().amax(0)
        self.register_buffer("points_ego_m", points_ego_m, persistent=False)  # [K, 3] of the lattice
        self.register_buffer("position", position_channels(points_ego_m, extent_m), persistent=False)
        self.register_buffer("centers_m", centers_m, persistent=False)  # [X * Y * Z, 3]
        rows = torch.arange(len(centers_m)).reshape(1, *config.lattice, cells)
        self.register_buffer("row_of_cell", blocks_to_cells(rows, config.block, 1).flatten(), persistent=False)

    def hidden(self, rig_images: RigImages) -> OccleHidden:
        """Compute everything but the heads.

        Raises:
            InvalidInput: the network takes LiDAR and is given no cloud, not even that of `absent_points`.
        """
        features = self.image_network(rig_images.images)
        pixel_logits = self.to_pixel_classes(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        seen = torch.cat([features, pixel_logits.softmax(dim=2)], dim=2)
        lifted = lift(seen, self.points_ego_m, rig_images)[0].transpose(1, 2)  # [B, K, c + classes]
        image, classes = lifted.split([self.config.feature_channels, len(self.config.classes)], dim=2)
        free = self.config.classes.free_id
        lifted_log_probs = (torch.cat([classes[..., :free], classes[..., free + 1 :]], dim=2) + UNSEEN).log()
        position = self.position.T.expand(len(lifted), -1, -1)
        side, depths = (position, None) if self.config.lidar is None else self._lidar_side(rig_images, position)
        semantic_side = side if depths is None else side[..., :-DEPTH_CHANNELS]
        semantic = self.semantic(lifted, semantic_side)
        geometry = self.geometry(image, side)
        fused = (semantic, geometry) if self.fusion is None else self.fusion(semantic, geometry)
        lifted_log_probs = lifted_log_probs.unflatten(1, self.config.lattice)
        return OccleHidden(pixel_logits, lifted_log_probs, depths, semantic, geometry, *fused)

    def _lidar_side(self, rig_images: RigImages, position: Tensor) -> tuple[Tensor, ImageDepths | None]:
        """Features [B, K, side + depth] of each lattice cell: where it is, its points, and where it lies on the viewing
        rays."""
        config = self.config
        assert config.lidar is not None
        if rig_images.lidar is None:
            raise InvalidInput(f"'{config.name}' takes LiDAR, got no cloud (of no points: absent_points)")
        points = points_in_grid(rig_images.lidar, config.grid)
        voxels = voxelise(points, len(position), config.grid, config.block)
        depths = image_depths(rig_images, config.feature_size(config.feature_stride))
        evidence = depth_evidence(self.points_ego_m, rig_images, depths)
        return torch.cat([position, voxels, evidence], dim=2), depths

    def occupied(self, volume: Tensor) -> Tensor:
        """Logits [B, X, Y, Z] that a cell of the volume [B, V, x, y, z] is occupied."""
        return blocks_to_cells(self._rows(self.to_occupied, volume), self.config.block, 1)[..., 0]

    def classes(self, volume: Tensor, lifted_log_probs: Tensor) -> Tensor:
        """Class logits [B, x, y, z, block, C - 1] of occupied cells of a volume [B, V, x, y, z], without the free
        class. Cells stay in blocks, because bringing them into the grid's order takes longer than computing them."""
        rows = self._rows(self.to_classes, volume).unflatten(-1, (-1, lifted_log_probs.shape[-1]))
        return rows + (self.pixel_weight * lifted_log_probs)[..., None, :]

    def classes_of(self, volume: Tensor, lifted_log_probs: Tensor, index: Tensor) -> Tensor:
        """The same for some cells only, [Q, C - 1], by flat indices [Q] over samples and the grid."""
        block = len(self.row_of_cell) // len(self.points_ego_m)
        cell = index % len(self.row_of_cell)
        row = index - cell + self.row_of_cell[cell]
        feature = torch.div(row, block, rounding_mode="floor")
        asked = torch.zeros(len(lifted_log_probs) * len(self.points_ego_m), dtype=torch.bool, device=index.device)
        asked[feature] = True
        used_row, used = asked.cumsum(0)[feature] - 1, asked.nonzero()[:, 0]
        rows = self.to_classes(volume.movedim(1, -1).flatten(0, 3).index_select(0, used)).unflatten(1, (block, -1))
        rows = rows + (self.pixel_weight * lifted_log_probs.flatten(0, 3).index_select(0, used))[:, None]
        return rows.flatten(0, 1).index_select(0, used_row * block + row % block)

    def _rows(self, head: nn.Module, volume: Tensor) -> Tensor:
        checkpoint = self.config.checkpoint
        slabs = volume.movedim(1, -1).chunk(SLABS if checkpoint else 1, dim=1)
        return torch.cat([checkpointing.run(head, slab, checkpoint) for slab in slabs], dim=1)

    def forward(
        self, rig_images: RigImages, targets: Targets, progress: float, teacher: Occle | None = None
    ) -> dict[str, Tensor]:
        """Weighted loss terms by name; their sum is what training minimises.

        Args:
            progress: 0..1 of the run.
            teacher: the averaged network, asked of samples without label; None: no consistency.

        Raises:
            InvalidInput: targets lack what a loss needs, or their labels have another grid.
        """
        loss, shape = self.config.loss, (len(rig_images.images), *self.config.grid_shape)
        labels = rig_images.images.new_full((), UNLABELED).expand(shape)
        if "labels" in self.config.needs:
            labels = targets.labels_of(self.config.grid_shape, "labels" if loss.labels > 0 else "geometry_labels")
        unlabelled = (labels == UNLABELED).flatten(1).all(dim=1)  # [B]: samples without any label
        asks = teacher is not None and self.config.mean_teacher and bool(unlabelled.any())
        hidden = self.hidden(disturbed(rig_images, unlabelled) if asks else rig_images)
        occupied, alone = self.occupied(hidden.fused_geometry), self.occupied(hidden.geometry)
        classes_of = partial(self.classes_of, hidden.fused_semantic, hidden.lifted_log_probs)
        losses: dict[str, Tensor] = {}
        if loss.labels > 0:
            losses |= self._label_losses(occupied, classes_of, labels, targets)
        if loss.geometry_labels > 0:
            known = labels != UNLABELED
            truth = labels[known] != self.config.classes.free_id
            losses["geometry_labels"] = loss.geometry_labels * balanced_occupancy(
                alone[known], truth, loss.label_terms.free_share
            )
        if "lidar_origin_m" in self.config.needs and rig_images.lidar is not None:
            origin_m = targets.need("lidar_origin_m", "geometry_lidar")
            evidence = lidar_evidence(rig_images.lidar, origin_m, self.config.grid, loss.lidar_rays)
            halves = [
                evidence_loss(logit, evidence, labels == UNLABELED, loss.label_terms.free_share)
                for logit in (occupied, alone)
            ]
            losses["geometry_lidar"] = loss.geometry_lidar * (halves[0] + halves[1]) / 2
        if self.config.mean_teacher:
            term = occupied.sum() * 0
            if teacher and asks:
                term = self._consistency(teacher, rig_images, occupied, unlabelled)
            losses["geometry_consistency"] = loss.geometry_consistency * teacher_weight(progress) * term
        return losses | self._map_losses(rig_images, targets, hidden, occupied, classes_of, unlabelled)

    def _label_losses(
        self, occupied: Tensor, classes_of: Classes, labels: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Losses on labelled cells; the two heads' logits are joined for these cells alone."""
        loss, free = self.config.loss, self.config.classes.free_id
        index = (labels != UNLABELED).flatten().nonzero()[:, 0]
        rows = joint_log_probabilities(occupied.flatten()[index], classes_of(index), free)
        weights = targets.need("class_weights", "labels")
        terms = cell_losses(rows.float(), labels.flatten()[index].long(), weights, loss.label_terms, free)
        return {name: loss.labels * term for name, term in terms.items()}

    def _consistency(self, teacher: Occle, rig_images: RigImages, occupied: Tensor, unlabelled: Tensor) -> Tensor:
        """The consistency loss against the averaged network, which sees the undisturbed input."""
        with torch.no_grad():
            taught = teacher.occupied(teacher.hidden(rig_images).fused_geometry)
        asked = unlabelled[:, None, None, None].expand_as(occupied)
        cells = self.config.loss.consistency_cells
        return consistency_loss(occupied, taught, asked, self.centers_m, rig_images, cells)

    def _map_losses(
        self,
        rig_images: RigImages,
        targets: Targets,
        hidden: OccleHidden,
        occupied: Tensor,
        classes_of: Classes,
        unlabelled: Tensor,
    ) -> dict[str, Tensor]:
        """The losses that read the class teacher's maps."""
        loss, free, grid = self.config.loss, self.config.classes.free_id, self.config.grid
        losses: dict[str, Tensor] = {}
        if "class_map" not in self.config.needs:
            return losses
        class_map, weights = targets.need("class_map", "class_map"), targets.need("pixel_weights", "class_map")
        if loss.distil_2d > 0:
            height, width = hidden.pixel_logits.shape[3:]
            sampled = F.interpolate(class_map.float(), (height, width), mode="nearest-exact").to(torch.uint8)
            term = pixel_class_loss(hidden.pixel_logits.flatten(0, 1), sampled.flatten(0, 1), weights)
            losses["distil_2d"] = loss.distil_2d * term
        if loss.distil_3d > 0 and hidden.depths is not None:
            index, taught = points_taught(rig_images, hidden.depths, class_map, grid, free).known(weights)
            alone = self.classes_of(hidden.semantic, hidden.lifted_log_probs, index)
            losses["distil_3d"] = loss.distil_3d * semantic_loss(
                alone, occupied_class_index(taught, free), without_free_class(weights, free)
            )
        if loss.distil_answer > 0 and targets.pseudo_labels is not None:
            index, taught = voxels_taught(targets.pseudo_labels, free).known(weights)
            term = semantic_loss(
                classes_of(index), occupied_class_index(taught, free), without_free_class(weights, free)
            )
            losses["distil_answer"] = loss.distil_answer * term
        if loss.projection > 0:
            class_map = torch.where(unlabelled[:, None, None, None], class_map, UNLABELED)
            rays = loss.pixel_rays
            terms = projection_losses(occupied, classes_of, class_map, rig_images, grid, free, rays, weights)
            losses |= {name: loss.projection * term for name, term in terms.items()}
        return losses

    @torch.no_grad()
    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        """The most likely state of each cell. Cells in view of a camera count as observed; with a cloud, all do. Set
        eval mode first."""
        free = self.config.classes.free_id
        hidden = self.hidden(rig_images)
        logit = self.occupied(hidden.fused_geometry)
        best_class = self.classes(hidden.fused_semantic, hidden.lifted_log_probs).argmax(dim=-1)
        best_class = blocks_to_cells(best_class, self.config.block, 1)[..., 0]
        best_class = best_class + (best_class >= free).long()  # the free class has no logit of its own
        observed = in_view(self.centers_m, rig_images).reshape(-1, *self.config.grid_shape)
        if rig_images.lidar is not None:  # which looks all around
            observed = observed | rig_images.lidar[..., 0].isfinite().any(dim=1)[:, None, None, None]
        occupied = observed & (logit > 0)
        labels = torch.where(occupied, best_class, free)
        confidence = torch.sigmoid(logit.abs()) * observed * 255
        return VoxelAnswer(labels.to(torch.uint8), confidence.to(torch.uint8), observed.to(torch.uint8))


def joint_log_probabilities(
    occupied: Tensor,  # [...] logits
    classes: Tensor,  # [..., C - 1] logits of all classes but the free one
    free_id: int,
) -> Tensor:  # [..., C]
    """log P of all classes: P(free) = 1 - P(occupied), P(class c) = P(occupied) P(c | occupied)."""
    log_p = F.log_softmax(classes, dim=-1) + F.logsigmoid(occupied)[..., None]
    return torch.cat([log_p[..., :free_id], F.logsigmoid(-occupied)[..., None], log_p[..., free_id:]], dim=-1)


def occupied_class_index(classes: Tensor, free_id: int) -> Tensor:
    """Renumber class ids so that the free class is left out."""
    return classes - (classes > free_id).long()


def without_free_class(rows: Tensor, free_id: int) -> Tensor:
    """Return the rows of all classes but the free one."""
    return torch.cat([rows[:free_id], rows[free_id + 1 :]])


def _head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(inplace=True), nn.Linear(2 * channels, outputs))
