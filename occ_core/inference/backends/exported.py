"""What every backend of an exported network knows: names of its inputs and outputs, and its own description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from occ_core.errors import CorruptInput
from occ_core.files import parse_json
from occ_core.inference.table import Table
from occ_core.models.easyocc.config import EasyOccConfig, parse_config
from occ_core.training.checkpoint import trained_cameras

METADATA_KEY = "occ_core"  # of the checkpoint's record, in the file's metadata
EXPORT_KEY = "occ_core_export"  # of how the file was made: precision and calibration
INPUTS = ("images", "voxel_index", "pillar_index", "rays")
OUTPUTS = ("labels", "confidence", "observed")


def described(text: str | None, path: Path) -> tuple[EasyOccConfig, int | None]:
    """Config of the network and the number of cameras it was trained on, from the metadata of an exported file.

    Raises:
        CorruptInput, InvalidInput.
    """
    if text is None:
        raise CorruptInput(f"{path}: an ONNX model, but not exported by `occ export` (no '{METADATA_KEY}' metadata)")
    record = parse_json(text, f"{path}: its '{METADATA_KEY}' metadata")
    if not isinstance(record.get("model"), dict):
        raise CorruptInput(f"{path}: its '{METADATA_KEY}' metadata holds no 'model'")
    return parse_config(record["model"]), trained_cameras(record)


def require_outputs(offered: set[str], path: Path) -> None:
    """Raise CorruptInput where an export of an older version lacks an output."""
    if missing := [name for name in OUTPUTS if name not in offered]:
        raise CorruptInput(f"{path}: has no output '{missing[0]}'; it is of an older version, run `occ export` again")


def network_inputs(
    images: np.ndarray,  # uint8 [N, H, W, 3]
    table: Table,
) -> dict[str, np.ndarray]:
    """The network's inputs by name."""
    arrays: tuple[Any, ...] = images, table.voxel_index, table.pillar_index, table.rays
    return dict(zip(INPUTS, arrays, strict=True))
