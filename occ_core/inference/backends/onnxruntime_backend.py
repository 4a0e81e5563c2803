"""The exported network in onnxruntime; needs neither torch nor the checkpoint's json."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, MissingInput, need
from occ_core.files import parse_json
from occ_core.inference.table import Tables
from occ_core.models.easyocc.config import EasyOccConfig, parse_config
from occ_core.training.checkpoint import trained_cameras

METADATA_KEY = "occ_core"
OUTPUTS = ("labels", "confidence", "observed")


class OnnxSession:
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
        self.config, self.cameras = _described(self.session, path)
        self._tables = Tables(self.config)
        offered = [output.name for output in self.session.get_outputs()]
        if missing := [name for name in OUTPUTS if name not in offered]:
            raise CorruptInput(
                f"{path}: has no output '{missing[0]}'; it is of an older version, run `occ export` again"
            )

    def run(self, images: np.ndarray, rig: Rig, missing: frozenset[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, confidence and observed, uint8 (X, Y, Z), from images uint8 (N, H, W, 3) of the rig's cameras."""
        table = self._tables.of(rig, missing)
        inputs = {
            "images": images,
            "voxel_index": table.voxel_index,
            "pillar_index": table.pillar_index,
            "rays": table.rays,
        }
        labels, confidence, observed = self.session.run(list(OUTPUTS), inputs)
        return labels[0], confidence[0], observed[0]


def _described(session, path: Path) -> tuple[EasyOccConfig, int | None]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise CorruptInput(f"{path}: an ONNX model, but not exported by `occ export` (no '{METADATA_KEY}' metadata)")
    record = parse_json(text, f"{path}: its '{METADATA_KEY}' metadata")
    if not isinstance(record.get("model"), dict):
        raise CorruptInput(f"{path}: its '{METADATA_KEY}' metadata holds no 'model'")
    return parse_config(record["model"]), trained_cameras(record)
