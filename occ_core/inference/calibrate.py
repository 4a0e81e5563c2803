"""Reads frames of a recording as network inputs, with which int8 is calibrated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.inference.backends.exported import network_inputs
from occ_core.inference.predictor import Predictor
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.past import MAX_AGE_S, Past, StampedPose
from occ_core.models.easyocc.table import build_table
from occ_core.network_input.preprocess import Preprocess
from occ_core.sources.open import FrameSource, open_source

FRAMES_BEFORE = 8  # number of frames that a network with memory has seen at each calibration frame


@dataclass(frozen=True)
class CalibrationFrames:
    """Frames of a data set as inputs of the network.

    Attributes:
        source: name of the data set.
        inputs: of each frame: the network's inputs by name.
    """

    source: str
    inputs: list[dict[str, np.ndarray]]

    @property
    def record(self) -> dict[str, Any]:
        """Describe the frames, for the exported file."""
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
) -> CalibrationFrames:
    """Read `frames` frames, evenly spread over a bag or data set; all of them if it has fewer.

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
    return CalibrationFrames(Path(path).resolve().name, found)


def _past(predictor: Predictor, source: FrameSource, index: int) -> Past:
    """What a network with memory remembers at a frame, after the frames before it in its scene."""
    memory = predictor.memory
    assert memory is not None
    memory.forget()
    scene = source.samples[index][0]
    for i in range(max(0, index - FRAMES_BEFORE), index):
        if source.samples[i][0] == scene and (before := source[i]).images:
            predictor.predict_frame(before)
    return memory.before(StampedPose.of(source[index]))
