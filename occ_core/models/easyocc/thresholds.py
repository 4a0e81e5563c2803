"""Fits thresholds: a logit above which a cell is observed, and for each class one above which it is occupied.

A probability of 0.5 is the wrong border for IoU: of calibrated probabilities the best one is IoU / (1 + IoU), so 0.35
for a class with IoU 55 and 0.1 for one with 11. A class's IoU depends on its own threshold alone (the free class is in
no mean), but all thresholds move the IoU of occupied against free; so they are found in turn, from histograms.

Losses weigh rare classes up, so the network names them too often; how much of that is taken back is fitted, too. And no
class may be wrong nearly always, whatever its IoU gains by it: a planner has no use for bicycles painted along every
kerb. Its threshold is as high as that takes; one that would be wrong wherever it is drawn is not named at all.

Labels made of many samples know cells that are hidden at this one, where a network can but guess. Lines drawn for these
would fill the space behind every wall; so only cells in sight count, which is also what the network is judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.inputs import TableImages, TableTargets
from occ_core.models.easyocc.logits import NEVER, CellLogits
from occ_core.taxonomy import UNLABELED

if TYPE_CHECKING:
    from occ_core.models.easyocc.model import EasyOcc

LabelledSamples = Iterable[tuple[TableImages, TableTargets]]
"""Samples one by one, in order of scene and time, with labels; they can be met more than once."""

BORDERS = np.linspace(-4.0, 3.0, 141)  # logits that are tried
SWEEPS = 5
MEAN_COUNTS = 8.0  # weight of the mean class IoU beside the IoU, which roads alone can win
SLACK = 0.002  # of the score, for which a class's border is drawn tighter: scenes that fit are few, and curves flat
LOST = 0.01  # share of occupied cells in sight that may be called hidden
LEAST_PRECISION = 0.08  # share of the cells called so that are of the class
TAKEN_BACK = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the logarithm of the classes' weights that are tried as bias


@torch.no_grad()
def fit_thresholds(
    model: EasyOcc,
    samples: LabelledSamples,
    weights: Tensor,  # [classes - 1] of the occupied classes, by which the losses weighed them
) -> None:
    """Fit the model's thresholds and class bias on samples that did not train its weights; without any,
    nothing changes."""
    if next(iter(samples), None) is None:
        return
    fit_observed(model, samples)
    fit_classes(model, samples, weights)


@torch.no_grad()
def fit_observed(model: EasyOcc, samples: LabelledSamples) -> None:
    """Fit the threshold of observed cells so that LOST of the occupied cells in sight lie below it. It is low because
    overlooking a cell is worse than guessing one."""
    logits = []
    for sample, labels, cells in _answers(model, samples):
        logit = cells.observed[0].numpy()
        occupied = in_sight(*sample, model.config) & (labels != model.config.classes.free_id)
        logits.append(logit[occupied & (logit > NEVER)])
    model.observed_threshold.fill_(float(np.quantile(np.concatenate(logits), LOST)))


@torch.no_grad()
def fit_classes(model: EasyOcc, samples: LabelledSamples, weights: Tensor) -> None:
    """Fit the thresholds of the classes and the bias of their logits, given the threshold of observed cells."""
    biases = [torch.where(weights > 0, -share * weights.log(), NEVER) for share in TAKEN_BACK]  # no label: no name
    named, there = count_predicted(model, samples, biases)
    fits = [best_thresholds(counts, there) for counts in named]
    best = max(range(len(fits)), key=lambda i: fits[i].score)
    bias = biases[best].clone()
    if (in_vain := fits[best].precision < LEAST_PRECISION).any():  # their cells are of the class that comes next
        bias[torch.from_numpy(in_vain)] = NEVER
        named, there = count_predicted(model, samples, [bias])
        fits, best = [best_thresholds(named[0], there)], 0
    model.class_bias.copy_(bias)
    model.threshold.copy_(torch.from_numpy(fits[best].thresholds))


class PredictedCells(NamedTuple):
    """Histograms of cells in sight, float64 (C, borders + 1) each, by predicted class and by where the logit lies among
    BORDERS: of all cells, of those that are of that class, and of those that are occupied."""

    said: np.ndarray
    right: np.ndarray
    filled: np.ndarray


def count_predicted(
    model: EasyOcc, samples: LabelledSamples, biases: list[Tensor]
) -> tuple[list[PredictedCells], np.ndarray]:
    """Count what the network predicts with each of some class biases, and how many cells are of each class, (C,)."""
    taxonomy = model.config.classes
    ids = np.array(taxonomy.occupied_ids)
    counts = [PredictedCells(*np.zeros((3, len(ids), len(BORDERS) + 1))) for _ in biases]
    there = np.zeros(len(ids))

    def add(histogram: np.ndarray, name: np.ndarray, border_index: np.ndarray) -> None:
        flat = np.bincount(name * histogram.shape[1] + border_index, minlength=histogram.size)
        histogram += flat.reshape(histogram.shape)

    for sample, labels, cells in _answers(model, samples):
        seen = in_sight(*sample, model.config)
        truth = labels[seen]
        border_index = np.searchsorted(BORDERS, cells.occupied[0].numpy()[seen])
        hidden = cells.observed[0].numpy()[seen] <= float(model.observed_threshold)
        border_index[hidden] = 0  # below all borders: never called occupied
        filled = truth != taxonomy.free_id
        there += np.array([(truth == c).sum() for c in ids])
        logits = cells.classes[0][torch.from_numpy(seen)]
        for bias, count in zip(biases, counts, strict=True):
            name = (logits + bias).argmax(dim=-1).numpy()
            hit = ids[name] == truth
            add(count.said, name, border_index)
            add(count.right, name[hit], border_index[hit])
            add(count.filled, name[filled], border_index[filled])
    return counts, there


def in_sight(inputs: TableImages, targets: TableTargets, config: EasyOccConfig) -> np.ndarray:
    """Labelled cells, bool (X, Y, Z), that lie at most one cell behind the end of their pixel's ray through the
    labels."""
    count = len(config.depth_edges_m) - 1
    voxel_index, labels, depth = inputs.table[0].numpy(), labels_of(targets), targets.depth.numpy()
    in_view = voxel_index < depth.size * count
    pixel, near = np.divmod(np.where(in_view, voxel_index, 0), count)
    end = depth.reshape(-1)[pixel]  # bin; `count` if the ray leaves the grid
    reach_m = config.depth_edges_m[np.minimum(end, count)] + config.voxel_size_m
    before = in_view & (end != UNLABELED) & (config.depth_edges_m[near] <= reach_m)
    return before.reshape(labels.shape) & (labels != UNLABELED)


def labels_of(targets: TableTargets) -> np.ndarray:
    """The labels of one sample, uint8 (X, Y, Z)."""
    assert targets.labels is not None
    return targets.labels[0].numpy()


def _answers(
    model: EasyOcc, samples: LabelledSamples
) -> Iterator[tuple[tuple[TableImages, TableTargets], np.ndarray, CellLogits]]:
    sequential = model.sequential()
    for inputs, targets in samples:
        yield (inputs, targets), labels_of(targets), model.cells(sequential.hidden(inputs).columns)


class Fit(NamedTuple):
    """Thresholds, float32 (C,), their score, and each class's precision, (C,), which is 1 for a class that is never
    predicted."""

    thresholds: np.ndarray
    score: float
    precision: np.ndarray


def best_thresholds(named: PredictedCells, there: np.ndarray) -> Fit:
    """Search the thresholds with the highest MEAN_COUNTS x mean class IoU + IoU, starting from the best common one. Of
    a class's borders only those count above which LEAST_PRECISION is reached, if there are any; of those that are as
    good within SLACK, the tightest, which paints the fewest cells.

    Args:
        there: (C,) cells that are of each class.
    """
    said, right, filled = (h[:, ::-1].cumsum(1)[:, ::-1][:, 1:] for h in named)  # above each border
    class_iou = right / np.maximum(there[:, None] + said - right, 1)
    allowed = right >= LEAST_PRECISION * np.maximum(said, 1)
    allowed |= ~allowed.any(axis=1, keepdims=True)
    occurs = np.maximum((there > 0).sum(), 1)

    def iou(called: np.ndarray, hits: np.ndarray) -> np.ndarray:
        return hits / np.maximum(there.sum() + called - hits, 1)

    common = MEAN_COUNTS * class_iou.sum(0) / occurs + iou(said.sum(0), filled.sum(0))
    best = np.full(len(said), int(common.argmax()))
    every = np.arange(len(said))
    for _ in range(SWEEPS):
        for c in every:
            others = every != c
            called = said[others, best[others]].sum() + said[c]
            hits = filled[others, best[others]].sum() + filled[c]
            reached = np.where(allowed[c], MEAN_COUNTS * class_iou[c] / occurs + iou(called, hits), -1.0)
            best[c] = int(np.flatnonzero(reached >= reached.max() - SLACK)[-1])
    called, hits, score = said[every, best], filled[every, best], MEAN_COUNTS * class_iou[every, best].sum() / occurs
    precision = np.where(called > 0, right[every, best] / np.maximum(called, 1), 1.0)
    return Fit(BORDERS[best].astype(np.float32), float(score + iou(called.sum(), hits.sum())), precision)
