"""Checks all files that a run will read before its first step, so that a missing one costs a minute and not a night."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from occ_core.errors import CorruptInput, MissingInput, OccError
from occ_core.files import is_there
from occ_core.images import compressed_info

TAIL_BYTES = 1024
ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND"}  # by how an image begins: what its end holds


def require_files(paths: Iterable[Path]) -> None:
    """Check images (JPEG, PNG), labels (npz) and other files, each once. Nothing is decoded.

    Raises:
        MissingInput, CorruptInput: naming the first file that is missing, empty or cut, and how many there are.
    """
    once = list(dict.fromkeys(paths))
    faults = [(path, fault) for path in once if (fault := fault_of(path)) is not None]
    if faults:
        path, fault = faults[0]
        kind = CorruptInput if is_there(path) else MissingInput
        raise kind(f"{path}: {fault}; {len(faults)} of the {len(once)} files that the run reads cannot be used")


def fault_of(path: Path) -> str | None:
    """Say why a file cannot be read, judged by its first and last bytes; None if they look right."""
    if not is_there(path):
        return "is missing or empty"
    if path.suffix == ".npz":
        return None if zipfile.is_zipfile(path) else "is cut short or no npz file"
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        return _image_fault(path)
    return None


def _image_fault(path: Path) -> str | None:
    with open(path, "rb") as file:
        begin = file.read(3)
        file.seek(-min(TAIL_BYTES, path.stat().st_size), 2)
        if begin in ENDS and ENDS[begin] in file.read():
            return None
    try:
        compressed_info(path.read_bytes())  # what follows the image may be longer than the tail
    except OccError as error:
        return str(error)
    return None
