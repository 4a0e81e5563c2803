"""Checkpoint to ONNX: one file that holds network, grid, taxonomy and preprocessing; the rig's table stays an input."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import cast

from occ_core.errors import InvalidInput, need
from occ_core.inference.backends.exported import INPUTS, METADATA_KEY, OUTPUTS
from occ_core.models.build import kind_of
from occ_core.training.checkpoint import load_record

EXPORTED = "easyocc-nano"
"""The kind of model that can be exported."""
OPSET = 17


def export_onnx(checkpoint: Path, out: Path) -> Path:
    """Write `out` atomically and check it with onnx's own checker. The number of cameras stays free.

    The older, tracing exporter is used on purpose: it turns the lifting into one Gather on axis 0, the newer one into
    GatherND, which runtimes on cars and robots run slowly or not at all.
    """
    torch, onnx = need("torch", "torch"), need("onnx", "onnx")
    from occ_core.inference.backends.torch_backend import load_model
    from occ_core.models.easyocc.deployed import Deployed
    from occ_core.models.easyocc.model import EasyOcc

    record = load_record(checkpoint)
    if (kind := kind_of(record["model"])) != EXPORTED:
        raise InvalidInput(
            f"{checkpoint}: holds a model of kind '{kind}', which cannot be exported yet; only '{EXPORTED}' can. "
            "Run it with backend 'torch'"
        )
    model = cast(EasyOcc, load_model(checkpoint))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of constants, which the parity test covers
        torch.onnx.export(
            Deployed(model).eval(),
            _example(model.config),
            str(temporary),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes={"images": {0: "cameras"}, "rays": {0: "cameras"}},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(str(temporary))
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(record)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(temporary))
    os.replace(temporary, out)
    return out


def _example(config):
    import torch

    w, h = config.feature_size
    x, y, z = config.pillar_grid_shape
    cameras = 6
    return (
        torch.zeros(cameras, config.input_height, config.input_width, 3, dtype=torch.uint8),
        torch.zeros(config.grid.cells, dtype=torch.int32),
        torch.zeros(x * y * z, dtype=torch.int32),
        torch.zeros(cameras, 4, h, w),
    )
