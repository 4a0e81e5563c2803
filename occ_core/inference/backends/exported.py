"""What every backend of an exported network shares: the names of inputs and outputs, and the file's description of
itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import CorruptInput
from occ_core.files import parse_json
from occ_core.models.checkpoint import trained_cameras
from occ_core.models.easyocc.config import EasyOccConfig, parse_config
from occ_core.models.easyocc.past import Past, empty_past
from occ_core.models.easyocc.table import Table

METADATA_KEY = "occ_core"  # of the checkpoint's record, in the file's metadata
EXPORT_KEY = "occ_core_export"  # of how the file was made: precision and calibration
INPUTS = ("images", "voxel_index", "pillar_index", "rays")
OUTPUTS = ("labels", "confidence", "observed")
PAST_INPUTS = Past._fields  # of a network with memory, after the others
STATE_OUTPUT = "next_state"


def described(text: str | None, path: Path) -> tuple[EasyOccConfig, int | None]:
    """Read the network's config, and the number of cameras it was trained on, from the metadata of an exported file.

    Raises:
        CorruptInput, InvalidInput.
    """
    if text is None:
        raise CorruptInput(f"{path}: an ONNX model, but not exported by `occ export` (no '{METADATA_KEY}' metadata)")
    record = parse_json(text, f"{path}: its '{METADATA_KEY}' metadata")
    if not isinstance(record.get("model"), dict):
        raise CorruptInput(f"{path}: its '{METADATA_KEY}' metadata holds no 'model'")
    return parse_config(record["model"]), trained_cameras(record)


def inputs_of(config: EasyOccConfig) -> tuple[str, ...]:
    return (*INPUTS, *PAST_INPUTS) if config.memory_channels else INPUTS


def outputs_of(config: EasyOccConfig) -> tuple[str, ...]:
    return (*OUTPUTS, STATE_OUTPUT) if config.memory_channels else OUTPUTS


def require_outputs(offered: set[str], config: EasyOccConfig, path: Path) -> None:
    """Raise CorruptInput if an export lacks an output, as those of older versions do."""
    if missing := [name for name in outputs_of(config) if name not in offered]:
        raise CorruptInput(f"{path}: has no output '{missing[0]}'; it is of an older version, run `occ export` again")


def network_inputs(
    images: np.ndarray,  # uint8 [N, H, W, 3]
    table: Table,
    past: Past | None = None,
) -> dict[str, np.ndarray]:
    """Collect the network's inputs by name; `past` is given to a network with memory."""
    arrays: tuple[Any, ...] = images, table.voxel_index, table.pillar_index, table.rays
    return dict(zip(INPUTS, arrays, strict=True)) | ({} if past is None else past._asdict())


class ExportedSession(ABC):
    """What the backends of exported networks have in common; see `predictor.Session` and `predictor.MemorySession`."""

    config: EasyOccConfig
    cameras: int | None

    def run(self, images: np.ndarray, rig: Rig, missing: frozenset[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, confidence and observed, uint8 (X, Y, Z), from images uint8 (N, H, W, 3) of the rig's cameras."""
        past = empty_past(self.config) if self.config.memory_channels else None
        labels, confidence, observed, *_ = self._outputs(images, rig, missing, past)
        return labels[0], confidence[0], observed[0]

    def run_after(
        self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same for a network with memory, and its state for the next frame."""
        labels, confidence, observed, state = self._outputs(images, rig, missing, past)
        return labels[0], confidence[0], observed[0], state

    @abstractmethod
    def _outputs(self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past | None) -> list[np.ndarray]:
        """Run the graph and return its outputs in the order of `outputs_of`; each belongs to the caller."""
