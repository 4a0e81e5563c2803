"""Compares models on the same data, with the same steps and several seeds; each run is `occ train`, `occ predict`, `occ
eval`.

A plan (YAML) names the runs. Every run is a process of its own, so that peak memory is its own too, and a run whose
`scores.json` is there is not repeated; its folder says what it was trained with, and is refused where the plan has
changed since.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml

from occ_core.errors import InvalidInput, MissingInput, OccError
from occ_core.files import write_atomically
from occ_core.parallel import progress_bar
from occ_core.training.config import difference

WARM_STEPS = 5  # the first ones are not timed: buffers are allocated, functions compiled
KEYS = ("base", "runs")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@dataclass(frozen=True)
class PlannedRun:
    """One training: `name` of the plan, with one seed; `config` is what `occ train` is given."""

    name: str
    seed: int
    config: Mapping[str, Any]
    folder: Path
    held_out: Path


def read_plan(path: Path) -> dict[str, dict[str, Any]]:
    """Read the config of each run by its name: the file named by `config`, overridden by `base` of the plan, then by
    the run's own.

    Raises:
        MissingInput, InvalidInput.
    """
    plan = _read_yaml(path)
    if sorted(plan) != sorted(KEYS) or not isinstance(plan["runs"], dict):
        raise InvalidInput(f"{path}: a plan has the keys {' and '.join(KEYS)}, this one {sorted(plan)}")
    configs = {}
    for name, own in plan["runs"].items():
        own = dict(own)
        file = own.pop("config", None)
        if file is None:
            raise InvalidInput(f"{path}: run '{name}' names no config file")
        configs[name] = merged(merged(_read_yaml(path.parent / file), plan["base"] or {}), own)
    return configs


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        record = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{path}: must be a mapping, is a {type(record).__name__}")
    return record


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over`: mappings are merged, everything else is replaced."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def bench_models(
    plan: Path, held_out: Path, out: Path, seeds: int, workers: int, only: list[str] | None = None
) -> dict[str, Any]:
    """Train, predict and score every run of a plan with seeds 0..seeds - 1; `workers` at the same time, one core each.

    Args:
        plan: YAML file, see benchmarks/models/plan.yaml.
        held_out: data set in nuScenes layout with gts/ that no run trains on.
        out: folder of the runs; those that are there already are read, not repeated.
        only: names of runs; None: all of the plan.

    Returns:
        seeds; runs: name -> list of one record a seed, see `run_one`.

    Raises:
        MissingInput, InvalidInput; OccError naming the log of a run that failed, or a folder of another config.
    """
    configs = read_plan(plan)
    if unknown := [name for name in only or () if name not in configs]:
        raise InvalidInput(f"{plan}: no run '{unknown[0]}', there are: {', '.join(configs)}")
    names = [name for name in configs if only is None or name in only]
    runs = [
        PlannedRun(name, seed, configs[name] | {"seed": seed, "threads": 1}, out / f"{name}-{seed}", held_out)
        for seed in range(seeds)
        for name in names
    ]
    with progress_bar(True) as progress, ThreadPoolExecutor(workers) as pool:  # a thread waits for its process
        bar = progress.add_task("runs", total=len(runs))
        results = [pool.submit(run_one, run, lambda: progress.advance(bar)) for run in runs]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for run, result in zip(runs, results, strict=True):
        rows[run.name].append(result.result())
    return {"seeds": seeds, "runs": rows}


def run_one(run: PlannedRun, step: Callable[[], object]) -> dict[str, Any]:
    """The scores of one run, which are also kept in its `scores.json`.

    Returns:
        seed; steps; step_s: median seconds of a training step, without waiting for data; peak_memory_mb of training;
        scores: as of `occ eval`.

    Raises:
        OccError: naming the log of a command that failed, or the folder where it holds a run of another config.
    """
    at, config = run.folder / "scores.json", run.folder / "config.yaml"
    _require_same_config(run, config)
    if at.is_file():
        step()
        return json.loads(at.read_text())
    run.folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(dict(run.config), sort_keys=False))
    model, predictions = run.folder / "model.safetensors", run.folder / "predictions"
    shutil.rmtree(predictions, ignore_errors=True)  # of a run that was stopped
    commands = [
        ["train", str(config), "--out", str(run.folder), "--overwrite"],
        ["predict", str(model), str(run.held_out), str(predictions), "--backend", "torch", "--threads", "1"],
        ["eval", str(predictions), str(run.held_out / "gts"), "--json", str(run.folder / "eval.json")],
    ]
    with open(run.folder / "log.txt", "w") as log:
        for command in commands:
            process = [sys.executable, "-m", "occ_core.cli.main", *command]
            if subprocess.run(process, stdout=log, stderr=subprocess.STDOUT, env=ONE_THREAD, check=False).returncode:
                log_file = run.folder / "log.txt"
                raise OccError(f"run {run.name}, seed {run.seed}: `occ {command[0]}` failed, see {log_file}")
    record = {
        "seed": run.seed,
        **_cost(run.folder),
        "scores": json.loads((run.folder / "eval.json").read_text()),
    }
    write_atomically(at, (json.dumps(record, indent=1) + "\n").encode())
    step()
    return record


def _require_same_config(run: PlannedRun, stored: Path) -> None:
    if not stored.is_file():
        return
    was, now = _read_yaml(stored), yaml.safe_load(yaml.safe_dump(dict(run.config)))
    if unlike := difference("config", was, now):
        raise OccError(f"{run.folder}: {unlike}; delete the folder, or name another with --out")


def _cost(folder: Path) -> dict[str, Any]:
    """Read steps, seconds a step and peak memory from the run's log and record."""
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    record = json.loads((folder / "model.json").read_text())
    return {
        "steps": int(rows[-1]["step"]),
        "step_s": median(_step_seconds(rows)),
        "peak_memory_mb": record["training"]["host"]["peak_memory_mb"],
    }


def _step_seconds(rows: list[dict[str, str]]) -> list[float]:
    """For each row of a log, the mean step time since the row before, without waiting for data; warm-up rows are left
    out."""
    warm = [row for before, row in pairwise(rows) if int(before["step"]) >= WARM_STEPS]
    return [float(row["step_seconds"]) * (1 - float(row["waiting"])) for row in warm or rows]


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "IoU": lambda r: r["scores"]["camera"]["iou"],
    "mIoU 15": lambda r: r["scores"]["camera"]["miou_15"],
    "mIoU 17": lambda r: r["scores"]["camera"]["miou_17"],
    "IoU, full": lambda r: r["scores"]["full"]["iou"],
    "mIoU 15, full": lambda r: r["scores"]["full"]["miou_15"],
    "mIoU 17, full": lambda r: r["scores"]["full"]["miou_17"],
    "RayIoU 15": lambda r: r["scores"]["ray"]["rayiou_15"],
    "RayIoU 17": lambda r: r["scores"]["ray"]["rayiou_17"],
    "s a step": lambda r: r["step_s"],
    "peak GB": lambda r: r["peak_memory_mb"] / 1024,
}


def markdown(result: dict[str, Any]) -> str:
    """A table of means over the seeds, with the standard deviation where there are several."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for name, records in result["runs"].items():
        cells = [_cell([column(record) for record in records]) for column in COLUMNS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
