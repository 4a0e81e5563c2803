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
from occ_core.models.easyocc.table import RAY_CHANNELS, TableCache


class OpenVinoSession(ExportedSession):
    """Compiles the network anew for each number of cameras: fixed shapes are faster, and rigs rarely change."""

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
        self._compiled_for, self._request = 0, None

    def _outputs(self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past | None) -> list[np.ndarray]:
        inputs = network_inputs(images, self._tables.of(rig, missing), past)
        request = self._request_for(len(rig))
        for name, array in inputs.items():
            request.set_tensor(name, self._ov.Tensor(array, shared_memory=True))
        request.infer()
        return [request.get_tensor(name).data.copy() for name in outputs_of(self.config)]

    def _request_for(self, cameras: int) -> Any:
        if self._compiled_for != cameras:
            w, h = self.config.feature_size
            fixed = self._model.clone()
            fixed.reshape({
                "images": [cameras, self.config.input_height, self.config.input_width, 3],
                "rays": [cameras, RAY_CHANNELS, h, w],
            })  # fmt: skip
            self._request = self._core.compile_model(fixed, "CPU", self._settings).create_infer_request()
            self._compiled_for = cameras
        return self._request


def _metadata(model: Any) -> str | None:
    """Read the metadata of an ONNX file, which OpenVINO keeps under `framework`."""
    try:
        return model.get_rt_info(["framework", METADATA_KEY]).astype(str)
    except RuntimeError:
        return None
