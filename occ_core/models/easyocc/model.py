"""EasyOcc: images -> features, and where rays end -> gather into the grid -> bird's-eye UNet -> voxels.

After Easy3D-Labels (arXiv 2509.26087): direct supervision by 3D labels, no rendering. What differs is chosen for small
computers: lifting is a gather through a table that is an input of the network (the calibration is data, not weights),
features are weighted by where their rays end as in Lift-Splat (arXiv 2008.05711), and height lives in channels as in
FlashOcc (arXiv 2311.12058). With a memory (`memory.py`), features of the samples before join those of this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models.backbones import build_backbone, load_backbone, statistics
from occ_core.models.easyocc import ground
from occ_core.models.easyocc.balance import fit_balance
from occ_core.models.easyocc.config import STRIDE, EasyOccConfig
from occ_core.models.easyocc.foot import HazardsOfTheColumn
from occ_core.models.easyocc.inputs import SampleSequence, TableImages, TableTargets
from occ_core.models.easyocc.logits import NEVER, CellLogits, Hidden, Lifted, Views, end_window, ray_ends
from occ_core.models.easyocc.losses import losses
from occ_core.models.easyocc.memory import MemoryFusion
from occ_core.models.easyocc.sequence import SequentialModel
from occ_core.models.easyocc.table import GROUND, RAY_CHANNELS
from occ_core.models.easyocc.thresholds import fit_thresholds
from occ_core.models.lifting import gather_rows, ray_evidence
from occ_core.models.voxel_answer import VoxelAnswer


def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)), inplace=True)


class Neck(nn.Module):
    """Sums features of strides 8, 16, 32 and the pixels' viewing rays at stride 8.

    And of stride 4, if there are any: they say where in its 8 pixels a thing meets the ground, at 10 m 2 m of distance.
    """

    def __init__(self, given: tuple[int, ...], channels: int, finer: int | None):
        super().__init__()
        self.finer = None if finer is None else nn.Conv2d(finer, channels, 2, 2, bias=False)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in given)
        self.rays = nn.Conv2d(RAY_CHANNELS, channels, 1, bias=False)
        self.smooth = nn.Sequential(conv(channels, channels), conv(channels, channels))

    def forward(self, features: tuple[Tensor, ...], rays: Tensor) -> Tensor:
        """Sum the features of the backbone's strides, from 4 or 8 on."""
        x8, x16, x32 = (layer(x) for layer, x in zip(self.lateral, features[-3:], strict=True))
        x16 = x16 + F.interpolate(x32, scale_factor=2.0, mode="nearest")
        x = x8 + F.interpolate(x16, scale_factor=2.0, mode="nearest") + self.rays(rays)
        if self.finer is not None:
            x = x + self.finer(features[0])
        return self.smooth(x)


class BirdsEyeNet(nn.Module):
    """A UNet over the ground plane: geometry has the grid's resolution, everything else 1/2, 1/4, 1/8 of it."""

    position: Tensor

    def __init__(self, config: EasyOccConfig):
        super().__init__()
        heights = config.grid_shape[2]
        c1, c2, c3 = config.bev_channels
        self.geometry = conv(2 * heights, c1, stride=2)
        self.context = conv(config.pillar_heights * config.feature_channels, c1, 1)
        self.enter = conv(2 * c1 + 3, c1, 1)
        self.block1 = Residual(c1)
        self.down2, self.block2 = conv(c1, c2, stride=2), Residual(c2)
        self.down3, self.block3 = conv(c2, c3, stride=2), nn.Sequential(Residual(c3), Residual(c3))
        self.up2, self.block2b = conv(c3, c2, 1), Residual(c2)
        self.up1, self.block1b = conv(c2, c1, 1), Residual(c1)
        self.fine_geometry = conv(2 * heights, config.head_channels)
        self.fine = nn.Conv2d(c1, config.head_channels, 1)
        x, y = (torch.linspace(-1, 1, n) for n in config.pillar_grid_shape[:2])
        self.memory = MemoryFusion(config) if config.memory_channels else None
        x, y = torch.meshgrid(x, y, indexing="ij")
        self.register_buffer("position", torch.stack([x, y, torch.hypot(x, y)])[None], persistent=False)

    def forward(
        self,
        geometry: Tensor,  # [B, 2 * Z, X, Y]
        context: Tensor,  # [B, heights * C, X / 2, Y / 2]
        past: Tensor | None = None,  # [B, memory channels + 1, X / 2, Y / 2], moved to where things are now
    ) -> tuple[Tensor, Tensor | None]:  # [B, C, X, Y], and what the memory keeps, [B, memory channels, X / 2, Y / 2]
        position = self.position.expand(geometry.shape[0], -1, -1, -1)
        x1 = self.enter(torch.cat([self.geometry(geometry), self.context(context), position], dim=1))
        x1 = self.block1(x1)
        if self.memory is not None and past is not None:
            x1 = self.memory(x1, past)
        x2 = self.block2(self.down2(x1))
        x3 = self.block3(self.down3(x2))
        x2 = self.block2b(x2 + F.interpolate(self.up2(x3), scale_factor=2.0, mode="nearest"))
        x1 = self.block1b(x1 + F.interpolate(self.up1(x2), scale_factor=2.0, mode="nearest"))
        fine = F.interpolate(self.fine(x1), scale_factor=2.0, mode="nearest")
        kept = None if self.memory is None else self.memory.kept(x1)
        return F.relu(fine + self.fine_geometry(geometry)), kept


class EasyOcc(nn.Module):
    """Maps camera images and a rig's table to class logits of every cell."""

    mean: Tensor
    std: Tensor
    log_depth: Tensor
    balance: Tensor
    stands: Tensor
    end_window: Tensor
    threshold: Tensor
    class_bias: Tensor
    observed_threshold: Tensor

    def __init__(self, config: EasyOccConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        mean, std = statistics(self.backbone)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        channels = dict(zip(self.backbone.strides, self.backbone.channels, strict=True))
        given = tuple(channels[stride] for stride in (STRIDE, 2 * STRIDE, 4 * STRIDE))
        self.neck = Neck(given, config.neck_channels, channels.get(STRIDE // 2))
        self.to_hazard = nn.Conv2d(config.neck_channels, config.depth_bins, 1)
        self.to_ground = nn.Conv2d(config.neck_channels, ground.BINS, 1) if config.depth_by_ground else None
        middles_m = (config.depth_edges_m[1:] + config.depth_edges_m[:-1]) / 2
        self.register_buffer("log_depth", torch.from_numpy(np.log(middles_m)).float()[:, None, None], persistent=False)
        self.to_context = nn.Conv2d(config.neck_channels, config.feature_channels, 1)
        self.to_pixel_class = nn.Conv2d(config.neck_channels, len(config.classes), 1)  # for its loss only
        self.birds_eye = BirdsEyeNet(config)
        heights, c = config.grid_shape[2], config.head_channels
        wide = 4 * c // 3
        self.head = nn.Sequential(nn.Linear(c, wide), nn.ReLU(inplace=True))
        self.to_occupied = nn.Linear(wide, heights)
        self.to_class = nn.Linear(wide, heights * (len(config.classes) - 1))
        self.to_observed = nn.Linear(wide, heights)
        self.hazard_weight = nn.Parameter(torch.ones(heights))  # of the viewing ray's logit in `occupied`
        self.reached_weight = nn.Parameter(torch.full((heights,), 8.0))  # of `reached` in `observed`
        # Last, so that a seed makes the same rest with and without it.
        self.foot = HazardsOfTheColumn(config) if config.foot_heads else None
        if self.to_ground is not None:  # learned beside what `to_hazard` may know already
            nn.init.zeros_(self.to_ground.weight)
            nn.init.zeros_(self.to_ground.get_parameter("bias"))
        nn.init.constant_(self.to_hazard.get_parameter("bias"), -3.4)  # start from the share of occupied cells, 3 %
        stands = [i not in config.classes.ground_ids for i in config.classes.occupied_ids]
        self.register_buffer("stands", torch.tensor(stands), persistent=False)  # of each class: above the ground
        balance = torch.tensor([[1.0], [1.0], [0.0]]).repeat(1, heights)
        self.register_buffer("balance", balance)  # weights of the grid's and the ray's logit, and a constant
        self.register_buffer("threshold", torch.zeros(len(config.classes) - 1))  # see thresholds.py
        self.register_buffer("class_bias", torch.zeros(len(config.classes) - 1))  # added to class logits; there too
        self.register_buffer("observed_threshold", torch.zeros(()))  # of the logit of observed cells; there too
        self.register_buffer("end_window", end_window(config.depth_edges_m), persistent=False)

    def load_backbone(self, weights: str | Path) -> None:
        """See `backbones.load_backbone`."""
        load_backbone(self.backbone, weights)

    def features(
        self,
        images: Tensor,  # [N, 3, H, W] colours 0..255
        rays: Tensor,  # [N, RAY_CHANNELS, h, w]
    ) -> Tensor:  # [N, C, h, w]
        """Features of the images at the resolution of the viewing rays."""
        return self.neck(self.backbone((images - self.mean) / self.std)[-4:], rays)

    def hazard(self, features: Tensor, rays: Tensor) -> Tensor:
        """Compute `Views.hazard_logits` from `features`."""
        logits = self.to_hazard(features)
        if self.to_ground is not None:
            along = self.to_ground(features)
            logits = logits + ground.over_depth(along, rays[:, GROUND : GROUND + 1], self.log_depth)
        return logits if self.foot is None else logits + self.foot(features, rays, self.log_depth)

    def views(
        self,
        images: Tensor,  # [N, H, W, 3] uint8
        rays: Tensor,  # [N, RAY_CHANNELS, h, w]
    ) -> Views:
        features = self.features(images.permute(0, 3, 1, 2).float(), rays)
        return Views(features, self.hazard(features, rays), self.to_pixel_class(features))

    def hidden(
        self,
        images: Tensor,  # [N, H, W, 3] uint8; N = batch * cameras
        voxel_index: Tensor,  # [B * X * Y * Z] into (N, h, w, depth bins); see occ_core.models.easyocc.table
        pillar_index: Tensor,  # [B * X/2 * Y/2 * heights] into (N, h, w)
        rays: Tensor,  # [N, RAY_CHANNELS, h, w]
        state: Tensor | None = None,  # Hidden.state of a sample before; zeros are none
        then_from_now: Tensor | None = None,  # [B, 2, 3], see MemoryFusion.moved
    ) -> Hidden:
        views = self.views(images, rays)
        columns, state = self.columns(self.lifted(views, voxel_index, pillar_index), state, then_from_now)
        return Hidden(columns, views, state)

    def lifted(self, views: Views, voxel_index: Tensor, pillar_index: Tensor) -> Lifted:
        """Gather features and hazards into the grid through the rig's table."""
        c = self.config
        x, y, z = c.grid_shape
        px, py, pz = c.pillar_grid_shape
        evidence = ray_evidence(views.hazard_logits)
        geometry = gather_rows(evidence, voxel_index).reshape(-1, x, y, 2 * z)
        ends = ray_ends(evidence[:, 1].detach().reshape(-1, c.depth_bins), self.end_window)
        ends = gather_rows(ends.reshape(-1, 1), voxel_index).reshape(-1, x, y, z)
        rows = self.to_context(views.features).permute(0, 2, 3, 1).reshape(-1, c.feature_channels)
        context = gather_rows(rows, pillar_index).reshape(-1, px, py, pz, c.feature_channels)
        context = context * self._pillar_weight(geometry)
        return Lifted(geometry, ends, context.reshape(-1, px, py, pz * c.feature_channels).permute(0, 3, 1, 2))

    def columns(
        self, lifted: Lifted, state: Tensor | None = None, then_from_now: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute `columns` and `state` of Hidden."""
        geometry, memory, past = lifted.geometry, self.birds_eye.memory, None
        if memory is not None and state is not None and then_from_now is not None:
            past = memory.moved(state, then_from_now)
        bev, kept = self.birds_eye(geometry.permute(0, 3, 1, 2), lifted.context, past)
        columns = torch.cat([bev.permute(0, 2, 3, 1), geometry[..., ::2], geometry[..., 1::2], lifted.ends], dim=-1)
        return columns, None if memory is None or kept is None else memory.state(kept)

    def _pillar_weight(self, geometry: Tensor) -> Tensor:
        """The probability that a lifted feature's ray ends in its cell, [B, X/2, Y/2, heights, 1], plus a floor."""
        x, y, z = self.config.grid_shape
        px, py, pz = self.config.pillar_grid_shape
        evidence = geometry.reshape(-1, px, x // px, py, y // py, pz, z // pz, 2)
        ends_here = torch.sigmoid(evidence[..., 0]) * evidence[..., 1]
        return 0.1 + ends_here.mean(dim=(2, 4, 6)).unsqueeze(-1)

    def cells(
        self,
        columns: Tensor,  # [..., C + 3 Z] of Hidden.columns
    ) -> CellLogits:
        """Compute the cells of columns; height comes out of the channels here. Any selection of columns may be
        passed."""
        heights = self.config.grid_shape[2]
        x = self.head(columns[..., : -3 * heights])
        hazard, reached, ends = columns[..., -3 * heights :].chunk(3, dim=-1)
        classes = self.to_class(x)
        of_grid, of_ray, constant = self.balance
        occupied = of_grid * self.to_occupied(x) + of_ray * self.hazard_weight * hazard + constant
        observed = self.to_observed(x) + self.reached_weight * (reached - 0.5)
        observed = torch.where(reached > 0, observed, torch.full_like(observed, NEVER))
        return CellLogits(occupied, classes.reshape(*classes.shape[:-1], heights, -1), ends > 0, observed)

    def logits(self, images: Tensor, voxel_index: Tensor, pillar_index: Tensor, rays: Tensor) -> CellLogits:
        """Logits of every cell: occupied and observed [B, X, Y, Z], classes [B, X, Y, Z, classes - 1]."""
        return self.cells(self.hidden(images, voxel_index, pillar_index, rays).columns)

    def forward(
        self, inputs: TableImages | SampleSequence, targets: TableTargets, progress: float
    ) -> dict[str, Tensor]:
        """Weighted loss terms by name; their sum is what training minimises. `progress` changes nothing here."""
        return losses(self, inputs, targets)

    @torch.no_grad()
    def answer(self, inputs: TableImages) -> VoxelAnswer:
        """The answer that the deployed network gives to samples without a past; set the model to eval mode first."""
        return self.sequential().answer(inputs)

    def sequential(self) -> SequentialModel:
        """The network as it answers frames one after the other, with its memory if it has one."""
        return SequentialModel(self, Answer(self).of)

    @torch.no_grad()
    def fit(self, samples: Iterable[tuple[TableImages, TableTargets]], class_weights: Tensor) -> None:
        """Fit the tensors that the config calls `fitted`; without samples they stay, as they were at the start.

        Args:
            samples: one by one, in order of scene and time, with `labels`; of scenes that did not train the weights.
                They are met several times.
            class_weights: [classes], by which the losses on cells weighed them.
        """
        if next(iter(samples), None) is None:
            return
        fit_balance(self, samples)
        fit_thresholds(self, samples, class_weights[list(self.config.classes.occupied_ids)])


def channels_last(model: EasyOcc) -> EasyOcc:
    """Lay out the weights as the CPU's convolutions read them best; this makes the model about twice as fast."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Answer(nn.Module):
    """The deployed network. It returns one byte each of class, confidence and state for a cell, not 17 floats."""

    def __init__(self, model: EasyOcc):
        super().__init__()
        self.model = model

    def forward(
        self,
        images: Tensor,
        voxel_index: Tensor,
        pillar_index: Tensor,
        rays: Tensor,
        state: Tensor | None = None,
        then_from_now: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Labels, confidence (255 x probability of being occupied, or free) and observed (0 or 1).

        All uint8 [B, X, Y, Z]; a cell that is not observed is labelled free with confidence 0. A network with memory
        gives a fourth: `state` for the sample after.
        """
        hidden = self.model.hidden(images, voxel_index, pillar_index, rays, state, then_from_now)
        answer = self.of(self.model.cells(hidden.columns))
        return answer if hidden.state is None else (*answer, hidden.state)

    def of(self, cells: CellLogits) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, confidence and observed, of logits [B, X, Y, Z]."""
        free = self.model.config.classes.free_id
        classes = (cells.classes + self.model.class_bias).argmax(dim=-1)
        threshold = self.model.threshold.index_select(0, classes.reshape(-1)).reshape(classes.shape)
        observed = cells.observed > self.model.observed_threshold
        stands = self.model.stands[classes]
        occupied = ((cells.occupied > threshold) | (cells.ends & stands)) & observed
        classes = classes + (classes >= free).to(classes.dtype)  # the free class has no logit of its own
        labels = torch.where(occupied, classes, torch.full_like(classes, free))
        p = torch.sigmoid(cells.occupied)
        confidence = torch.where(occupied, p, 1 - p) * observed.to(p.dtype) * 255
        return labels.to(torch.uint8), confidence.to(torch.uint8), observed.to(torch.uint8)
