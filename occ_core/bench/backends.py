"""Measures how fast and how well each backend runs a model at each precision: one run, each frame in every backend in
turn.

In turn, because a machine's speed wanders by more than backends differ.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import InvalidInput, MissingInput, OccError
from occ_core.evaluation.report import VoxelScores
from occ_core.frame import Frame
from occ_core.inference.backends.tensorrt_engine import build_engine
from occ_core.inference.export import PRECISIONS, export_onnx
from occ_core.inference.predictor import Predictor
from occ_core.occupancy import load_occ3d
from occ_core.sources.nuscenes_tables import root_of
from occ_core.sources.open import open_source

Network = Callable[[np.ndarray, Rig], np.ndarray]  # images uint8 [N, H, W, 3] -> labels uint8 [X, Y, Z]


@dataclass
class BackendRow:
    """The measurements of one backend at one precision."""

    name: str
    network: Network
    scores: VoxelScores | None
    ms: list[float] = field(default_factory=list)
    equal: list[float] = field(default_factory=list)
    rig: str = ""  # that it ran last; the first run on a rig builds its table and does not count


def bench_backends(
    checkpoint: Path,
    data: Path,
    folder: Path,
    calibrate: Path | None = None,
    frames: int = 20,
    repeats: int = 3,
    threads: int = 2,
    peer: Path | None = None,
) -> dict[str, Any]:
    """Time the network alone, on real frames after preprocessing, and compare labels with eager torch.

    Args:
        folder: for exports and engines. calibrate: as of `occ export`; without it there is no int8.
        peer: Python file of a network to time beside ours, such as benchmarks/peers/flashocc.py.

    Raises:
        InvalidInput, MissingInput, and what loading raises.
    """
    source = open_source(data)
    if not len(source):
        raise InvalidInput(f"{data}: no frames")
    chosen = np.unique(np.linspace(0, len(source) - 1, frames).round().astype(int))
    eager = Predictor.load(checkpoint, "torch", threads)
    truths = root_of(data) / "gts"
    scored = eager.taxonomy if truths.is_dir() else None
    rows, left_out = _rows(checkpoint, folder, calibrate, threads)
    rows = {"torch fp32": _network(eager), **rows}
    measured = [BackendRow(name, network, VoxelScores(scored) if scored else None) for name, network in rows.items()]
    found: dict[str, Any] = {}
    if peer is not None:
        network, found["peer"] = _peer(peer, source[int(chosen[0])].rig, eager, threads)
        measured.append(BackendRow(found["peer"]["name"], network, None))
    for index in chosen:
        frame = source[int(index)]
        truth = truths / frame.scene / frame.token / "labels.npz"
        _measure(measured, frame, eager, truth if scored and truth.is_file() else None, repeats)
    return {
        "model": checkpoint.name,
        "data": Path(data).resolve().name,
        "frames": len(chosen),
        "repeats": repeats,
        "threads": threads,
        "rows": {row.name: _figures(row) for row in measured},
        "left_out": left_out,
        **found,
    }


def _measure(rows: list[BackendRow], frame: Frame, eager: Predictor, truth_file: Path | None, repeats: int) -> None:
    inputs = {name: eager.preprocess_one(image, frame.rig[name]) for name, image in frame.images.items()}
    images = eager.images_of(cast(dict[str, np.ndarray], inputs), frame.rig)  # EasyOcc nano takes lenses as they are
    truth = None if truth_file is None else load_occ3d(truth_file, eager.grid, eager.taxonomy)
    expected = None
    for row in rows:
        if row.rig != frame.rig.fingerprint:
            row.network(images, frame.rig)
            row.rig = frame.rig.fingerprint
        for _ in range(repeats):
            start = time.perf_counter()
            labels = row.network(images, frame.rig)
            row.ms.append(1e3 * (time.perf_counter() - start))
        expected = labels if expected is None else expected
        row.equal.append(float((labels == expected).mean()))
        if truth is not None and row.scores is not None:
            row.scores.add(truth, labels)


def _rows(
    checkpoint: Path, folder: Path, calibrate: Path | None, threads: int
) -> tuple[dict[str, Network], dict[str, str]]:
    """Every backend at every precision by name, and why others are missing."""
    rows: dict[str, Network] = {}
    left_out: dict[str, str] = {}

    def add(name: str, load: Callable[[], Predictor]) -> None:
        try:
            rows[name] = _network(load())
        except OccError as error:
            left_out[name] = str(error)

    add("torch-compiled fp32", lambda: Predictor.load(checkpoint, "torch-compiled", threads))
    for precision in PRECISIONS:
        if precision == "int8" and calibrate is None:
            left_out["int8"] = "no frames to calibrate with"
            continue
        out = folder / f"{checkpoint.stem}_{precision}.onnx"
        exported = export_onnx(checkpoint, out, precision, calibrate if precision == "int8" else None)
        for backend in ("onnxruntime", "openvino"):
            add(f"{backend} {precision}", lambda e=exported, b=backend: Predictor.load(e, b, threads))  # type: ignore[misc]
        add(f"tensorrt {precision}", lambda e=exported: Predictor.load(build_engine(e, folder)))  # type: ignore[misc]
    return rows, left_out


def _network(predictor: Predictor) -> Network:
    return lambda images, rig: predictor.session.run(images, rig, frozenset())[0]


def _peer(path: Path, rig: Rig, eager: Predictor, threads: int) -> tuple[Network, dict[str, Any]]:
    """A foreign network for the first rig, and its size."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = _module(path)
    torch.set_num_threads(threads)
    config = eager.config
    network = module.build(rig, (config.input_width, config.input_height), eager.grid, len(eager.taxonomy))
    blank = torch.zeros(len(rig), config.input_height, config.input_width, 3, dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(blank)

    def run(images: np.ndarray, rig: Rig) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = {"parameters_m": parameters / 1e6, "gflop": counter.get_total_flops() / 1e9}
    return run, {"name": module.NAME, **size}


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise MissingInput(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _figures(row: BackendRow) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "p50_ms": float(np.percentile(row.ms, 50)),
        "p95_ms": float(np.percentile(row.ms, 95)),
        "equal_labels_percent": 100 * float(np.mean(row.equal)),
    }
    if row.scores is not None and row.scores.samples:
        figures |= {key: row.scores.report()["camera"][key] for key in ("iou", "miou_15", "miou_17")}
    return figures


def markdown(figures: dict[str, Any]) -> str:
    """One table; the peer is untrained, so its labels say nothing."""
    lines = ["| backend | p50 ms | p95 ms | equal labels % | IoU | mIoU 17 |", "|---|---|---|---|---|---|"]
    peer = figures.get("peer", {}).get("name")
    for name, row in figures["rows"].items():
        equal = "" if name == peer else f"{row['equal_labels_percent']:.2f}"
        scores = [f"{row[key]:.2f}" if row.get(key) is not None else "" for key in ("iou", "miou_17")]
        lines.append(f"| {name} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {equal} | {' | '.join(scores)} |")
    return "\n".join(lines)
