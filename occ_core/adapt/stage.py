"""What is done once: a stage's result is kept in a small file, with the hash of what it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from occ_core.errors import CorruptInput
from occ_core.files import read_json, write_atomically

FOLDER = "stages"


class Stages:
    """The stages of one folder, each done again only where something before it became another.

    Args:
        out: holds `stages/<name>.json`, written when a stage is done.
        asked: what the whole run depends on, in JSON's types.
    """

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        self._folder = out / FOLDER
        self._key = _hash(asked)

    def once(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` returns, in JSON's types; or returned when it was done, on what is here now.

        Work leaves whole files or none, and begins where a killed one stopped.
        """
        path, key = self._folder / f"{name}.json", _hash([self._key, name])
        record = self._read(path)
        if record.get("of") != key:
            record = {"of": key, "result": json.loads(json.dumps(work()))}
            write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        self._key = _hash([key, record["result"]])
        result: dict[str, Any] = record["result"]
        return result

    def is_done(self, name: str) -> bool:
        """Whether the next stage, of this name, would not work."""
        return self._read(self._folder / f"{name}.json").get("of") == _hash([self._key, name])

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read_json(path)
        except (OSError, CorruptInput):
            return {}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
