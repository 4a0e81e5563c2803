"""The losses of EasyOcc nano: on cells, and on the viewing rays of its image network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from occ_core.losses.ray import depth_loss, pixel_class_loss
from occ_core.losses.voxel import geometry_loss, lovasz_softmax, observed_loss, semantic_loss
from occ_core.models.easyocc.inputs import SampleSequence, TableImages, TableTargets
from occ_core.models.easyocc.logits import NEVER, Views
from occ_core.models.easyocc.sequence import last_columns
from occ_core.taxonomy import UNLABELED

if TYPE_CHECKING:
    from occ_core.models.easyocc.model import EasyOcc


def losses(model: EasyOcc, inputs: TableImages | SampleSequence, targets: TableTargets) -> dict[str, Tensor]:
    """The weighted loss terms: of cells alone for sequences, of rays alone for images without a grid, otherwise of
    both."""
    if isinstance(inputs, SampleSequence):
        terms = cell_losses(model, last_columns(model, inputs), targets)
    elif inputs.voxel_index is None:
        terms = ray_losses(model.views(inputs.images, inputs.rays), targets)
    else:
        terms = sample_losses(model, inputs, targets)
    return {name: getattr(targets.settings.loss, name) * term for name, term in terms.items()}


def ray_losses(views: Views, targets: TableTargets) -> dict[str, Tensor]:
    """Losses on where rays end, and in which class."""
    assert targets.pixel_weights is not None
    return {
        "depth": depth_loss(views.hazard_logits, targets.depth),
        "pixel_class": pixel_class_loss(views.pixel_logits, targets.pixel_class, targets.pixel_weights),
    }


def sample_losses(model: EasyOcc, inputs: TableImages, targets: TableTargets) -> dict[str, Tensor]:
    """Losses on cells and rays of whole samples; on cells alone if the image network is frozen."""
    frozen = targets.settings.freeze_images
    if frozen:
        for part in (model.backbone, model.neck):  # with its batch norms
            part.eval()
    with torch.set_grad_enabled(not frozen):
        views = model.views(inputs.images, inputs.rays)
    columns, _ = model.columns(model.lifted(views, *inputs.table))
    cells = cell_losses(model, columns, targets)
    return cells if frozen else {**cells, **ray_losses(views, targets)}


def cell_losses(
    model: EasyOcc,
    columns: Tensor,  # [B, X, Y, C + 3 Z]
    targets: TableTargets,
) -> dict[str, Tensor]:
    """Losses on the cells of `targets.columns`, from `Hidden.columns`."""
    assert targets.column_labels is not None and targets.class_weights is not None
    weights, free = targets.class_weights, model.config.classes.free_id
    others = torch.tensor(model.config.classes.occupied_ids, device=weights.device)
    cells = model.cells(columns.reshape(-1, columns.shape[-1])[targets.columns])
    labels = targets.column_labels.reshape(-1)
    observed = labels != UNLABELED
    observed_logit = cells.observed.reshape(-1)
    in_view = observed_logit > NEVER
    known = torch.nonzero(observed)[:, 0]
    labels = labels[known].long()
    occupied_logit = cells.occupied.reshape(-1)[known]
    occupied = labels != free
    filled = known[occupied]
    class_logits = cells.classes.reshape(-1, len(others))
    target = labels[occupied] - (labels[occupied] > free).long()
    return {
        "geometry": geometry_loss(occupied_logit, occupied),
        "semantics": semantic_loss(class_logits[filled], target, weights[others]),
        "lovasz": _lovasz(occupied_logit, class_logits, known, labels, free, targets.settings.lovasz_cells),
        "observed": observed_loss(observed_logit[in_view], observed[in_view]),
    }


def _lovasz(
    occupied_logit: Tensor, class_logits: Tensor, known: Tensor, labels: Tensor, free: int, limit: int
) -> Tensor:
    """Lovasz-softmax of joint probabilities over the cells that matter: those that are occupied or called so.

    A free cell that nobody calls occupied has an error near 0 and stands at the flat end of every sorted list.
    """
    p = torch.sigmoid(occupied_logit)
    matter = torch.nonzero((labels != free) | (p.detach() > 0.1))[:, 0]
    if len(matter) > limit:
        matter = matter[torch.randperm(len(matter))[:limit]]
    joint = torch.softmax(class_logits[known[matter]], dim=1) * p[matter, None]
    target = labels[matter]
    return lovasz_softmax(joint, torch.where(target == free, -1, target - (target > free).long()))
