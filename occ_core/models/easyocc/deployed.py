"""EasyOcc nano as it is exported: it gives the answers of `Answer`, computed in an order that suits the runtimes.

What a viewing ray says of the cells is gathered as two arrays, not as pairs, and the head's logits are laid out class
by class, so that 16 cells lie beside each other in memory: OpenVINO needs a tenth of the time for both. What lies
between layers are rows, of pixels or of the grid's columns; of maps OpenVINO chooses other layouts and copies. For
TensorRT, shapes but the number of cameras are constants, and bytes come from floats and become floats at once.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from occ_core.models.easyocc import ground
from occ_core.models.easyocc.logits import NEVER, ray_ends
from occ_core.models.easyocc.model import EasyOcc
from occ_core.models.easyocc.table import GROUND
from occ_core.models.lifting import SMALLEST

HAZARD_RANGE = 16.0  # a power of two, so that float32 loses nothing


class Deployed(nn.Module):
    """The exported graph. Hazard logits enter the bird's-eye network divided by HAZARD_RANGE, and its weights are
    multiplied by it, because probabilities lie beside the logits and one int8 scale has to fit both."""

    nearer: Tensor
    ids: Tensor
    to_pillars: Tensor
    threshold: Tensor

    def __init__(self, model: EasyOcc):
        super().__init__()
        self.model = model = copy.deepcopy(model).eval()
        config = model.config
        self.register_buffer("nearer", torch.ones(config.depth_bins, config.depth_bins).triu(1))
        named = torch.nonzero(model.class_bias > NEVER).flatten()  # no cell is ever called one of the others
        named = named if len(named) else torch.arange(len(model.class_bias))
        self.register_buffer("ids", torch.tensor(config.classes.occupied_ids, dtype=torch.float32)[named])
        side, high = config.pillar_cells, config.grid_shape[2] // config.pillar_heights
        cells_of = torch.eye(config.pillar_heights).repeat_interleave(high, dim=0).repeat(side, 1)
        self.register_buffer("to_pillars", cells_of / (side * high))
        at_end = torch.where(model.stands, torch.full((), 2 * NEVER), model.threshold)
        self.register_buffer("threshold", torch.cat([model.threshold[named], at_end[named]]))  # then where rays end
        birds_eye = cast(Any, model.birds_eye)
        for conv in (birds_eye.geometry[0], birds_eye.fine_geometry[0]):  # pairs of channels -> all first, all second
            weight = conv.weight.data.unflatten(1, (-1, 2))
            conv.weight.data = torch.cat([weight[:, :, 0] * HAZARD_RANGE, weight[:, :, 1]], dim=1)
        of_grid, of_ray, constant = model.balance
        model.to_occupied.weight.data *= of_grid[:, None]
        model.to_occupied.bias.data = of_grid * model.to_occupied.bias.data + constant
        model.hazard_weight.data *= of_ray
        model.to_class.bias.data += model.class_bias.repeat(config.grid_shape[2])
        for parameter in model.to_class.parameters():  # height by height -> class by class
            by_height = parameter.data.unflatten(0, (config.grid_shape[2], -1))
            parameter.data = by_height[:, named].transpose(0, 1).flatten(0, 1).contiguous()
        model.head[0] = _as_conv(cast(nn.Linear, model.head[0]))
        model.to_class = cast(Any, _as_conv(model.to_class))
        self.to_verdicts = _as_conv(_beside(model.to_occupied, model.to_observed))
        del model.to_occupied, model.to_observed

    def forward(
        self,
        images: Tensor,  # [N, H, W, 3] uint8
        voxel_index: Tensor,  # [X * Y * Z] into (N, h, w, depth bins)
        pillar_index: Tensor,  # [X/2 * Y/2 * heights] into (N, h, w)
        rays: Tensor,  # [N, RAY_CHANNELS, h, w]
        state: Tensor | None = None,  # [1, memory channels + 1, X/2, Y/2]
        then_from_now: Tensor | None = None,  # [1, 2, 3]
    ) -> tuple[Tensor, ...]:
        """Labels, confidence and observed, all uint8 [1, X, Y, Z], and with a memory the next state; see `Answer`."""
        model = self.model
        c = model.config
        px, py, pz = c.pillar_grid_shape
        features = model.features(images.float().permute(0, 3, 1, 2), rays)
        hazard, reached = self._evidence(self._hazard(features, rays), voxel_index)
        ends, reached = reached < 0, reached.abs()
        context = _gather(_rows(model.to_context(features)), pillar_index)
        context = context.reshape(1, px, py, pz, c.feature_channels) * self._pillar_weight(hazard, reached)
        context = context.reshape(1, px, py, pz * c.feature_channels).permute(0, 3, 1, 2)
        geometry = torch.cat([hazard / HAZARD_RANGE, reached], dim=1)
        geometry = geometry.reshape(1, *c.grid_shape[:2], -1).permute(0, 3, 1, 2)
        memory, past = model.birds_eye.memory, None
        if memory is not None and state is not None and then_from_now is not None:
            past = memory.moved(state, then_from_now)
        bev, kept = model.birds_eye(geometry, context, past)
        answer = self._answer(bev, hazard, reached, ends)
        return answer if memory is None else (*answer, memory.state(kept))

    def _hazard(self, features: Tensor, rays: Tensor) -> Tensor:
        """`EasyOcc.hazard`, [N * h * w, depth bins]: a row for each viewing ray."""
        model = self.model
        rows = _rows(model.to_hazard(features))
        if model.to_ground is None and model.foot is None:
            return rows
        position = ground.places(_rows(rays[:, GROUND : GROUND + 1]), model.log_depth.reshape(1, -1))
        if model.to_ground is not None:
            more = ground.over_depth_rows(_rows(model.to_ground(features)), position)
        if model.foot is not None:
            heard = model.foot.of_rows(features, rays, position)
            more = heard if model.to_ground is None else more + heard
        return rows + more

    def _evidence(self, rows: Tensor, voxel_index: Tensor) -> tuple[Tensor, Tensor]:
        """For each cell, [X * Y, Z], the logit that its ray ends there, and the probability that it comes so far,
        negative where it is taken to end: this says two things in one gather.

        Args:
            rows: [N * h * w, depth bins], of `_hazard`.
        """
        reached = torch.exp(-(F.softplus(rows) @ self.nearer)).clamp(min=SMALLEST)
        reached = reached * (1 - 2 * ray_ends(reached, self.model.end_window))
        heights = self.model.config.grid_shape[2]
        hazard, reached = (_gather(part.reshape(-1), voxel_index).reshape(-1, heights) for part in (rows, reached))
        return hazard, reached

    def _pillar_weight(self, hazard: Tensor, reached: Tensor) -> Tensor:
        """The pillar weights [1, X/2, Y/2, heights, 1], as in `EasyOcc`. A product takes the mean along Y and Z:
        pooling would ask for another layout."""
        c = self.model.config
        px, py, pz = c.pillar_grid_shape
        ends_here = (torch.sigmoid(hazard) * reached).reshape(px, c.pillar_cells, py, c.pillar_cells * c.grid_shape[2])
        mean = (ends_here @ self.to_pillars).mean(dim=1)
        return 0.1 + mean.reshape(1, px, py, pz, 1)

    def _answer(
        self,
        bev: Tensor,  # [1, C, X, Y]
        hazard: Tensor,  # [X * Y, Z], like the others
        reached: Tensor,
        ends: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, c = self.model, self.model.config
        heights = c.grid_shape[2]
        wide = model.head(bev)
        classes = _rows(model.to_class(wide)).reshape(len(hazard), -1, heights).argmax(dim=1).int()
        logit, seen = _rows(self.to_verdicts(wide)).chunk(2, dim=1)
        border = classes + ends.int() * len(self.ids)
        threshold = self.threshold.index_select(0, border.reshape(-1)).reshape(-1, heights)
        logit = logit + model.hazard_weight * hazard
        seen = seen + model.reached_weight * (reached - 0.5)
        observed = torch.where(reached > 0, seen, torch.full((), NEVER)) > model.observed_threshold
        occupied = (logit > threshold) & observed
        named = self.ids.index_select(0, classes.reshape(-1)).reshape(-1, heights)
        labels = torch.where(occupied, named, torch.full((), c.classes.free_id, dtype=named.dtype))
        p = torch.sigmoid(logit)
        confidence = torch.where(occupied, p, 1 - p) * observed.float() * 255
        labels, confidence, seen = (
            part.reshape(1, *c.grid_shape).to(torch.uint8) for part in (labels, confidence, observed.float())
        )
        return labels, confidence, seen


def _rows(maps: Tensor) -> Tensor:
    """[N, C, h, w] -> [N * h * w, C]."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _beside(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Join two layers into one, so that their input is read once."""
    both = nn.Linear(first.in_features, first.out_features + second.out_features)
    both.weight.data, both.bias.data = (
        torch.cat([getattr(layer, name).data for layer in (first, second)]) for name in ("weight", "bias")
    )
    return both


def _as_conv(linear: nn.Linear) -> nn.Conv2d:
    """The same linear layer for channels that come before columns; OpenVINO needs half the time for it in int8."""
    conv = nn.Conv2d(linear.in_features, len(linear.weight), 1)
    conv.weight.data, conv.bias = linear.weight.data[:, :, None, None].contiguous(), linear.bias
    return conv


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """Like `gather_rows`, but it takes a vector too: elements or rows by index, zeros for the index after the last."""
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, index)
