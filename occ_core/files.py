"""Files that are there whole or not at all, and records that are read within bounds."""

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
    """The file exists and is not empty."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def require_writable(folder: Path) -> None:
    """Make the folder where it is absent, and raise CannotWrite if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CannotWrite(f"{folder}: cannot be written ({error.strerror or error})") from error


def content_key(paths: Iterable[Path]) -> str:
    """Hash of what files hold and are called, not of where they are or when they came there; absent ones are so."""
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
    """The object in a JSON file.

    Raises:
        CorruptInput: too large, no JSON, or no object.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_JSON_BYTES + 1)
    return parse_json(text, str(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """The object that a JSON text holds; `where` it is from begins the error message.

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
    """In the user's cache folder; of a user without a home, a folder that is not there and cannot be made."""
    try:
        home = Path.home()
    except RuntimeError:  # a container's number without an entry in /etc/passwd
        home = Path("/nonexistent")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "occ_core"
