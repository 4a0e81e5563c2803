"""Where to draw the lines: a logit above which a cell is observed, and one for each class above which it is occupied.

A probability of 0.5 is the wrong border for IoU: of calibrated probabilities the best one is IoU / (1 + IoU), so 0.35
for a class with IoU 55 and 0.1 for one with 11. A class's IoU depends on its own threshold alone (the free class is in
no mean), but all thresholds move the IoU of occupied against free; so they are found in turn, from histograms.

Labels made of many moments know cells that are hidden at this one, where a network can but guess. Lines drawn for these
would fill the space behind every wall; so only cells in sight count, which is also what the network is judged by.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from occ_core.losses.ray import IGNORE
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.model import NEVER, Cells, EasyOcc
from occ_core.training.cache import SceneCache
from occ_core.training.data import Sample
from occ_core.training.memory import follow

BORDERS = np.linspace(-4.0, 3.0, 141)  # logits that are tried
SWEEPS = 5
MEAN_COUNTS = 2.0  # weight of the mean class IoU beside the IoU, which roads alone can win
LOST = 0.01  # share of occupied cells in sight that may be called hidden


@torch.no_grad()
def fit_thresholds(model: EasyOcc, scenes: list[SceneCache]) -> None:
    """Set the model's thresholds to the best on scenes that did not train its weights; without scenes, to logit 0."""
    if not scenes:
        return
    fit_observed(model, scenes)
    fit_classes(model, scenes)


@torch.no_grad()
def fit_observed(model: EasyOcc, scenes: list[SceneCache]) -> None:
    """The threshold below which lie LOST of the occupied cells in sight: to overlook one is worse than to guess."""
    logits = []
    for sample, cells in _answers(model, scenes):
        logit = cells.observed[0].numpy()
        occupied = in_sight(sample, model.config) & (sample.labels != model.config.classes.free_id)
        logits.append(logit[occupied & (logit > NEVER)])
    model.seen.fill_(float(np.quantile(np.concatenate(logits), LOST)))


@torch.no_grad()
def fit_classes(model: EasyOcc, scenes: list[SceneCache]) -> None:
    """The thresholds of the classes, given that of observed cells."""
    taxonomy = model.config.classes
    ids = np.array(taxonomy.occupied_ids)
    said = np.zeros((len(ids), len(BORDERS) + 1))  # cells of each named class, by logit
    right, filled = np.zeros_like(said), np.zeros_like(said)  # of these: of that class in truth, of any class
    there = np.zeros(len(ids))

    def histogram(named: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.bincount(named * said.shape[1] + place, minlength=said.size).reshape(said.shape)

    for sample, cells in _answers(model, scenes):
        seen = in_sight(sample, model.config)
        truth = sample.labels[seen]
        named = cells.classes[0].argmax(dim=-1).numpy()[seen]
        place = np.searchsorted(BORDERS, cells.occupied[0].numpy()[seen])
        place[cells.observed[0].numpy()[seen] <= float(model.seen)] = 0  # below all borders: never called occupied
        said += histogram(named, place)
        hit = ids[named] == truth
        right += histogram(named[hit], place[hit])
        any_class = truth != taxonomy.free_id
        filled += histogram(named[any_class], place[any_class])
        there += np.array([(truth == c).sum() for c in ids])
    model.threshold.copy_(torch.from_numpy(best_thresholds(said, right, filled, there)))


def in_sight(sample: Sample, config: EasyOccConfig) -> np.ndarray:
    """Labelled cells, bool (X, Y, Z), no more than a cell behind the end of their pixel's ray through the labels."""
    count = len(config.depth_edges_m) - 1
    in_view = sample.table.voxel_index < sample.depth.size * count
    pixel, near = np.divmod(np.where(in_view, sample.table.voxel_index, 0), count)
    end = sample.depth.reshape(-1)[pixel]  # bin; `count` if the ray leaves the grid
    reach_m = config.depth_edges_m[np.minimum(end, count)] + config.voxel_size_m
    before = in_view & (end != IGNORE) & (config.depth_edges_m[near] <= reach_m)
    return before.reshape(sample.labels.shape) & (sample.labels != IGNORE)


def _answers(model: EasyOcc, scenes: list[SceneCache]) -> Iterator[tuple[Sample, Cells]]:
    for scene in scenes:
        for sample, hidden in follow(model, scene):
            yield sample, model.cells(hidden.columns)


def best_thresholds(said: np.ndarray, right: np.ndarray, filled: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Thresholds, float32 (C,), of the highest MEAN_COUNTS x mean class IoU + IoU, from the best common one.

    Args:
        said, right, filled: (C, borders + 1) cells named C, those of them that are C, and that are occupied at all, by
            place of their logit among BORDERS.
        there: (C,) cells that are C.
    """
    said, right, filled = (h[:, ::-1].cumsum(1)[:, ::-1][:, 1:] for h in (said, right, filled))  # above each border
    class_iou = right / np.maximum(there[:, None] + said - right, 1)
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
            best[c] = int((MEAN_COUNTS * class_iou[c] / occurs + iou(called, hits)).argmax())
    return BORDERS[best].astype(np.float32)
