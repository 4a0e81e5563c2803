"""EasyOcc in the sizes `paper`, `base` and `small`: images -> features -> bilinear lifting -> convolutions -> cells.

After Easy3D-Labels (arXiv 2509.26087): 3D pseudo-labels are the loss, nothing is rendered. Ours: channels that say
where a feature lies, and a second output, whether a camera sees the cell at all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from occ_core.losses.labels import label_losses
from occ_core.losses.query import query_losses, sample_queries
from occ_core.losses.voxel import observed_loss
from occ_core.models.easyocc.heads import BirdsEyeHead, HourglassHead, position_channels
from occ_core.models.easyocc.volume_config import EasyOccVolumeConfig
from occ_core.models.image_network import ImageNetwork
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.network_input.projection import cell_centers_m, in_view, lift
from occ_core.network_input.rig_images import RigImages, Targets
from occ_core.taxonomy import UNLABELED

OBSERVED_CELLS = 1 << 16  # random cells of a sample on which the loss of the observed output is computed
SEEN_RECALL = 0.98
"""Share of the cells known to the labels that the observed output is to call seen. Labels never know a hidden cell, but
miss many seen ones, most when few sweeps made them: the logit tells cells apart, its zero says nothing."""
SEEN_RATE = 0.05  # how fast the threshold follows that share, as batch norms follow their means


class VolumeCells(NamedTuple):
    """Logits of cells; the classes of a cell lie side by side in memory."""

    classes: Tensor  # [B, C, X, Y, Z], the free class among them
    observed: Tensor | None  # [B, X, Y, Z]: of a cell in view, does a camera see it, or is it hidden?


class EasyOccVolume(nn.Module):
    """Maps images of a rig to class logits of every cell."""

    points_ego_m: Tensor
    position: Tensor
    centers_m: Tensor
    observed_threshold: Tensor

    def __init__(self, config: EasyOccVolumeConfig):
        super().__init__()
        self.config = config
        c = config.feature_channels
        self.image_network = ImageNetwork(config.backbone, c, config.feature_stride, config.checkpoint)
        head = HourglassHead if config.head == "hourglass" else BirdsEyeHead
        self.head = head(config, c + 4, len(config.classes) + config.observed_output)
        points_ego_m, centers_m = cell_centers_m(config.grid, config.block), cell_centers_m(config.grid)
        extent_m = torch.tensor([config.grid.origin_m, config.grid.upper_m]).abs().amax(0)
        self.register_buffer("points_ego_m", points_ego_m, persistent=False)  # [K, 3] of the lifted features
        self.register_buffer("position", position_channels(points_ego_m, extent_m), persistent=False)
        self.register_buffer("centers_m", centers_m, persistent=False)  # [X * Y * Z, 3]
        self.register_buffer("observed_threshold", torch.zeros(()))  # a cell with more counts as seen

    def cells(self, rig_images: RigImages) -> VolumeCells:
        features = self.image_network(rig_images.images)
        lifted, _ = lift(features, self.points_ego_m, rig_images)
        position = self.position.expand(len(lifted), -1, -1)
        rows = torch.cat([lifted.transpose(1, 2), position.transpose(1, 2)], dim=2)  # channels stay side by side
        volume = rows.unflatten(1, self.config.lifted_shape).movedim(-1, 1)
        logits = self.head(volume)
        classes = len(self.config.classes)
        observed = logits[..., classes] if self.config.observed_output else None
        return VolumeCells(logits[..., :classes].movedim(-1, 1), observed)

    def forward(self, rig_images: RigImages, targets: Targets, progress: float) -> dict[str, Tensor]:
        """Weighted loss terms by name; their sum is what training minimises. `progress` changes nothing here.

        Raises:
            InvalidInput: targets lack what a loss needs, or their labels have another grid.
        """
        loss, free = self.config.loss, self.config.classes.free_id
        cells = self.cells(rig_images)
        losses: dict[str, Tensor] = {}
        if "labels" in self.config.needs:
            labels = targets.labels_of(self.config.grid_shape, "labels" if loss.labels > 0 else "observed")
        if loss.labels > 0:
            weights = targets.need("class_weights", "labels")
            terms = label_losses(cells.classes, labels, weights, loss.label_terms, free, loss.observed_only)
            losses |= {name: loss.labels * term for name, term in terms.items()}
        if cells.observed is not None:
            losses["observed"] = loss.observed * self._observed_loss(cells.observed, labels, rig_images)
        if loss.query > 0:
            depth_m, class_map = targets.need("depth_m", "query"), targets.need("class_map", "query")
            grid, rays, buffer_m = self.config.grid, loss.query_rays, loss.query_buffer_m
            queries = sample_queries(depth_m, class_map, rig_images, grid, free, rays, buffer_m)
            terms = query_losses(cells.classes, queries, grid, free, targets.pixel_weights)
            losses |= {name: loss.query * term for name, term in terms.items()}
        return losses

    def _observed_loss(self, logits: Tensor, labels: Tensor, rig_images: RigImages) -> Tensor:
        """The loss of the observed output, on random cells in view; cells that no camera has in view are never
        observed, by rule."""
        some = torch.randint(len(self.centers_m), (OBSERVED_CELLS,), device=logits.device)
        visible = in_view(self.centers_m[some], rig_images)  # [B, S]
        logit, known = logits.flatten(1)[:, some][visible], (labels.flatten(1)[:, some] != UNLABELED)[visible]
        if self.training and known.any():
            self.observed_threshold.lerp_(logit[known].detach().float().quantile(1 - SEEN_RECALL), SEEN_RATE)
        return observed_loss(logit, known)

    @torch.no_grad()
    def answer(self, rig_images: RigImages) -> VoxelAnswer:
        """The most likely class of each cell; set the model to eval mode first."""
        free = self.config.classes.free_id
        cells = self.cells(rig_images)
        observed = in_view(self.centers_m, rig_images).reshape(-1, *self.config.grid_shape)
        if cells.observed is not None:
            observed = observed & (cells.observed > self.observed_threshold)
        labels = torch.where(observed, cells.classes.argmax(dim=1), free)
        p_free = (cells.classes[:, free] - cells.classes.logsumexp(dim=1)).exp()
        confidence = torch.where(labels == free, p_free, 1 - p_free) * observed * 255
        return VoxelAnswer(labels.to(torch.uint8), confidence.to(torch.uint8), observed.to(torch.uint8))
