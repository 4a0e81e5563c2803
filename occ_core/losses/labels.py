"""Losses of class logits on labelled cells, which every camera network shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import InvalidInput
from occ_core.losses.voxel import geometry_loss, lovasz_softmax
from occ_core.losses.weights import LabelLossWeights
from occ_core.taxonomy import UNLABELED

SMALLEST = 1e-12  # share; its logarithm is still finite


def label_losses(
    logits: Tensor,  # [B, C, X, Y, Z]
    labels: Tensor,  # uint8 [B, X, Y, Z], UNLABELED where unobserved
    class_weights: Tensor,  # [C], of the occupied classes among each other
    weights: LabelLossWeights,
    free_id: int,
    observed_only: bool = True,
) -> dict[str, Tensor]:
    """The terms of `weights`, each multiplied by its weight; terms of weight 0 are left out. All are 0 where no cell
    is labelled.

    Args:
        observed_only: False counts unobserved cells as free, which is what labels without a mask do. A sample of which
            no cell is labelled has no label and counts for nothing.

    Raises:
        InvalidInput: logits and labels are of different grids.
    """
    if logits.shape[:1] + logits.shape[2:] != labels.shape:
        raise InvalidInput(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} are of different grids")
    known = labels != UNLABELED
    taken = known if observed_only else known.flatten(1).any(dim=1).view(-1, 1, 1, 1).expand_as(known)
    rows, target = logits.movedim(1, -1).flatten(0, -2), torch.where(known, labels, free_id).flatten()
    index = taken.flatten().nonzero()[:, 0]
    rows, target = rows.index_select(0, index), target.index_select(0, index)
    log_probabilities = F.log_softmax(rows.float(), dim=1)
    return cell_losses(log_probabilities, target.long(), class_weights.float(), weights, free_id)


def cell_losses(
    log_probabilities: Tensor,  # [K, C]
    target: Tensor,  # [K] int64
    class_weights: Tensor,  # [C], of the occupied classes among each other
    weights: LabelLossWeights,
    free_id: int,
) -> dict[str, Tensor]:
    """The terms of `weights` of some cells, see `label_losses`."""
    losses = {}
    occupied = target != free_id
    if weights.cross_entropy > 0:
        loss = balanced_cross_entropy(log_probabilities, target, class_weights, free_id, weights.free_share)
        losses["cross_entropy"] = weights.cross_entropy * loss
    if weights.lovasz > 0:
        few, few_target = log_probabilities, target
        if len(target) > weights.lovasz_cells:  # it sorts them, once for each class
            some = torch.randint(len(target), (weights.lovasz_cells,), device=target.device)
            few, few_target = few[some], target[some]
        losses["lovasz"] = weights.lovasz * lovasz_softmax(few.exp(), few_target)
    if weights.affinity > 0:
        losses["affinity"] = weights.affinity * affinity_loss(log_probabilities.exp(), target)
    if weights.geometry_affinity > 0:
        p_occupied = 1 - log_probabilities[:, free_id].exp()
        losses["geometry_affinity"] = weights.geometry_affinity * geometry_affinity_loss(p_occupied, occupied)
    if weights.geometry > 0:
        losses["geometry"] = weights.geometry * geometry_loss(occupied_logit(log_probabilities, free_id), occupied)
    return losses


def occupied_logit(
    rows: Tensor,  # [..., C]
    free_id: int,
) -> Tensor:  # [...]
    """Logit of "some class but free", from the soft-max over all, before or after it is taken."""
    others = torch.cat([rows[..., :free_id], rows[..., free_id + 1 :]], dim=-1)
    return others.logsumexp(dim=-1) - rows[..., free_id]


def balanced_cross_entropy(
    log_probabilities: Tensor,  # [K, C]
    target: Tensor,  # [K] int64
    class_weights: Tensor,  # [C]; the free class's is not read
    free_id: int,
    free_share: float = 0.5,
) -> Tensor:
    """`free_share` x mean over free cells + (1 - `free_share`) x weighted mean over occupied cells.

    However many cells are free, each side has its say. A cell is then called occupied from a lower probability on than
    one half: with a share f of free cells, where its odds exceed free_share (1 - f) / ((1 - free_share) f).
    """
    loss = -log_probabilities.gather(1, target[:, None])[:, 0]
    free = target == free_id
    weight = torch.where(free, 0, class_weights[target])
    free_mean = torch.where(free, loss, 0).sum() / free.sum().clamp(min=1)
    occupied_mean = (loss * weight).sum() / weight.sum().clamp(min=SMALLEST)
    return free_share * free_mean + (1 - free_share) * occupied_mean


def affinity_loss(
    probabilities: Tensor,  # [K, C]
    target: Tensor,  # [K] int64
) -> Tensor:
    """Scene-class affinity of MonoScene (Cao and de Charette, arXiv 2112.00726, equations 2 to 5).

    -log of soft precision, recall and specificity of each class, mean over the classes that occur in `target`.
    """
    c = probabilities.shape[1]
    counts = target.bincount(minlength=c).to(probabilities.dtype)
    hit = probabilities.gather(1, target[:, None])[:, 0]
    hits = torch.zeros_like(counts).index_add(0, target, hit)  # soft true positives
    claimed = probabilities.sum(dim=0)
    present = counts > 0
    losses = _affinity(hits, claimed, counts, len(target))
    return torch.where(present, losses, 0).sum() / present.sum().clamp(min=1)


def geometry_affinity_loss(
    p_occupied: Tensor,  # [K]
    occupied: Tensor,  # [K] bool
) -> Tensor:
    """The affinity loss for occupied against free, whatever the class (in the same paper, `L_scal^geo`)."""
    truth = occupied.to(p_occupied.dtype)
    return _affinity((p_occupied * truth).sum(), p_occupied.sum(), truth.sum(), len(occupied))


def _affinity(hits: Tensor, claimed: Tensor, positives: Tensor, cells: int) -> Tensor:
    """-log precision - log recall - log specificity; a share of no cell is left out."""
    negatives = cells - positives
    precision, recall, specificity = (
        (part / whole.clamp(min=SMALLEST)).clamp(min=SMALLEST)
        for part, whole in ((hits, claimed), (hits, positives), (negatives - claimed + hits, negatives))
    )
    loss = torch.where(positives > 0, -precision.log() - recall.log(), 0)
    return loss + torch.where(negatives > 0, -specificity.log(), 0)
