"""Training from a network that learned elsewhere, as long as asked: the number of steps by a measured step."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from occ_core.adapt.label import LABELS
from occ_core.models.build import parse_config
from occ_core.models.checkpoint import load_record
from occ_core.models.easyocc.settings import NanoTraining
from occ_core.sources.scenes import Recording
from occ_core.training.config import TrainingConfig, with_steps
from occ_core.training.loop import train

# Half of the steps teach the image network alone; then all of it learns, slower than at first, for what the start
# knows of the rest of the world is to stay.
IMAGE_SHARE = 2
LEARNING_RATE = 1.5e-3
PROBE_STEPS = 24
FOLDER = "train"
UNSETTLED = 2  # first steps of a phase, which load libraries and fill caches
LEAST_STEPS = 16


def run_config(
    start: Path, learn: Sequence[Path], fit: Sequence[Path], cache: Path, steps: int, threads: int
) -> TrainingConfig:
    """The run on some recordings, of which `fit` is kept from the weights."""
    kept = sum(len(Recording(path).scenes) for path in fit)
    config = TrainingConfig(
        model=parse_config(load_record(start)["model"]),
        data=(*learn, *fit),
        labels=LABELS,
        validation_scenes=0,  # what judges is not even opened here
        start_from=start,
        cache=cache,
        steps=IMAGE_SHARE - 1,
        learning_rate=LEARNING_RATE,
        warmup_steps=min(100, steps // 10),
        camera_dropout=0.1,
        color_jitter=0.3,
        freeze_stem=True,
        backbone_lr_scale=0.5,
        ema_decay=0.998,
        threads=threads,
        log_every=20,
        checkpoint_every=min(200, max(1, steps // 4)),
        validate_every=max(steps, 1),
        nano=NanoTraining(
            threshold_scenes=kept,
            fit_on_learned=True,
            image_steps=1,
            turn=0.2,
            zoom=0.3,
            retexture=0.2,
            lean_deg=0.5,
        ),
    )
    return with_steps(config, steps)


def measured_step_s(config: TrainingConfig, folder: Path) -> float:
    """Mean seconds of a step of such a run on this machine, each phase by the median of its own steps."""
    probe = with_steps(config, PROBE_STEPS).model_copy(update={"log_every": 1})
    shutil.rmtree(folder, ignore_errors=True)
    train(probe, folder)
    with open(folder / "log.csv", newline="") as file:
        seconds = [float(row["step_seconds"]) for row in csv.DictReader(file)]
    shutil.rmtree(folder, ignore_errors=True)
    images = probe.nano.image_steps
    phases = [part for part in (seconds[:images], seconds[images:]) if part]
    return sum(len(part) * median(part[UNSETTLED:] or part) for part in phases) / len(seconds)


def steps_for(hours: float, step_s: float) -> int:
    """Steps that so many hours have room for."""
    return max(LEAST_STEPS, int(hours * 3600 / step_s))


def learn(config: TrainingConfig, out: Path) -> dict[str, Any]:
    """Train in `out`/train, or go on where a killed run stopped there.

    Returns:
        checkpoint, its path in `out`; steps, and step_s, seconds of one.
    """
    path = train(config, out / FOLDER, resume=(out / FOLDER / "last.safetensors").is_file())
    training = json.loads(path.with_suffix(".json").read_text())["training"]
    return {
        "checkpoint": str(path.relative_to(out)),
        "steps": training["step"],
        "step_s": training["host"]["step_seconds"],
    }
