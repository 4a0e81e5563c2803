"""The training loop, top to bottom: data, steps, log, checkpoints, validation."""

from __future__ import annotations

import csv
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from occ_core.errors import InvalidInput
from occ_core.evaluation.voxel_iou import confusion_matrix, scores
from occ_core.losses.ray import IGNORE, depth_loss, pixel_class_loss
from occ_core.losses.voxel import class_weights, geometry_loss, lovasz_softmax, observed_loss, semantic_loss
from occ_core.models.easyocc.model import NEVER, Answer, EasyOcc, Views, channels_last
from occ_core.training.cache import SceneCache, default_cache, open_scenes
from occ_core.training.checkpoint import describe, load_checkpoint, load_into, save_checkpoint
from occ_core.training.config import TrainingConfig
from occ_core.training.data import Batch, Draw, DrawImages, ImageBatch, collate, read_sample, tensors_of
from occ_core.training.thresholds import fit_thresholds


@dataclass(eq=False)
class State:
    """What a resumed run needs: all of it is in the checkpoint `last.safetensors`."""

    model: EasyOcc
    average: EasyOcc  # exponential moving average of the weights: the one that is validated and shipped
    optimizer: torch.optim.AdamW
    step: int = 0


def train(config: TrainingConfig, out: Path, resume: bool = False) -> Path:
    """Train, and return the path of the checkpoint `model.safetensors`. Ctrl-C saves before it ends the run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        scenes_of = open_data(config, progress)
        scenes, held_out = scenes_of.training, scenes_of.validation
        statistics = count_cells(scenes, config)
        weights = occupied_weights(statistics, config)
        ray_weights = class_weights(torch.from_numpy(count_ray_classes(scenes, config)), ratio_limit=10)
        state = new_state(config)
        record = training_record(config, scenes_of, statistics)
        if resume:
            restore(state, out / "last.safetensors", record)
        total = config.image_steps + config.steps
        task = progress.add_task("training", total=total, completed=state.step)
        log = Log(out / "log.csv", keep_below=state.step + 1)
        on_images = partial(image_losses, ray_weights=ray_weights)
        on_all = partial(all_losses, weights=weights, ray_weights=ray_weights, config=config)
        images = DrawImages(scenes, config, state.step)
        samples = Draw(scenes, rare_classes(statistics), config, max(0, state.step - config.image_steps))
        try:
            while state.step < total:
                if state.step < config.image_steps:
                    losses = train_step(state, on_images, next(images), config)
                else:
                    losses = train_step(state, on_all, next(samples), config)
                progress.update(task, completed=state.step, description=f"training, loss {losses['total']:.2f}")
                last = state.step == total
                if state.step % config.log_every == 0 or last:
                    log.write(state.step, losses)
                if held_out and state.step > config.image_steps and (state.step % config.validate_every == 0 or last):
                    fit_thresholds(state.average.eval(), scenes_of.thresholds)
                    metrics = validate(state.average, held_out)
                    record["metrics"] = {"step": state.step, **metrics}
                    progress.console.print(f"step {state.step}: {summary(metrics)}")
                if state.step % config.checkpoint_every == 0 or last:
                    save(state, out, record)
        except KeyboardInterrupt:
            save(state, out, record)
            progress.console.print(f"stopped at step {state.step}; go on with --resume")
            raise
    return out / "model.safetensors"


class Scenes(NamedTuple):
    """No scene is in two of these."""

    training: list[SceneCache]
    thresholds: list[SceneCache]
    validation: list[SceneCache]


def open_data(config: TrainingConfig, progress: Any = None) -> Scenes:
    """The scenes of a run; those for validation and thresholds are the last ones of the data."""
    if not config.data:
        raise InvalidInput("no training data: name folders under 'data' in the config, or with --data")
    cache = config.cache or default_cache()
    task = progress.add_task("reading data", total=None) if progress else None

    def opened(roots: tuple[Path, ...]) -> list[SceneCache]:
        told = (lambda scene: progress.update(task, advance=1, description=f"reading {scene}")) if progress else print
        return [scene for root in roots for scene in open_scenes(root, config.labels, config.model, cache, None, told)]

    scenes = opened(config.data)
    held_out = opened(config.validation)
    cut = len(scenes) - (0 if config.validation else config.validation_scenes)
    first = cut - config.threshold_scenes
    if first < 1:
        raise InvalidInput(
            f"no scene is left to train on: {len(scenes)} in the data, validation_scenes {len(scenes) - cut}, "
            f"threshold_scenes {config.threshold_scenes}"
        )
    twice = {token for scene in scenes[:cut] for token in scene.tokens} & {
        t for scene in held_out for t in scene.tokens
    }
    if twice:
        raise InvalidInput(f"{len(twice)} samples are in training and validation data, first: {min(twice)}")
    if progress:
        progress.update(task, total=len(scenes) + len(held_out), completed=len(scenes) + len(held_out))
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


def new_state(config: TrainingConfig) -> State:
    model = channels_last(EasyOcc(config.model))
    average = channels_last(EasyOcc(config.model))
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False).eval()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]  # biases and batch norms
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return State(model, average, torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True))


def train_step(
    state: State,
    losses_of: Callable[[EasyOcc, dict[str, Tensor]], dict[str, Tensor]],
    batch: Batch | ImageBatch,
    config: TrainingConfig,
) -> dict[str, float]:
    """One optimiser step; returns the losses and their weighted sum `total`."""
    state.step += 1
    state.model.train()
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    losses = losses_of(state.model, tensors_of(batch))
    losses["total"] = sum((getattr(config.loss, name) * loss for name, loss in losses.items()), torch.zeros(()))
    state.optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 10.0)
    state.optimizer.step()
    update_average(state, config)
    values = {name: loss.item() for name, loss in losses.items()}
    if not math.isfinite(values["total"]):
        raise InvalidInput(f"training diverged at step {state.step}: losses {values}; lower learning_rate")
    return values


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
    """Losses on cells and rays of a Batch; weights are per class, the free one included."""
    free = config.model.classes.free_id
    others = torch.tensor(config.model.classes.occupied_ids)
    hidden = model.hidden(batch["images"], batch["voxel_index"], batch["pillar_index"], batch["rays"])
    cells = model.cells(hidden.columns.reshape(-1, hidden.columns.shape[-1])[batch["columns"]])
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
        "lovasz": _lovasz(occupied_logit, class_logits, known, labels, free, config.lovasz_cells),
        "observed": observed_loss(observed_logit[in_view], observed[in_view]),
        **_ray_losses(hidden.views, batch, ray_weights),
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


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak; once for the image network alone, once for all."""
    steps = config.image_steps if step <= config.image_steps else config.steps
    step = step if step <= config.image_steps else step - config.image_steps
    warm = min(1.0, step / max(1, config.warmup_steps))
    done = max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@torch.no_grad()
def update_average(state: State, config: TrainingConfig) -> None:
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    new, old = state.model.state_dict(), state.average.state_dict()
    floats = [name for name, tensor in old.items() if tensor.is_floating_point() and name != "threshold"]
    torch._foreach_lerp_([old[name] for name in floats], [new[name] for name in floats], 1 - decay)


@torch.no_grad()
def validate(model: EasyOcc, scenes: list[SceneCache]) -> dict[str, Any]:
    """Scores on held-out scenes, camera mask, one summed confusion matrix."""
    answer = Answer(model.eval())
    taxonomy = model.config.classes
    matrix = np.zeros((len(taxonomy), len(taxonomy)), dtype=np.int64)
    for scene in scenes:
        for i in range(len(scene.tokens)):
            sample = read_sample(scene, i, model.config)
            batch = tensors_of(collate([sample], [np.zeros(0, dtype=np.int64)], model.config))
            labels, _, _ = answer(batch["images"], batch["voxel_index"], batch["pillar_index"], batch["rays"])
            matrix += confusion_matrix(sample.labels, labels[0].numpy(), sample.labels != IGNORE, len(taxonomy))
    return scores(matrix, taxonomy)


def summary(metrics: dict[str, Any]) -> str:
    return "camera mask " + ", ".join(f"{name} {metrics[name]:.1f}" for name in ("iou", "miou_15", "miou_17"))


def training_record(config: TrainingConfig, scenes: Scenes, counts: np.ndarray) -> dict[str, Any]:
    """What the json beside the checkpoint says of the run; folders are named by their last part only."""
    import hashlib

    tokens = sorted(token for scene in scenes.training for token in scene.tokens)
    run = config.model_dump(mode="json", exclude={"model", "cache", "data", "validation"})
    return {
        "code": _git_revision(),
        "config": {
            **run,
            "data": [path.name for path in config.data],
            "validation": [p.name for p in config.validation],
        },
        "data": {
            "scenes": len(scenes.training),
            "samples": len(tokens),
            "tokens_sha256": hashlib.sha256("\n".join(tokens).encode()).hexdigest(),
            "cells_per_class": counts.tolist(),
            "threshold_scenes": [scene.name for scene in scenes.thresholds],
            "held_out_scenes": [scene.name for scene in scenes.validation],
        },
        "host": {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
        "metrics": None,
    }


def _git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def save(state: State, out: Path, record: dict[str, Any]) -> None:
    """`model.safetensors`: averaged weights, what users get. `last.safetensors`: all that --resume needs."""
    described = describe(state.model.config, {**record, "step": state.step})
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value
    save_checkpoint(out / "last.safetensors", tensors, described)
    save_checkpoint(out / "model.safetensors", state.average.state_dict(), described)


def restore(state: State, path: Path, record: dict[str, Any]) -> None:
    """Continue from `last.safetensors`."""
    tensors, described = load_checkpoint(path)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "adam": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    load_into(state.model, parts["model"], path)
    load_into(state.average, parts["average"], path)
    parameters = dict(state.model.named_parameters())
    for name, tensor in parts["adam"].items():
        key, owner = name.split(".", 1)
        parameter = parameters[owner]
        if key != "step":  # the fused optimiser walks memory, so its moments need the parameter's layout
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        state.optimizer.state[parameter][key] = tensor
    state.step = described["training"]["step"]
    record["metrics"] = described["training"]["metrics"]


class Log:
    """CSV of the losses, one row a logged step; a resumed run drops rows of steps it repeats."""

    FIELDS = ("step", "seconds", "total", "geometry", "semantics", "lovasz", "observed", "depth", "pixel_class")

    def __init__(self, path: Path, keep_below: int):
        self.path, self.start = path, time.monotonic()
        rows = []
        if path.is_file():
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < keep_below]
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def write(self, step: int, losses: dict[str, float]) -> None:
        with open(self.path, "a", newline="") as file:
            row = {"step": step, "seconds": round(time.monotonic() - self.start, 1)}
            csv.DictWriter(file, self.FIELDS).writerow(row | {k: round(v, 5) for k, v in losses.items()})
