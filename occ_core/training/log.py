"""What a run writes beside its weights: a CSV of its steps, and the record in the checkpoint's json."""

from __future__ import annotations

import csv
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from occ_core.models.backbones import origin
from occ_core.training.config import TrainingConfig

FIELDS = ("step", "seconds", "total", "step_seconds", "waiting", "learning_rate")


class Clock:
    """Measures how long steps take and how much of that they wait for data, since the last `lap` and since the start.

    Validation and saving count neither as steps nor as waiting.
    """

    def __init__(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self._lap = self._first = (0, 0.0, 0.0)

    def count(self, seconds: float, waited: float) -> None:
        """Count one step that took `seconds`, of which it waited `waited` for data."""
        self.steps, self.seconds, self.waited = self.steps + 1, self.seconds + seconds, self.waited + waited
        if self.steps == 1:
            self._first = 1, seconds, waited

    def lap(self) -> dict[str, float]:
        """Mean `step_seconds`, and the share of time spent `waiting`, since the last call."""
        lap, self._lap = self._lap, (self.steps, self.seconds, self.waited)
        return self._since(lap)

    @property
    def whole(self) -> dict[str, float]:
        """The same since the start, without the first step, which loads libraries and starts workers."""
        return self._since(self._first if self.steps > 1 else (0, 0.0, 0.0))

    def _since(self, then: tuple[int, float, float]) -> dict[str, float]:
        steps, seconds, waited = self.steps - then[0], self.seconds - then[1], self.waited - then[2]
        return {"step_seconds": round(seconds / max(1, steps), 5), "waiting": round(waited / max(seconds, 1e-9), 4)}


class Log:
    """A CSV of losses or held-out scores, one row a logged step; a resumed run drops the rows of steps that it repeats.

    A term that turns up later gets a column of its own, empty in earlier rows.

    Args:
        fields: its first columns.
    """

    def __init__(self, path: Path, keep_below: int, fields: Sequence[str] = FIELDS) -> None:
        self.path, self.start = path, time.monotonic()
        self._fields = list(fields)
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                self._rows = [row for row in reader if _is_before(row, keep_below)]
                if self._rows:  # a new run has columns of its own
                    self._fields += [name for name in reader.fieldnames or () if name not in self._fields]
        self._write_all()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one row."""
        row = {"step": step, "seconds": round(time.monotonic() - self.start, 1)}
        row |= {name: float(f"{value:.6g}") for name, value in values.items()}
        self._rows.append(row)
        if new := [name for name in row if name not in self._fields]:
            self._fields += new
            self._write_all()
            return
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._fields).writerow(row)

    def _write_all(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._fields)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.path)


def _is_before(row: dict[str, Any], step: int) -> bool:
    """Whether a row belongs to a step before this one; a row that a killed run wrote only half of does not."""
    return str(row.get("step", "")).isdigit() and int(row["step"]) < step and None not in row.values()


def training_record(config: TrainingConfig, data: dict[str, Any], world: int) -> dict[str, Any]:
    """Describe the run for the json beside the checkpoint; of folders only the last part of the path is named."""
    left_out = {"model", "cache", "data", "validation", "teacher_weights"}
    if not config.model.by_table:
        left_out.add("nano")
    run = config.model_dump(mode="json", exclude=left_out)
    names: dict[str, Any] = {key: [path.name for path in getattr(config, key)] for key in ("data", "validation")}
    names["labels"] = Path(config.labels).name
    for key in ("validation_labels", "pseudo_labels"):
        if getattr(config, key) is not None:
            names[key] = Path(getattr(config, key)).name
    if config.start_from is not None:
        names["start_from"] = "/".join(config.start_from.parts[-2:])  # many are called model.safetensors
    return {
        "code": _git_revision(),
        "config": {**run, **names, "processes": world},
        "data": data,
        "backbone": origin(getattr(config.model, "backbone_weights", None)),
        "host": {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
        "metrics": None,
    }


def measured(clock: Clock, device: torch.device) -> dict[str, Any]:
    """Measure speed and memory of this process so far, for `host` in the record.

    peak_memory_mb: of the GPU's memory in tensors, or on the CPU of the whole process since it began.
    """
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device) / 2**20
    else:
        name, peak = "cpu", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    return {"device": name, "peak_memory_mb": round(peak), **clock.whole}


def _git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
