"""Where to call a cell occupied: for each class the logit that gives it the highest IoU.

A probability of 0.5 is the wrong border for IoU: of calibrated probabilities the best one is IoU / (1 + IoU), so 0.35
for a class with IoU 55 and 0.1 for one with 11. Each class's IoU depends on its own threshold alone (the free class is
in no mean), so each is found by itself, exactly, from histograms.
"""

from __future__ import annotations

import numpy as np
import torch

from occ_core.losses.ray import IGNORE
from occ_core.models.easyocc.model import EasyOcc
from occ_core.training.cache import SceneCache
from occ_core.training.data import collate, read_sample, tensors_of

BORDERS = np.linspace(-4.0, 3.0, 141)  # logits that are tried
PRIOR_CELLS = 200.0  # of imagined evidence for logit 0, so that a class of a few cells does not pick an extreme


@torch.no_grad()
def fit_thresholds(model: EasyOcc, scenes: list[SceneCache]) -> None:
    """Set the model's thresholds to the best on scenes that did not train its weights; without scenes, to logit 0."""
    taxonomy = model.config.classes
    ids = np.array(taxonomy.occupied_ids)
    said = np.zeros((len(ids), len(BORDERS) + 1))  # cells of each named class, by logit
    right = np.zeros_like(said)
    there = np.zeros(len(ids))

    def histogram(named: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.bincount(named * said.shape[1] + place, minlength=said.size).reshape(said.shape)

    for scene in scenes:
        for i in range(len(scene.tokens)):
            sample = read_sample(scene, i, model.config)
            batch = tensors_of(collate([sample], [np.zeros(0, dtype=np.int64)], model.config))
            cells = model(batch["images"], batch["voxel_index"], batch["pillar_index"], batch["rays"])
            seen = sample.labels != IGNORE
            truth = sample.labels[seen]
            named = cells.classes[0].argmax(dim=-1).numpy()[seen]
            place = np.searchsorted(BORDERS, cells.occupied[0].numpy()[seen])
            said += histogram(named, place)
            hit = ids[named] == truth
            right += histogram(named[hit], place[hit])
            there += np.array([(truth == c).sum() for c in ids])
    model.threshold.copy_(torch.from_numpy(best_thresholds(said, right, there)))


def best_thresholds(said: np.ndarray, right: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Thresholds of highest IoU.

    Args:
        said, right: (C, borders + 1) cells named C, and rightly so, by place of their logit among BORDERS.
        there: (C,) cells that are C.
    """
    above_said = said[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # logit above each border
    above_right = right[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    iou = above_right / np.maximum(there[:, None] + above_said - above_right, 1)
    trust = there / (there + PRIOR_CELLS)
    return (BORDERS[iou.argmax(axis=1)] * trust).astype(np.float32)
