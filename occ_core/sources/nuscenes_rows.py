"""Rows of one JSON table of a nuScenes v1.0 data set, checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from occ_core.errors import CorruptInput


class Row(dict[str, Any]):
    """One row of the table in the file `path`: a field that it lacks is an error that names both."""

    __slots__ = ("path",)

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, field: str) -> Any:
        raise CorruptInput(f"{self.path}: row '{self.get('token')}' lacks '{field}'")


class Rows:
    """A table in its own order, and its rows by token.

    Raises:
        CorruptInput: naming the file, and the row that has no token of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CorruptInput(f"{path}: not a readable JSON table ({error})") from error
        if not isinstance(read, list) or not all(isinstance(row, dict) for row in read):
            raise CorruptInput(f"{path}: a table must be a list of rows, got {type(read).__name__}")
        self._rows: dict[str, Row] = {}
        for number, values in enumerate(read):
            row = Row(values, path)
            token = row.get("token")
            if not isinstance(token, str) or token in self._rows:
                raise CorruptInput(f"{path}: row {number} has the token {token!r}; each must have one of its own")
            self._rows[token] = row

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def of(self, row: Row, field: str) -> Row:
        """The row that `field` of another table's row names.

        Raises:
            CorruptInput: there is no such row, or no such field.
        """
        token = row[field]
        try:
            return self._rows[token]
        except (KeyError, TypeError):
            raise CorruptInput(
                f"{row.path}: row '{row['token']}' refers by {field} to '{token}', which {self.path.name} does not have"
            ) from None
