"""The state of training: weights, their average and the optimiser; saved, restored and stepped."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from occ_core.errors import InvalidInput, MissingInput
from occ_core.files import read_json
from occ_core.models.build import build_model, kind_of, parse_config
from occ_core.models.checkpoint import describe, load_checkpoint, load_into, save_checkpoint
from occ_core.models.config import IMAGENET
from occ_core.training.config import TrainingConfig, difference

MAY_CHANGE = frozenset(
    {"threads", "workers", "device", "log_every", "checkpoint_every", "validate_every"}
)  # when a run is resumed
READ = {"samples": "tokens_sha256", "labels made as": "labels", "pseudo-labels made as": "pseudo_labels"}

NOT_VALIDATED = "not_validated"
"""In the record of a checkpoint that is saved before a validation: a run that goes on from it validates first."""
NOT_THE_NETWORK = frozenset({"name", "backbone_weights", "loss", "checkpoint", "memory_interval_s"})  # of a config
LATER_PARTS = {"birds_eye.memory": "memory_channels", "to_ground": "depth_by_ground", "foot": "foot_heads"}
"""Parts that a start may lack, and their fields."""


@dataclass(eq=False)
class State:
    """Everything that a step changes; all of it is in the checkpoint `last.safetensors`. `lacked` lists the parts that
    the run it started from did not have."""

    model: nn.Module
    average: nn.Module  # exponential moving average of the weights: the one that is validated and shipped
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # does nothing, but for fp16
    step: int = 0
    lacked: tuple[str, ...] = ()


def new_state(config: TrainingConfig, device: torch.device, resume: bool = False) -> State:
    """Make an untrained network, and read the weights it starts from, or its backbone's, unless an earlier run is
    resumed.

    Raises:
        MissingInput, CorruptInput, InvalidInput: of the files of weights.
    """
    model = build_model(config.model)
    weights = getattr(config.model, "backbone_weights", None)
    if weights is not None and config.start_from is None and not resume:
        load_backbone(model, weights)
    lacked: tuple[str, ...] = ()
    if config.start_from is not None and not resume:
        lacked = load_weights(model, config, config.start_from)
    if config.freeze_stem:
        freeze_stem(model)
    model.to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    # fmt: off
    groups = [
        {
            "params": [p for name, p in model.named_parameters()
                       if p.requires_grad and _in_backbone(name) == in_backbone and (p.ndim > 1) == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,  # none for biases and batch norms
            "lr_scale": config.backbone_lr_scale if in_backbone else 1.0,
        }
        for in_backbone in (False, True)
        for decayed in (True, False)
    ]
    # fmt: on
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    return State(model, average, optimizer, scaler, lacked=lacked)


def _in_backbone(name: str) -> bool:
    return "backbone" in name.split(".")


def load_backbone(model: nn.Module, weights: str | Path) -> None:
    """Give the part of the network that can `load_backbone` its weights."""
    if weights != IMAGENET and not Path(weights).is_file():
        raise MissingInput(f"{weights}: no such file, named by the model's backbone_weights")
    for part in model.modules():
        if hasattr(part, "load_backbone"):
            cast(Any, part).load_backbone(weights)
            return
    raise InvalidInput(f"backbone_weights is {weights}, but {type(model).__name__} has no backbone that can be loaded")


def freeze_stem(model: nn.Module) -> None:
    """Freeze what the network's backbone computes before stride 8."""
    for part in model.modules():
        if hasattr(part, "freeze_stem"):
            cast(Any, part).freeze_stem()
            return
    raise InvalidInput(f"freeze_stem: {type(model).__name__} has no backbone whose stem can be kept as it is")


def load_weights(model: nn.Module, config: TrainingConfig, path: Path) -> tuple[str, ...]:
    """Start from the weights of another run; returns which of LATER_PARTS that run lacked.

    Raises:
        InvalidInput: it trained another network; losses, which are no part of a network, may differ.
    """
    tensors, described = load_checkpoint(path)
    was, now = (
        {name: value for name, value in describe(model, {})["model"].items() if name not in NOT_THE_NETWORK}
        for model in (parse_config(described["model"]), config.model)
    )
    lacked = [part for part, field in LATER_PARTS.items() if not was.get(field) and now.get(field)]
    for part in lacked:
        was[LATER_PARTS[part]] = now[LATER_PARTS[part]]
        tensors |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(part + ".")}
    if unlike := difference("model", was, now):
        raise InvalidInput(f"start_from {path}: {unlike}; only weights of the same network can be a start")
    load_into(model, tensors, path)
    return tuple(lacked)


def learning_rate(step: int, peak: float, warmup_steps: int, phases: Sequence[int]) -> float:
    """The learning rate of the 1-based `step`: in each phase a linear warm-up, then a cosine to 1 % of the peak."""
    steps, last = phases[0], len(phases) - 1
    for number, length in enumerate(phases):
        steps = length
        if step <= length or number == last:
            break
        step -= length
    warm = min(1.0, step / max(1, warmup_steps))
    done = max(0.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@torch.no_grad()
def update_average(state: State, ema_decay: float, fitted: frozenset[str]) -> None:
    """Move the average towards the weights; the first steps, which are far off, are soon forgotten."""
    decay = min(ema_decay, (1 + state.step) / (10 + state.step))
    new, old = state.model.state_dict(), state.average.state_dict()
    floats = [name for name, tensor in old.items() if tensor.is_floating_point() and name not in fitted]
    torch._foreach_lerp_([old[name] for name in floats], [new[name] for name in floats], 1 - decay)


def save(state: State, out: Path, record: dict[str, Any], config: TrainingConfig, ship: bool) -> None:
    """Write `last.safetensors`, which has all that --resume needs, and with `ship` also the averaged weights,
    `model.safetensors`."""
    described = describe(config.model, {**record, "step": state.step})
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value
    for key, value in state.scaler.state_dict().items():
        tensors[f"scaler.{key}"] = torch.tensor(value, dtype=torch.float64)
    tensors["run.step"] = torch.tensor(state.step)  # in the same file: a kill between two files cannot part them
    save_checkpoint(out / "last.safetensors", tensors, described)
    if ship:
        save_checkpoint(out / "model.safetensors", state.average.state_dict(), described)


def restore(state: State, path: Path, record: dict[str, Any], config: TrainingConfig) -> None:
    """Continue from `last.safetensors`.

    Raises:
        InvalidInput: it is of another model, or of a run with other settings, samples or labels.
    """
    tensors, described = load_checkpoint(path)
    _require_same_run(path, described, record, config)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "adam": {}, "scaler": {}, "run": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    load_into(state.model, parts["model"], path)
    load_into(state.average, parts["average"], path)
    parameters = dict(state.model.named_parameters())
    for name, tensor in parts["adam"].items():
        key, owner = name.split(".", 1)
        parameter = parameters[owner]
        if key != "step":  # the fused optimiser walks memory, so its samples need the parameter's layout
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        state.optimizer.state[parameter][key] = tensor.to(parameter.device)
    if state.scaler.is_enabled():
        # its growth interval and tracker are whole numbers
        of = {key: value.item() for key, value in parts["scaler"].items()}
        state.scaler.load_state_dict({k: int(v) if k.startswith(("growth_i", "_")) else v for k, v in of.items()})
    state.step = int(parts["run"]["step"])
    training = described["training"]
    record |= {key: training[key] for key in ("metrics", "start_from_lacked", NOT_VALIDATED) if key in training}


def recorded_steps(out: Path) -> tuple[int, int] | None:
    """Read `steps` and `nano.image_steps` of the run in a folder; None if it holds no run, or one without image
    steps."""
    path = out / "last.json"
    run = read_json(path).get("training", {}).get("config", {}) if path.is_file() else {}
    nano = run.get("nano") or {}
    return (run["steps"], nano["image_steps"]) if "steps" in run and "image_steps" in nano else None


def _require_same_run(path: Path, described: dict[str, Any], record: dict[str, Any], config: TrainingConfig) -> None:
    was, now = kind_of(described["model"]), kind_of(config.model)
    if was != now:
        raise InvalidInput(f"{path}: holds a model of kind '{was}', this run trains one of kind '{now}'")
    then = _identity(described["training"]["config"], described["model"], described["training"].get("data", {}))
    asked = _identity(record["config"], describe(config.model, {})["model"], record.get("data", {}))
    for name in asked:
        if name not in MAY_CHANGE and (unlike := difference(name, then.get(name), asked[name])):
            raise InvalidInput(f"{path}: {unlike}; a run that goes on needs the same, another run another folder")


def _identity(settings: dict[str, Any], model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Everything that identifies a run: settings, network, samples and labels."""
    return settings | {"model": model, "data read": {name: data.get(key) for name, key in READ.items()}}
