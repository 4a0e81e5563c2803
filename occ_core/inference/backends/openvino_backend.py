"""Runs the exported network in OpenVINO, the fastest backend on x86 processors; it needs neither torch nor the
checkpoint's json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, MissingInput, need
from occ_core.inference.backends.exported import (
    METADATA_KEY,
    ExportedSession,
    described,
    network_inputs,
    outputs_of,
    require_outputs,
)
from occ_core.models.easyocc.past import Past
from occ_core.models.easyocc.table import TableCache

RAYS = "rays"
OWN_RIGS = 4  # so many are compiled for; with more, a mount moves, or a data set has many, and compiling takes a second


class OpenVinoSession(ExportedSession):
    """Compiles the network for the rig: shapes are fixed, and what depends on the viewing rays alone is computed once.
    After OWN_RIGS of them it compiles for a number of cameras, whatever their rays."""

    def __init__(self, path: Path, threads: int):
        self._ov = need("openvino", "openvino")
        if not Path(path).is_file():
            raise MissingInput(f"{path}: no such model")
        self._core = self._ov.Core()
        try:
            self._model = self._core.read_model(str(path))
        except RuntimeError as error:
            raise CorruptInput(f"{path}: not a readable ONNX model ({' '.join(str(error).split())[:200]})") from error
        self.config, self.cameras = described(_metadata(self._model), path)
        require_outputs({name for output in self._model.outputs for name in output.get_names()}, self.config, path)
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # never the bf16 that some processors would choose by themselves
            "ENABLE_CPU_PINNING": False,  # the same cores decode the next images
        }
        self._tables = TableCache(self.config)
        self._compiled_for: str | int | None = None  # fingerprint of a rig, or a number of cameras
        self._rigs, self._request = 0, None

    def _outputs(self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past | None) -> list[np.ndarray]:
        inputs = network_inputs(images, self._tables.of(rig, missing), past)
        request = self._request_for(rig, inputs[RAYS])
        if self._compiled_for == rig.fingerprint:
            del inputs[RAYS]
        for name, array in inputs.items():
            request.set_tensor(name, self._ov.Tensor(array, shared_memory=True))
        request.infer()
        return [request.get_tensor(name).data.copy() for name in outputs_of(self.config)]

    def _request_for(self, rig: Rig, rays: np.ndarray) -> Any:
        if self._compiled_for not in (rig.fingerprint, len(rig)):
            fixed = self._model.clone()
            shapes = {"images": [len(rig), self.config.input_height, self.config.input_width, 3]}
            own = self._rigs < OWN_RIGS
            if own:
                given = fixed.input(RAYS).get_node()
                given.output(0).replace(self._ov.op.Constant(rays).output(0))
                fixed.remove_parameter(given)
            else:
                shapes[RAYS] = list(rays.shape)
            fixed.reshape(shapes)
            self._request = self._core.compile_model(fixed, "CPU", self._settings).create_infer_request()
            self._compiled_for = rig.fingerprint if own else len(rig)
            self._rigs += 1
        return self._request


def _metadata(model: Any) -> str | None:
    """Read the metadata of an ONNX file, which OpenVINO keeps under `framework`."""
    try:
        return model.get_rt_info(["framework", METADATA_KEY]).astype(str)
    except RuntimeError:
        return None
