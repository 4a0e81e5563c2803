"""EasyOcc nano as it is exported: it gives the answers of `Answer`, computed in an order that suits the runtimes.

What a viewing ray says of the cells is gathered as two arrays, not as pairs, and the head's logits are laid out class
by class, so that 16 cells lie beside each other in memory: OpenVINO needs a tenth of the time for both. For TensorRT,
shapes but the number of cameras are constants, and bytes come from floats and become floats at once.
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
from occ_core.models.efficientnet_lite import SameConv2d
from occ_core.models.lifting import SMALLEST

HAZARD_RANGE = 16.0  # a power of two, so that float32 loses nothing


class Deployed(nn.Module):
    """The exported graph. Hazard logits enter the bird's-eye network divided by HAZARD_RANGE, and its weights are
    multiplied by it, because probabilities lie beside the logits and one int8 scale has to fit both."""

    nearer: Tensor
    ids: Tensor
    threshold: Tensor

    def __init__(self, model: EasyOcc):
        super().__init__()
        self.model = model = copy.deepcopy(model).eval()
        config = model.config
        for part in list(model.backbone.modules()):
            for name, child in part.named_children():
                if isinstance(child, SameConv2d):
                    setattr(part, name, child.evenly_padded())
        self.register_buffer("nearer", torch.ones(config.depth_bins, config.depth_bins).triu(1))
        named = torch.nonzero(model.class_bias > NEVER).flatten()  # no cell is ever called one of the others
        named = named if len(named) else torch.arange(len(model.class_bias))
        self.register_buffer("ids", torch.tensor(config.classes.occupied_ids, dtype=torch.float32)[named])
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
        hazard, reached, ends = self._evidence(self._hazard(features, rays), voxel_index)
        context = model.to_context(features).permute(0, 2, 3, 1).reshape(-1, c.feature_channels)
        context = _gather(context, pillar_index).reshape(1, px, py, pz, c.feature_channels)
        ends_here = torch.sigmoid(hazard) * reached
        context = context * self._pillar_weight(ends_here)
        context = context.reshape(1, px, py, pz * c.feature_channels).permute(0, 3, 1, 2)
        geometry = torch.cat([hazard / HAZARD_RANGE, reached], dim=3).permute(0, 3, 1, 2)
        memory, past = model.birds_eye.memory, None
        if memory is not None and state is not None and then_from_now is not None:
            past = memory.moved(state, then_from_now)
        bev, kept = model.birds_eye(geometry, context, past)
        answer = self._answer(bev, hazard, reached, ends)
        return answer if memory is None else (*answer, memory.state(kept))

    def _hazard(self, features: Tensor, rays: Tensor) -> Tensor:
        """`EasyOcc.hazard`, [N * h * w, depth bins]: a row for each viewing ray."""
        model, (n, _, h, w) = self.model, features.shape
        rows = _rows(model.to_hazard(features))
        if model.to_ground is None and model.foot is None:
            return rows
        if model.foot is not None:
            features, rays = features.transpose(2, 3), rays.transpose(2, 3)
        position = ground.places(_rows(rays[:, GROUND : GROUND + 1]), model.log_depth.reshape(1, -1))
        if model.to_ground is not None:
            more = ground.over_depth_rows(_rows(model.to_ground(features)), position)
        if model.foot is not None:
            heard = model.foot.of_columns(features, rays, position)
            more = heard if model.to_ground is None else more + heard
            more = more.reshape(n, w, h, -1).transpose(1, 2).reshape(n * h * w, -1)
        return rows + more

    def _evidence(self, rows: Tensor, voxel_index: Tensor) -> tuple[Tensor, ...]:
        """For each cell, the logit that its ray ends there, the probability that it comes so far, and whether it is
        taken to end there (1 or 0), all [1, X, Y, Z].

        Args:
            rows: [N * h * w, depth bins], of `_hazard`.
        """
        shape = (1, *self.model.config.grid_shape)
        reached = torch.exp(-(F.softplus(rows) @ self.nearer)).clamp(min=SMALLEST)
        ends = ray_ends(reached, self.model.end_window)
        return tuple(_gather(part.reshape(-1), voxel_index).reshape(shape) for part in (rows, reached, ends))

    def _pillar_weight(self, ends_here: Tensor) -> Tensor:
        """The pillar weights [1, X/2, Y/2, heights, 1], as in `EasyOcc`."""
        c = self.model.config
        px, py, pz = c.pillar_grid_shape
        pillars = F.avg_pool2d(ends_here.permute(0, 3, 1, 2), c.pillar_cells)
        mean = pillars.reshape(1, pz, c.grid_shape[2] // pz, px, py).mean(dim=2)
        return 0.1 + mean.permute(0, 2, 3, 1).unsqueeze(-1)

    def _answer(self, bev: Tensor, hazard: Tensor, reached: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, free = self.model, self.model.config.classes.free_id
        x, y, heights = model.config.grid_shape
        wide = model.head(bev)
        classes, verdicts = (layer(wide).permute(0, 2, 3, 1) for layer in (model.to_class, self.to_verdicts))
        logit, seen = verdicts[..., :heights], verdicts[..., heights:]
        classes = classes.reshape(1, x, y, -1, heights).argmax(dim=3).int()
        border = classes + ends.int() * len(self.ids)
        threshold = self.threshold.index_select(0, border.reshape(-1)).reshape(1, x, y, heights)
        named = self.ids.index_select(0, classes.reshape(-1)).reshape(1, x, y, heights)
        logit = logit + model.hazard_weight * hazard
        seen = seen + model.reached_weight * (reached - 0.5)
        observed = torch.where(reached > 0, seen, torch.full((), NEVER)) > model.observed_threshold
        occupied = (logit > threshold) & observed
        labels = torch.where(occupied, named, torch.full((), free, dtype=named.dtype))
        p = torch.sigmoid(logit)
        confidence = torch.where(occupied, p, 1 - p) * observed.float() * 255
        return labels.to(torch.uint8), confidence.to(torch.uint8), observed.float().to(torch.uint8)


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
