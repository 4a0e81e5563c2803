"""Writes files that are there whole or not at all, and reads records within bounds."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from occ_core.errors import CannotWrite, CorruptInput
from occ_core.limits import MAX_JSON_BYTES


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, and its folder where that is absent; whoever reads `path` sees all of `data` or what was before.

    Raises:
        CannotWrite: full disk, no permission and the like; nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotWrite(f"{path}: cannot write {len(data)} bytes ({error.strerror or error})") from error


def is_there(path: Path) -> bool:
    """Whether the file exists and is not empty."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def require_writable(folder: Path) -> None:
    """Make the folder if it is missing, and raise CannotWrite if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CannotWrite(f"{folder}: cannot be written ({error.strerror or error})") from error


def content_key(paths: Iterable[Path]) -> str:
    """Hash the content and names of files, not where they are or when they came there; missing files count as
    missing."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        data = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.name} {len(data)} ".encode() + data)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        CannotWrite: no permission and the like.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"{path}: cannot remove it ({error.strerror or error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        CorruptInput: too large, no JSON, or no object.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_JSON_BYTES + 1)
    return parse_json(text, str(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Read the object in a JSON text; error messages begin with `where`.

    Raises:
        CorruptInput: too large, no JSON, or no object.
    """
    if len(text) > MAX_JSON_BYTES:
        raise CorruptInput(f"{where}: more than {MAX_JSON_BYTES} bytes, the limit of a JSON record")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of 5000 digits, nested too deep
        raise CorruptInput(f"{where}: not a JSON file ({error})") from error
    if not isinstance(record, dict):
        raise CorruptInput(f"{where}: must be a JSON object, is {type(record).__name__}")
    return record


def default_cache() -> Path:
    """A folder in the user's cache; for a user without a home, a folder that does not exist and cannot be made."""
    try:
        home = Path.home()
    except RuntimeError:  # a container's number without an entry in /etc/passwd
        home = Path("/nonexistent")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "occ_core"
