"""The network as files that robots run, how fast and how true they are here, and the node's parameters."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from occ_core.camera import Rig
from occ_core.ego_mask import FOLDER, file_name, write_mask
from occ_core.errors import InvalidInput
from occ_core.files import write_atomically
from occ_core.inference.export import export_onnx
from occ_core.inference.predictor import FASTEST_FIRST, Predictor
from occ_core.rig_file import rig_text
from occ_core.sources.bag_frames import BagFrames
from occ_core.sources.open import open_source
from occ_core.sources.scenes import Recording

FRAMES, REPEATS = 6, 5
# percent of the cells that torch or a runtime calls occupied, at fp32: below it, the runtime computes otherwise
LEAST_SAME = 99.0
SLACK_S = 0.05  # of stamps, beyond the offsets that the recording shows
LEAST_STALE_S = 0.7


def export_all(checkpoint: Path, out: Path, calibrate: Path) -> dict[str, str]:
    """fp32 and int8, the latter calibrated on a recording; name in `out` by precision."""
    fp32 = export_onnx(checkpoint, out / "model_fp32.onnx")
    int8 = export_onnx(checkpoint, out / "model_int8.onnx", "int8", calibrate)
    return {"fp32": fp32.name, "int8": int8.name}


def compare(checkpoint: Path, files: Mapping[str, Path], stretch: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Each file in each runtime that is installed, beside torch, on some keyframes of a stretch in turn.

    Returns:
        by `<runtime> <precision>`: backend and precision, p50_ms and p95_ms of an answer to preprocessed images,
        equal_percent of all cells as torch has them, same_percent of those that either calls occupied.
    """
    torch = Predictor.load(checkpoint, "torch", threads)
    there = [name for name in FASTEST_FIRST if importlib.util.find_spec(name)]
    rows = {"torch fp32": ("torch", "fp32", torch)}
    for precision, path in files.items():
        rows |= {f"{name} {precision}": (name, precision, Predictor.load(path, name, threads)) for name in there}
    recording = Recording(stretch)
    scenes = [recording.scene(name) for name in recording.scenes]
    every = [(frames, place) for frames in scenes for place in range(len(frames))]
    ms: dict[str, list[float]] = {name: [] for name in rows}
    cells = {name: np.zeros(3) for name in rows}  # equal, both occupied and equal, either occupied; of `total`
    total, free = 0, torch.taxonomy.free_id
    for index in np.unique(np.linspace(0, len(every) - 1, FRAMES).round().astype(int)):
        frames, place = every[index]
        frame = frames[place]
        ready = {name: torch.preprocess_one(image, frame.rig[name]) for name, image in frame.images.items()}
        expected = torch.predict_preprocessed(ready, frame.rig).labels
        total += expected.size
        for name, (_, _, predictor) in rows.items():
            answer = predictor.predict_preprocessed(ready, frame.rig).labels  # the first builds the rig's table
            either, equal = (answer != free) | (expected != free), answer == expected
            cells[name] += equal.sum(), (equal & either).sum(), either.sum()
            for _ in range(REPEATS):
                began = time.perf_counter()
                predictor.predict_preprocessed(ready, frame.rig)
                ms[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {
            "backend": backend,
            "precision": precision,
            "p50_ms": round(float(np.percentile(ms[name], 50)), 1),
            "p95_ms": round(float(np.percentile(ms[name], 95)), 1),
            "equal_percent": round(100 * cells[name][0] / total, 3),
            "same_percent": round(100 * cells[name][1] / max(1, cells[name][2]), 2),
        }
        for name, (backend, precision, _) in rows.items()
    }


def fastest(rows: Mapping[str, Mapping[str, Any]], int8: bool) -> str:
    """The row to run: the quickest of the runtimes that compute what torch does.

    Args:
        int8: its answers were judged, and are good enough.
    """
    true = {row["backend"] for row in rows.values() if row["precision"] == "fp32" and row["same_percent"] >= LEAST_SAME}
    usable = [name for name, row in rows.items() if row["backend"] in true and (int8 or row["precision"] == "fp32")]
    return min(usable, key=lambda name: (rows[name]["p50_ms"], name))


def write_node_of(out: Path, stretch: Path, model: Path, backend: str, threads: int) -> dict[str, str]:
    """As `write_node`, with cameras, topics and times as a recording has them.

    Raises:
        InvalidInput: the stretch is none of a bag. CannotWrite.
    """
    source = open_source(stretch)
    if not isinstance(source, BagFrames):
        raise InvalidInput(f"{stretch}: is no stretch of a bag")
    rig = source[0].rig
    topics = {name: source.bag.image_topics[name] for name in rig.names}
    stamps = [shots[source.bag.key.name].stamp_ns for shots in (source.shots(i) for i in range(len(source)))]
    period_s = float(np.median(np.diff(stamps))) / 1e9 if len(stamps) > 1 else 0.0
    offsets = [abs(offset) for offset in source.bag.roster.offsets_s.values()]
    timing = {
        "base_frame": source.bag.base_frame,
        "max_spread_s": round(max(0.1, max(offsets, default=0.0) + SLACK_S), 3),
        "stale_s": round(max(LEAST_STALE_S, 3 * period_s), 2),
    }
    return write_node(out, rig, topics, model, backend, threads, timing)


def write_node(
    out: Path,
    rig: Rig,
    topics: Mapping[str, str],
    model: Path,
    backend: str,
    threads: int,
    more: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """OUT/rig.yaml and OUT/node.yaml, the latter with `more` parameters; and how to start the node.

    Raises:
        CannotWrite.
    """
    masks = {camera.name: f"{FOLDER}/{file_name(camera.name)}" for camera in rig if camera.blind is not None}
    for name, path in masks.items():
        write_mask(out / path, cast(np.ndarray, rig[name].blind))
    write_atomically(out / "rig.yaml", rig_text(rig, topics, masks).encode())
    parameters = {
        "model": str(model.resolve()),
        "backend": backend,
        "threads": threads,
        "rig_file": str((out / "rig.yaml").resolve()),
        **(more or {}),
    }
    text = yaml.safe_dump({"/**": {"ros__parameters": parameters}}, sort_keys=False, width=200)
    head = "# Written by `occ adapt`; docs/node.md explains the parameters.\n"
    write_atomically(out / "node.yaml", (head + text).encode())
    return {"run": f"ros2 run occ_ros occupancy_node --ros-args --params-file {out / 'node.yaml'}"}
