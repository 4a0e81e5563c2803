"""The training loop, top to bottom, for every kind of network: steps, log, checkpoints, validation."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from occ_core.errors import InvalidInput
from occ_core.evaluation.voxel_iou import scores
from occ_core.files import remove
from occ_core.training.config import TrainingConfig
from occ_core.training.log import Clock, Log, measured, training_record
from occ_core.training.ranks import Ranks, batch_of_all, joined
from occ_core.training.state import NOT_VALIDATED, State, learning_rate, new_state, restore, save, update_average
from occ_core.training.task import TrainingTask
from occ_core.training.watch import WRITTEN, Watch

LEAST_SCALE = 1.0  # of fp16's loss: below it the gradient overflows however small it is made
RUN_FILES = ("model.safetensors", "model.json", "last.safetensors", "last.json", "log.csv", *WRITTEN)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CtrlC:
    """Within this context, Ctrl-C lets the current step finish; a second Ctrl-C ends the process at once.

    Under `torchrun` each process gets it twice, from the terminal and from `torchrun`; there any number is one.
    """

    asked = False

    def __init__(self, world: int) -> None:
        self.world = world

    def __enter__(self) -> CtrlC:
        self._main = threading.current_thread() is threading.main_thread()  # signals reach no other
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked and self.world == 1:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)


def train(config: TrainingConfig, out: Path, resume: bool = False, overwrite: bool = False) -> Path:
    """Train, and return the path of the checkpoint `model.safetensors`. Ctrl-C saves before it ends the run. Both ends
    leave a page, `report.html`.

    A folder that holds a run is refused, unless it is to `resume` it or to `overwrite` it: then what it holds is
    removed, once data and settings are known to be good.

    Started by `torchrun`, all its processes train one network on different samples; the first one logs and saves.

    Raises:
        InvalidInput: `out` holds a run; settings that do not fit data, model, machine or the run to be resumed; or
            training diverged, then no file is overwritten.
        MissingInput, CorruptInput.
    """
    _require_new(out, resume, overwrite)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    for torn in out.glob(".*.tmp"):  # of a killed run
        torn.unlink(missing_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with joined(config.device) as ranks, Progress(*columns, console=Console(quiet=not ranks.first)) as progress:
        if config.precision == "fp16" and ranks.device.type == "cpu":
            raise InvalidInput("precision 'fp16' needs device 'cuda'; on the CPU use 'fp32' or 'bf16'")
        reading = progress.add_task("reading data", total=None)
        task = TrainingTask(config, ranks, lambda what: progress.update(reading, description=f"reading {what}"))
        progress.remove_task(reading)
        state = new_state(config, ranks.device, resume)
        record = training_record(config, task.record, ranks.world)
        if state.lacked:
            record["start_from_lacked"] = list(state.lacked)
        if resume:
            restore(state, out / "last.safetensors", record, config)
        elif ranks.first:
            for path in (path for name in RUN_FILES for path in out.glob(name)):
                remove(path)
        run_steps(state, task, config, out, record, ranks, progress)
    return out / "model.safetensors"


def _require_new(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InvalidInput("--resume goes on with a run, --overwrite removes it: one of them")
    there = [name for name in ("model.safetensors", "last.safetensors") if (out / name).exists()]
    if there and not (resume or overwrite):
        raise InvalidInput(
            f"{out} holds a run ({' and '.join(there)}): --resume goes on with it, --overwrite removes it, --out names "
            "another folder"
        )


def run_steps(
    state: State,
    task: TrainingTask,
    config: TrainingConfig,
    out: Path,
    record: dict[str, Any],
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Run all steps that are left."""
    total, warm = sum(task.phases), sum(task.phases[:-1])  # before `warm`, parts of the network are untrained
    network = distributed(state.model, ranks)
    batches = Timed(task.batches(state.step))
    clock = Clock()
    log = Log(out / "log.csv", state.step + 1) if ranks.first else None
    watch = Watch(out, task.data.validation, config.model, state.step) if ranks.first else None
    bar = progress.add_task("training", total=total, completed=state.step)
    if record.pop(NOT_VALIDATED, False):  # it was killed while it was validated
        judge(state, task, config, out, record, ranks, progress, watch)
    with CtrlC(ranks.world) as ctrl_c:
        while state.step < total:
            began, waited = time.perf_counter(), batches.waited
            losses = train_step(state, network, task, batches, config, ranks)
            clock.count(time.perf_counter() - began, batches.waited - waited)
            progress.update(bar, completed=state.step, description=f"training, loss {losses['total']:.2f}")
            last, stopped = state.step == total, ranks.any(ctrl_c.asked)
            if log and watch and (state.step % config.log_every == 0 or last):
                lr = learning_rate(state.step, config.learning_rate, config.warmup_steps, task.phases)
                row = losses | clock.lap() | {"learning_rate": lr}
                log.write(state.step, row)
                watch.row(state.step, row)
            due = state.step > warm and (state.step % config.validate_every == 0 or last)
            if ranks.first and (due or stopped or state.step % config.checkpoint_every == 0):
                record["host"] |= measured(clock, ranks.device)
                before = {NOT_VALIDATED: True} if due else {}
                save(state, out, record | before, config, ship=state.step > warm and not due)
            if due:
                judge(state, task, config, out, record, ranks, progress, watch)
            if watch and (stopped or last):
                watch.close(record["metrics"])
            if stopped and not last:
                progress.console.print(f"stopped at step {state.step}; go on with --resume")
                raise KeyboardInterrupt
    whole = clock.whole
    progress.console.print(f"{whole['step_seconds']:.3f} s a step, {whole['waiting']:.0%} of it waiting for data")


class Timed:
    """An iterator over the same batches; `waited` adds up the seconds until each one was there."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self.waited = batches, 0.0

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return batch


def distributed(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Wrap the network so that, with several processes, its backward pass averages gradients over them."""
    if ranks.world == 1:
        return model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)


def train_step(
    state: State, network: nn.Module, task: TrainingTask, batches: Timed, config: TrainingConfig, ranks: Ranks
) -> dict[str, float]:
    """Make one optimiser step; returns this process's loss terms and their sum `total`.

    Raises:
        InvalidInput: a loss or the gradient is not finite; the weights are as they were before the step.
    """
    now = learning_rate(state.step + 1, config.learning_rate, config.warmup_steps, task.phases)
    for group in state.optimizer.param_groups:
        group["lr"] = now * group["lr_scale"]
    network.train()
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    for i in range(config.accumulate):
        batch = next(batches)
        # random numbers of networks and losses depend on seed and sample alone, however processes share the samples
        draw = batch_of_all(state.step * config.accumulate + i, ranks.rank, ranks.world, config.seed)
        torch.manual_seed(config.seed * 1_000_003 + draw)
        unready = i + 1 < config.accumulate and isinstance(network, DistributedDataParallel)
        with network.no_sync() if unready else nullcontext():  # type: ignore[operator]
            with torch.autocast(ranks.device.type, DTYPES[config.precision], enabled=config.precision != "fp32"):
                losses = task.losses(network, batch, state.step / sum(task.phases), state.average)
            total = sum(losses.values(), torch.zeros((), device=ranks.device)) / config.accumulate
            if not total.requires_grad:
                raise InvalidInput(f"step {state.step + 1} teaches nothing: no loss of {sorted(losses)} has a gradient")
            state.scaler.scale(total).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach().float() / config.accumulate
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    values["total"] = sum(values.values())
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    overflow = state.scaler.is_enabled()  # of fp16: the scaler skips such a step and scales less
    if not math.isfinite(values["total"]) or not (overflow or math.isfinite(norm)):
        bad = [name for name, value in values.items() if not math.isfinite(value)] or ["gradient"]
        raise InvalidInput(
            f"training diverged at step {state.step + 1}: {', '.join(bad)} not finite, losses {values}; "
            "lower learning_rate"
        )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if overflow and (scale := state.scaler.get_scale()) < LEAST_SCALE:
        raise InvalidInput(
            f"training diverged at step {state.step + 1}: gradient not finite even with the loss scaled by {scale:g}, "
            f"losses {values}; lower learning_rate, or use precision bf16"
        )
    state.step += 1
    update_average(state, config.ema_decay, task.fitted)
    return values


def judge(
    state: State,
    task: TrainingTask,
    config: TrainingConfig,
    out: Path,
    record: dict[str, Any],
    ranks: Ranks,
    progress: Progress,
    watch: Watch | None,
) -> None:
    """Validate, save the scores, and show them."""
    validate(state, task, record, ranks, progress)
    if ranks.first:
        save(state, out, record, config, ship=True)
    if watch:
        watch.validated(state.step, record["metrics"], task.answers)


def validate(state: State, task: TrainingTask, record: dict[str, Any], ranks: Ranks, progress: Progress) -> None:
    """Score the held-out scenes by one confusion matrix of the cells that cameras observe, summed over scenes and
    processes."""
    ranks.share_buffers(state.average)
    task.fit(state.average)
    matrix = task.confusion(state.average)
    if matrix is None:
        return
    metrics = scores(ranks.sum(matrix), task.taxonomy)
    record["metrics"] = {"step": state.step, **metrics}
    shown = ", ".join(f"{name} {metrics[name]:.1f}" for name in ("iou", "miou_15", "miou_17"))
    progress.console.print(f"step {state.step}: camera mask {shown}")
