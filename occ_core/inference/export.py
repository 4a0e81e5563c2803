"""Exports a checkpoint to ONNX: one file with network, grid, taxonomy and preprocessing. The rig's table stays an
input."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

from occ_core.errors import InvalidInput, need
from occ_core.files import write_atomically
from occ_core.inference.backends.exported import EXPORT_KEY, METADATA_KEY, inputs_of, outputs_of
from occ_core.inference.predictor import Predictor
from occ_core.models.build import kind_of
from occ_core.models.checkpoint import load_record
from occ_core.models.easyocc.past import empty_past
from occ_core.models.easyocc.table import RAY_CHANNELS
from occ_core.shipped import require_network

EXPORTED = "easyocc-nano"
"""The kind of model that can be exported."""
OPSET = 17
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_FRAMES = 32


def export_onnx(
    checkpoint: Path | str,
    out: Path,
    precision: str = "fp32",
    calibrate: Path | None = None,
    frames: int = CALIBRATION_FRAMES,
    version: str | None = None,
) -> Path:
    """Write `out` atomically and check it with onnx's own checker. The number of cameras is not fixed.

    Args:
        checkpoint: file, or `nano`, which ships.
        precision: fp32 | fp16 | int8, of the network's layers; inputs and outputs are the same in all three.
        calibrate: for int8: ROS 2 bag or data set like those the robot will see. frames: how many of its frames.
            version: its table folder, in nuScenes layout.

    Raises:
        InvalidInput: a kind of model that cannot be exported, or a precision and calibration that do not fit.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    if (precision == "int8") != (calibrate is not None):
        raise InvalidInput(
            "int8 needs frames to calibrate with: --calibrate BAG, or a data set"
            if precision == "int8"
            else f"calibration is for int8 only, precision is {precision}"
        )
    need("torch", "torch"), need("onnx", "onnx")
    checkpoint = require_network(checkpoint)
    record = load_record(checkpoint)
    if (kind := kind_of(record["model"])) != EXPORTED:
        raise InvalidInput(
            f"{checkpoint}: holds a model of kind '{kind}', which cannot be exported yet; only '{EXPORTED}' can. "
            "Run it with backend 'torch'"
        )
    with tempfile.TemporaryDirectory() as folder:
        traced = _traced(checkpoint, Path(folder))
        graph, made = _at_precision(traced, record, precision, (calibrate, frames, version), Path(folder))
    _describe(graph, {METADATA_KEY: record, EXPORT_KEY: made})
    need("onnx", "onnx").checker.check_model(graph)
    write_atomically(out, graph.SerializeToString())
    return out


def _traced(checkpoint: Path, folder: Path) -> tuple[Any, Any]:
    """Trace the fp32 graph, an onnx.ModelProto, and return it with the network's config.

    The older, tracing exporter is used on purpose: it turns the lifting into one Gather on axis 0, the newer one into
    GatherND, which runtimes on cars and robots run slowly or not at all.
    """
    import onnx
    import torch

    from occ_core.inference.backends.torch_backend import load_model
    from occ_core.models.easyocc.deployed import Deployed
    from occ_core.models.easyocc.model import EasyOcc

    model = cast(EasyOcc, load_model(checkpoint))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of constants, which the parity test covers
        torch.onnx.export(
            Deployed(model),
            _example(model.config),
            str(folder / "fp32.onnx"),
            input_names=list(inputs_of(model.config)),
            output_names=list(outputs_of(model.config)),
            dynamic_axes={"images": {0: "cameras"}, "rays": {0: "cameras"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load(str(folder / "fp32.onnx")), model.config


def _at_precision(
    traced: tuple[Any, Any],
    record: dict[str, Any],
    precision: str,
    calibrate: tuple[Path | None, int, str | None],  # data, how many of its frames, its table folder
    folder: Path,
) -> tuple[Any, dict[str, Any]]:
    """Convert the graph to a precision, and say how."""
    graph, config = traced
    if precision == "fp16":
        from occ_core.inference.half import to_half

        to_half(graph.graph)
    data, frames, version = calibrate
    if data is None:
        return graph, {"precision": precision}
    from occ_core.inference.calibrate import read_calibration
    from occ_core.inference.int8 import to_int8

    remembering = _described_predictor(graph, record, folder) if config.memory_channels else None
    calibration = read_calibration(data, frames, config, remembering, version)
    return to_int8(graph, calibration.inputs), {"precision": precision, "calibration": calibration.record}


def _described_predictor(graph: Any, record: dict[str, Any], folder: Path) -> Predictor:
    """Make a predictor of the graph before it is quantised."""
    import onnx

    from occ_core.inference.backends.onnxruntime_backend import OnnxSession
    from occ_core.inference.int8 import THREADS

    described = onnx.ModelProto()
    described.CopyFrom(graph)
    _describe(described, {METADATA_KEY: record})
    onnx.save(described, str(folder / "described.onnx"))
    return Predictor(OnnxSession(folder / "described.onnx", THREADS))


def _describe(graph: Any, entries: dict[str, Any]) -> None:
    for key, value in entries.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)


def _example(config):
    import torch

    w, h = config.feature_size
    x, y, z = config.pillar_grid_shape
    cameras = 6
    return (
        torch.zeros(cameras, config.input_height, config.input_width, 3, dtype=torch.uint8),
        torch.zeros(config.grid.cells, dtype=torch.int32),
        torch.zeros(x * y * z, dtype=torch.int32),
        torch.zeros(cameras, RAY_CHANNELS, h, w),
        *(map(torch.from_numpy, empty_past(config)) if config.memory_channels else ()),
    )
