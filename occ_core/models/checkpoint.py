"""Checkpoints: weights are in a safetensors file, everything else in a json beside it. No pickle is ever loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from occ_core.errors import CorruptInput, MissingInput, need
from occ_core.files import read_json, write_atomically
from occ_core.limits import MAX_CAMERAS, MAX_HEADER_BYTES, shown
from occ_core.models.build import ModelConfig, parse_config
from occ_core.models.earlier_names import with_todays_settings, with_todays_tensors

FORMAT = "occ_core checkpoint 1"


def describe(config: ModelConfig, training: dict[str, Any]) -> dict[str, Any]:
    """Make the json record: what the network is, what its answers mean, how it was trained."""
    taxonomy = config.classes
    model = config.model_dump(mode="json")
    if model.get("backbone_weights"):  # folders of the machine that trained are nobody's business
        model["backbone_weights"] = Path(model["backbone_weights"]).name
    return {
        "format": FORMAT,
        "model": model,
        "grid": {
            "origin_m": config.grid_origin_m,
            "voxel_size_m": config.voxel_size_m,
            "shape": config.grid_shape,
            "index_order": "x forward, y left, z up, ego frame",
        },
        "taxonomy": {"name": taxonomy.name, "names": taxonomy.names, "free_id": taxonomy.free_id},
        "preprocessing": {
            "input": [config.input_width, config.input_height],
            "resize": "cover, cv2.INTER_AREA; crop top and both sides",
            "normalise": "inside the network",
        },
        "training": training,
    }


def save_checkpoint(path: Path, tensors: dict[str, Any], record: dict[str, Any]) -> None:
    """Write `path` (.safetensors) and the json beside it, each atomically; the json first, so no weights lack one."""
    save_file = need("safetensors.torch", "torch").save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, str(temporary))
        write_atomically(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tensors by name, and the record. Names that have changed since the file was written are replaced.

    Raises:
        MissingInput: no such file, or no json beside it.
        CorruptInput: not a safetensors file, or not a record of ours.
    """
    record = load_record(path)
    load_file = need("safetensors.torch", "torch").load_file
    from safetensors import SafetensorError

    try:
        return with_todays_tensors(load_file(str(path))), record
    except SafetensorError as error:
        raise CorruptInput(f"{path}: not a safetensors file ({error}); other formats are not loaded") from error


def load_record(path: Path) -> dict[str, Any]:
    """Read the json beside a checkpoint and validate its model config.

    Raises:
        MissingInput, CorruptInput, InvalidInput.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(f"{path}: no such checkpoint")
    require_safetensors(path)
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise MissingInput(f"{beside}: the json that belongs to the checkpoint is not there")
    record = read_json(beside)
    if record.get("format") != FORMAT or not isinstance(record.get("model"), dict):
        raise CorruptInput(f"{beside}: not the record of a checkpoint (its 'format' is not '{FORMAT}', or no 'model')")
    record = {key: with_todays_settings(value) for key, value in record.items()}
    parse_config(record["model"])
    return record


def trained_cameras(record: dict[str, Any]) -> int | None:
    """Read from a record how many cameras the smallest rig had that the network was trained on; None if it does not
    say.

    Raises:
        CorruptInput: it says something that is no number of cameras.
    """
    said: Any = record
    for key in ("training", "data", "cameras"):
        if not isinstance(said, dict):
            raise CorruptInput(f"the model's record has no mapping above '{key}', but: {shown(str(said))}")
        said = said.get(key, {} if key != "cameras" else None)
    if said is not None and not (type(said) is int and 0 < said <= MAX_CAMERAS):
        raise CorruptInput(
            f"the model's record says it was trained on {shown(str(said))} cameras, not 1..{MAX_CAMERAS}"
        )
    return said


def require_safetensors(path: Path) -> None:
    """Raise CorruptInput unless the file begins as safetensors does: a length, then a json object of that length."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or length > min(size - 8, MAX_HEADER_BYTES):
        raise CorruptInput(f"{path}: not a safetensors file; other formats (a pickle can run code) are not loaded")


def load_into(model: Any, tensors: dict[str, Any], path: Path) -> None:
    """Load tensors into a torch model; wrong names or shapes and values that are not finite raise an error of one
    line."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CorruptInput(f"{path}: the weights '{shown(name)}' are not finite numbers")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CorruptInput(f"{path}: the weights do not fit the model in its json: {reason}") from error
