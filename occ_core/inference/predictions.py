"""Prediction files: one `<token>.npz` a frame, which says what made it, so that none is taken for another model's."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occ_core.errors import InvalidInput
from occ_core.files import write_atomically

CURE = "choose another folder, or make all anew with --overwrite"


class MadeBy(NamedTuple):
    """What a prediction depends on: `model`, the hash of the model's file, and `images`, the hash of what its frame was
    read from."""

    model: str
    images: str


def save_prediction(
    path: Path,
    labels: np.ndarray,
    observed: np.ndarray | None = None,
    made_by: MadeBy | None = None,
    confidence: np.ndarray | None = None,
) -> None:
    """Write `<token>.npz` atomically: `pred`, uint8 (X, Y, Z), which the field's evaluators read, `observed`, and
    `confidence`, kept as uint8; and as texts of one element, what made it.

    Args:
        confidence: 0..1 (X, Y, Z), as of Occupancy.

    Raises:
        CannotWrite.
    """
    arrays: dict[str, Any] = {"pred": labels}  # Any: numpy's own keyword of savez stands beside the names
    if observed is not None:
        arrays["observed"] = observed
    if confidence is not None:
        arrays["confidence"] = np.rint(255 * np.clip(confidence, 0, 1)).astype(np.uint8)
    if made_by is not None:
        arrays |= {name: np.array(value) for name, value in made_by._asdict().items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def made_by(path: Path) -> MadeBy | None:
    """Read what made a prediction; fields that the file does not have are empty. None: the file is missing or cut."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as record:
            return MadeBy(*(str(record[name]) if name in record.files else "" for name in MadeBy._fields))
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None


def lacking(files: list[Path], model: str, images: Callable[[int], str]) -> list[bool]:
    """Return the predictions that have to be made; cut files are made again.

    Args:
        files: of one folder, which may hold those of other frames, too.
        model: hash of the one that predicts.
        images: hash of what the frame of a number is read from; asked of predictions that are there.

    Raises:
        InvalidInput: a file in the folder is of another model or of other images, or does not say.
    """
    there = {path: made_by(path) for folder in {path.parent for path in files} for path in sorted(folder.glob("*.npz"))}
    for path, found in there.items():
        if found is not None and found.model != model:
            why = "was made by another model" if found.model else "does not say which model made it"
            raise InvalidInput(f"{path}: {why}; {CURE}")
    for number, path in enumerate(files):
        found = there.get(path)
        if found is not None and found.images != images(number):
            raise InvalidInput(f"{path}: was made of other images than are here now; {CURE}")
    return [there.get(path) is None for path in files]


def remove_others(folder: Path, model: str) -> int:
    """Remove the predictions of other models, which would be scored together with this one's; returns how many.

    Files that do not say who made them stay: they are somebody else's.
    """
    found = [(path, made_by(path)) for path in sorted(folder.glob("*.npz"))]
    others = [path for path, made in found if made is not None and made.model not in ("", model)]
    for path in others:
        path.unlink()
    return len(others)


def model_key(path: Path, *settings: str) -> str:
    """Hash a model's file, the json beside a checkpoint, and the settings that change its answers."""
    digest = hashlib.sha256()
    for part in (path, *([path.with_suffix(".json")] if path.suffix == ".safetensors" else [])):
        digest.update(part.read_bytes())
    digest.update(" ".join(settings).encode())
    return digest.hexdigest()[:32]
