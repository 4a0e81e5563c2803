"""How EasyOcc nano learns: from cached tables and labels, first its image network alone, then all, then with its memory
on moments in a row, if it has one; last, thresholds."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from occ_core.errors import InvalidInput
from occ_core.evaluation.voxel_iou import confusion_matrix
from occ_core.files import default_cache
from occ_core.labels.store import provenance
from occ_core.losses.ray import IGNORE, depth_loss, pixel_class_loss
from occ_core.losses.voxel import class_weights, geometry_loss, lovasz_softmax, observed_loss, semantic_loss
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.model import NEVER, Answer, EasyOcc, Views
from occ_core.training.balance import fit_balance
from occ_core.training.cache import SceneCache, labels_folder, open_scenes
from occ_core.training.config import TrainingConfig
from occ_core.training.data import Batch, Draw, DrawImages, ImageBatch, tensors_of
from occ_core.training.hold_out import hold_out
from occ_core.training.memory import Chain, DrawChains, follow, last_columns
from occ_core.training.ranks import Ranks
from occ_core.training.thresholds import fit_thresholds


class NanoLessons:
    """See `lessons.Lessons`. One process, for a step is short; batches are read in it, from memory-mapped arrays."""

    fitted = frozenset({"balance", "threshold", "class_bias", "seen"})

    def __init__(self, config: TrainingConfig, ranks: Ranks, told: Callable[[str], None]) -> None:
        if ranks.world > 1:
            raise InvalidInput(f"EasyOcc nano trains in one process, torchrun started {ranks.world}")
        if config.unlabelled:
            raise InvalidInput("EasyOcc nano learns from labels alone, the run has 'unlabelled: true'")
        self.config, self.device, self.model_config = config, ranks.device, nano_config(config)
        self.taxonomy = self.model_config.classes
        self.phases = phases(config)
        self.scenes = open_data(config, told)
        self._counts = count_cells(self.scenes.training, config)
        rays = class_weights(torch.from_numpy(count_ray_classes(self.scenes.training, config)), ratio_limit=10)
        self._ray_weights = rays.to(self.device)
        self._weights = occupied_weights(self._counts, config).to(self.device)
        self.record = data_record(self.scenes, self._counts, config)

    def batches(self, first_step: int) -> Iterator[Batch | ImageBatch | Chain]:
        """Of single images in the first phase, of whole moments in the second, of moments in a row in the third."""
        config, scenes, rare = self.config, self.scenes.training, rare_classes(self._counts)
        done, first, second = (n * config.accumulate for n in (first_step, self.phases[0], sum(self.phases[:2])))
        images = DrawImages(scenes, config, done)
        moments = Draw(scenes, rare, config, max(0, done - first))
        chains = DrawChains(scenes, rare, config, max(0, done - second))
        while True:
            yield next(images) if done < first else next(moments) if done < second else next(chains)
            done += 1

    def losses(
        self, network: nn.Module, batch: Batch | ImageBatch | Chain, progress: float, average: nn.Module
    ) -> dict[str, Tensor]:
        """Weighted terms; those of rays alone for an ImageBatch, those of cells alone for a Chain."""
        model = cast(EasyOcc, network)
        newest = batch.moments[-1] if isinstance(batch, Chain) else batch
        tensors = {name: tensor.to(self.device) for name, tensor in tensors_of(newest).items()}
        if isinstance(batch, Chain):
            columns = last_columns(model, batch, self.device)
            losses = cell_losses(model, columns, tensors, self._weights, self.config)
        elif isinstance(batch, ImageBatch):
            losses = image_losses(model, tensors, self._ray_weights)
        else:
            losses = all_losses(model, tensors, self._weights, self._ray_weights, self.config)
        return {name: getattr(self.config.nano.loss, name) * loss for name, loss in losses.items()}

    def fit(self, average: nn.Module) -> None:
        """Set the balance of grid and ray, the thresholds and the class bias."""
        on_cpu = cast(EasyOcc, copy.deepcopy(average).cpu().eval())
        weights = self._weights.cpu()[list(self.taxonomy.occupied_ids)]
        fit_balance(on_cpu, self.scenes.thresholds)
        fit_thresholds(on_cpu, self.scenes.thresholds, weights)
        for name in self.fitted:
            average.get_buffer(name).copy_(on_cpu.get_buffer(name))

    @torch.no_grad()
    def confusion(self, average: nn.Module) -> np.ndarray | None:
        """Of held-out scenes, cells that a camera observes."""
        if not self.scenes.validation:
            return None
        model = cast(EasyOcc, copy.deepcopy(average).cpu().eval())
        answer = Answer(model)
        matrix = np.zeros((len(self.taxonomy), len(self.taxonomy)), dtype=np.int64)
        for scene in self.scenes.validation:
            for sample, hidden in follow(model, scene):
                labels, _, _ = answer.of(model.cells(hidden.columns))
                seen = sample.labels != IGNORE
                matrix += confusion_matrix(sample.labels, labels[0].numpy(), seen, len(self.taxonomy))
        return matrix


def nano_config(config: TrainingConfig) -> EasyOccConfig:
    return cast(EasyOccConfig, config.model)


def phases(config: TrainingConfig) -> tuple[int, ...]:
    """Steps on images, on moments, and, for a network with memory, on moments in a row.

    Raises:
        InvalidInput: `memory_steps` do not fit.
    """
    nano, kept = config.nano, nano_config(config).memory_channels
    if bool(nano.memory_steps) != bool(kept):
        raise InvalidInput(
            f"nano.memory_steps is {nano.memory_steps}, the model's memory_channels {kept}: one needs the other"
        )
    if nano.memory_steps > config.steps:
        raise InvalidInput(f"nano.memory_steps are the last of all {config.steps} steps, got {nano.memory_steps}")
    whole = config.steps - nano.memory_steps
    return (nano.image_steps, whole, nano.memory_steps) if kept else (nano.image_steps, whole)


class Scenes(NamedTuple):
    """No scene is in two of these."""

    training: list[SceneCache]
    thresholds: list[SceneCache]
    validation: list[SceneCache]


def open_data(config: TrainingConfig, told: Callable[[str], None] = lambda scene: None) -> Scenes:
    """The scenes of a run; those for validation and thresholds are the last ones of the data."""
    if not config.data:
        raise InvalidInput("no training data: name folders under 'data' in the config, or with --data")
    last = config.validation_scenes
    if not isinstance(last, int):
        raise InvalidInput(f"EasyOcc nano holds out the last scenes: validation_scenes is how many, got {list(last)}")
    cache = config.cache or default_cache()

    def opened(roots: tuple[Path, ...]) -> list[SceneCache]:
        model = nano_config(config)
        return [
            scene
            for root in roots
            for scene in open_scenes(root, config.labels, model, cache, None, told, config.version)
        ]

    scenes = opened(config.data)
    held_out = opened(config.validation)
    kept = hold_out(len(scenes), 0 if config.validation else last, config.nano.threshold_scenes)
    cut = len(scenes) - kept.validation
    first = cut - kept.thresholds
    training = {token for scene in scenes[:cut] for token in scene.tokens}
    if twice := training & {token for scene in held_out for token in scene.tokens}:
        raise InvalidInput(f"{len(twice)} samples are in training and validation data, first: {min(twice)}")
    return Scenes(scenes[:first], scenes[first:cut], held_out or scenes[cut:])


def count_cells(scenes: list[SceneCache], config: TrainingConfig, samples: int = 200) -> np.ndarray:
    """Observed cells of each class, int64 (classes,), over at most about `samples` evenly chosen samples."""
    places = [(scene, i) for scene in scenes for i in range(len(scene.tokens))]
    counts = np.zeros(256, dtype=np.int64)
    for scene, i in places[:: max(1, len(places) // samples)]:
        counts += np.bincount(scene["labels"][i].ravel(), minlength=256)
    return counts[: len(config.model.classes)]


def count_ray_classes(scenes: list[SceneCache], config: TrainingConfig) -> np.ndarray:
    """Feature pixels whose ray ends in each class, int64 (classes,)."""
    counts = sum((np.bincount(scene["pixel_class"].ravel(), minlength=256) for scene in scenes), np.zeros(256, int))
    return counts[: len(config.model.classes)]


def occupied_weights(counts: np.ndarray, config: TrainingConfig) -> Tensor:
    """Class weights among occupied cells; the free class has a loss of its own (geometry)."""
    occupied = torch.from_numpy(counts).clone()
    occupied[config.model.classes.free_id] = 0
    return class_weights(occupied)


def rare_classes(counts: np.ndarray) -> np.ndarray:
    """Classes of less than 2 % of all occupied-looking cells each, as a bool (256,) look-up."""
    rare = np.zeros(256, dtype=bool)
    occupied = np.sort(counts)[:-1].sum()  # the free class is the largest in any label set
    rare[: len(counts)] = counts < 0.02 * occupied
    return rare


def image_losses(model: EasyOcc, batch: dict[str, Tensor], ray_weights: Tensor) -> dict[str, Tensor]:
    """Losses on rays of an ImageBatch."""
    return _ray_losses(model.views(batch["images"], batch["rays"]), batch, ray_weights)


def _ray_losses(views: Views, batch: dict[str, Tensor], ray_weights: Tensor) -> dict[str, Tensor]:
    return {
        "depth": depth_loss(views.hazard_logits, batch["depth"]),
        "pixel_class": pixel_class_loss(views.pixel_logits, batch["pixel_class"], ray_weights),
    }


def all_losses(
    model: EasyOcc, batch: dict[str, Tensor], weights: Tensor, ray_weights: Tensor, config: TrainingConfig
) -> dict[str, Tensor]:
    """Losses on cells and rays of a Batch, of cells alone if the image network is frozen; weights are per class, the
    free one included."""
    frozen = config.nano.freeze_images
    if frozen:
        for part in (model.backbone, model.neck):  # with its batch norms
            part.eval()
    with torch.set_grad_enabled(not frozen):
        views = model.views(batch["images"], batch["rays"])
    columns, _ = model.columns(model.lifted(views, batch["voxel_index"], batch["pillar_index"]))
    cells = cell_losses(model, columns, batch, weights, config)
    return cells if frozen else {**cells, **_ray_losses(views, batch, ray_weights)}


def cell_losses(
    model: EasyOcc,
    columns: Tensor,  # [B, X, Y, C + 2 Z]
    batch: dict[str, Tensor],
    weights: Tensor,
    config: TrainingConfig,
) -> dict[str, Tensor]:
    """Losses on a Batch's cells, from `Hidden.columns`."""
    free = config.model.classes.free_id
    others = torch.tensor(config.model.classes.occupied_ids, device=weights.device)
    cells = model.cells(columns.reshape(-1, columns.shape[-1])[batch["columns"]])
    labels = batch["column_labels"].reshape(-1)
    observed = labels != IGNORE
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
        "lovasz": _lovasz(occupied_logit, class_logits, known, labels, free, config.nano.lovasz_cells),
        "observed": observed_loss(observed_logit[in_view], observed[in_view]),
    }


def _lovasz(
    occupied_logit: Tensor, class_logits: Tensor, known: Tensor, labels: Tensor, free: int, limit: int
) -> Tensor:
    """Lovasz-softmax of joint probabilities over the cells that matter: occupied, or called so.

    A free cell that nobody calls occupied has an error near 0 and stands at the flat end of every sorted list.
    """
    p = torch.sigmoid(occupied_logit)
    matter = torch.nonzero((labels != free) | (p.detach() > 0.1))[:, 0]
    if len(matter) > limit:
        matter = matter[torch.randperm(len(matter))[:limit]]
    joint = torch.softmax(class_logits[known[matter]], dim=1) * p[matter, None]
    target = labels[matter]
    return lovasz_softmax(joint, torch.where(target == free, -1, target - (target > free).long()))


def data_record(scenes: Scenes, counts: np.ndarray, config: TrainingConfig) -> dict[str, Any]:
    """What the json beside the checkpoint says of the data."""
    tokens = sorted(token for scene in scenes.training for token in scene.tokens)
    return {
        "scenes": len(scenes.training),
        "samples": len(tokens),
        "labels": [provenance(labels_folder(root, config.labels)) for root in config.data],
        "tokens_sha256": hashlib.sha256("\n".join(tokens).encode()).hexdigest(),
        "cameras": min(scene["present"].shape[1] for scene in scenes.training),
        "cells_per_class": counts.tolist(),
        "threshold_scenes": [scene.name for scene in scenes.thresholds],
        "held_out_scenes": [scene.name for scene in scenes.validation],
    }
