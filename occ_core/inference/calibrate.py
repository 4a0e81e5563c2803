"""int8 in an exported graph, by what real frames make of it: symmetric Q/DQ nodes around the layers that gain from it.

All zero points are 0 and weights have a scale a channel, which TensorRT asks for and OpenVINO runs as fast as its own
format.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput, need
from occ_core.inference.backends.exported import network_inputs
from occ_core.inference.half import is_layer
from occ_core.inference.memory import MAX_AGE_S, Moment, Past
from occ_core.inference.predictor import Predictor
from occ_core.inference.preprocess import Preprocess
from occ_core.inference.table import build_table
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.sources.open import FrameSource, open_source

QUANTISED = ("Conv", "MatMul")
FRAMES_BEFORE = 8  # that a network with memory has seen at each frame
KEPT_FLOAT = (
    "/backbone/",  # of EfficientNet-Lite0: in int8 half of the answers are others, mostly by its first blocks
    "/neck/rays/",  # one scale would have to fit directions and what is left of 1 / distance at 20 m
    "/birds_eye/enter/",  # joins features and places of unlike range; OpenVINO mistakes their scales
    "/to_occupied/",  # compared with thresholds
    "/to_observed/",
    "/birds_eye/keep/",  # what it gives is squashed into -1..1 and remembered: coarse steps would add up
)


@dataclass(frozen=True)
class Calibration:
    """Frames of a data set as the network gets them.

    Attributes:
        source: name of the data set.
        inputs: of each frame: the network's inputs by name.
    """

    source: str
    inputs: list[dict[str, np.ndarray]]

    @property
    def record(self) -> dict[str, Any]:
        """What is written into the file: which frames they were."""
        digest = hashlib.sha256()
        for inputs in self.inputs:
            digest.update(inputs["images"].tobytes())
        return {"source": self.source, "frames": len(self.inputs), "images_sha256": digest.hexdigest()[:16]}


def read_calibration(
    path: Path,
    frames: int,
    config: EasyOccConfig,
    remembering: Predictor | None = None,
    version: str | None = None,
) -> Calibration:
    """`frames` frames, evenly spread over a bag or data set; all of them if it has fewer.

    Args:
        remembering: of a network with memory: itself, as it was before; what it remembers is an input, too.
        version: table folder of nuScenes layout.

    Raises:
        InvalidInput: no frame with an image, or with memory none with a past; and what the source raises.
    """
    source, preprocess = open_source(path, version=version), Preprocess(config.input_width, config.input_height)
    tables: dict[str, Any] = {}
    found = []
    for index in np.unique(np.linspace(0, len(source) - 1, frames).round().astype(int)) if len(source) else []:
        frame = source[int(index)]
        images, present = preprocess.rig(frame.images, frame.rig.names)
        if not present.any():
            continue
        if frame.rig.fingerprint not in tables:
            tables[frame.rig.fingerprint] = build_table(frame.rig, config)
        past = None if remembering is None else _past(remembering, source, int(index))
        found.append(network_inputs(images, tables[frame.rig.fingerprint], past))
    if not found:
        raise InvalidInput(f"{path}: no frame with an image to calibrate with")
    if remembering is not None and not any(inputs["state"].any() for inputs in found):
        raise InvalidInput(
            f"{path}: no frame whose past is known, of {len(found)}: a network with memory is calibrated on a drive "
            f"with odometry, its frames at most {MAX_AGE_S} s apart"
        )
    return Calibration(Path(path).resolve().name, found)


def _past(predictor: Predictor, source: FrameSource, index: int) -> Past:
    """What a network with memory knows at a frame of the last ones of its scene."""
    memory = predictor.memory
    assert memory is not None
    memory.forget()
    scene = source.samples[index][0]
    for i in range(max(0, index - FRAMES_BEFORE), index):
        if source.samples[i][0] == scene and (before := source[i]).images:
            predictor.predict_frame(before)
    return memory.before(Moment.of(source[index]))


def to_int8(model: Any, calibration: Calibration, folder: Path) -> Any:
    """A quantised copy of an onnx ModelProto; `folder` takes temporary files."""
    need("onnxruntime", "onnx")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    out = folder / "int8.onnx"
    with _quiet():
        quantize_static(
            model,
            str(out),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=[node.name for node in model.graph.node if not _gains(node)],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "CalibTensorRangeSymmetric": True,
                "QuantizeBias": False,
            },
        )
    return need("onnx", "onnx").load(str(out))


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime advises, at each call, a step that the tracer has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _gains(node: Any) -> bool:
    return is_layer(node) and not node.name.startswith(KEPT_FLOAT)


class _Reader:
    """The shape in which onnxruntime asks for calibration data."""

    def __init__(self, calibration: Calibration):
        self._left: Iterator[dict[str, np.ndarray]] = iter(calibration.inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)
