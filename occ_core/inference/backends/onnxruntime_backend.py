"""Runs the exported network in onnxruntime; it needs neither torch nor the checkpoint's json."""

from __future__ import annotations

from pathlib import Path

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


class OnnxSession(ExportedSession):
    def __init__(self, path: Path, threads: int):
        ort = need("onnxruntime", "onnx")
        if not Path(path).is_file():
            raise MissingInput(f"{path}: no such model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Spinning workers would take the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen types of its own, all on unreadable files
            raise CorruptInput(f"{path}: not a readable ONNX model ({' '.join(str(error).split())[:200]})") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.config, self.cameras = described(metadata.get(METADATA_KEY), path)
        require_outputs({output.name for output in self.session.get_outputs()}, self.config, path)
        self._tables = TableCache(self.config)

    def _outputs(self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past | None) -> list[np.ndarray]:
        inputs = network_inputs(images, self._tables.of(rig, missing), past)
        return self.session.run(list(outputs_of(self.config)), inputs)
