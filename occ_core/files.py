"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from occ_core.errors import CannotWrite


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


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        CannotWrite: no permission and the like.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"{path}: cannot remove it ({error.strerror or error})") from error
