"""A stretch of a bag, from one time to another, which counts as a recording of its own.

A folder with a small file, `stretch.json`, which says which; whatever opens a bag opens it. Labels and ego masks of the
stretch lie in the folder, as those of a bag do in the bag's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.files import read_json, write_atomically

STRETCH_FILE = "stretch.json"


@dataclass(frozen=True)
class Stretch:
    """The frames of `bag` whose key image is taken in [since_ns, until_ns)."""

    bag: Path
    since_ns: int
    until_ns: int

    def __post_init__(self) -> None:
        if self.since_ns >= self.until_ns:
            raise InvalidInput(f"a stretch must end after it begins, got {self.since_ns} to {self.until_ns} ns")

    def __contains__(self, stamp_ns: int) -> bool:
        return self.since_ns <= stamp_ns < self.until_ns

    def write(self, folder: Path) -> None:
        """Write the stretch into a folder, atomically; the file holds the bag's absolute path.

        Raises:
            CannotWrite.
        """
        record = asdict(self) | {"bag": str(self.bag.resolve())}
        write_atomically(folder / STRETCH_FILE, (json.dumps(record, indent=1) + "\n").encode())


def is_stretch(path: Path) -> bool:
    """Whether a folder is a stretch of a bag."""
    return (path / STRETCH_FILE).is_file()


def read_stretch(folder: Path) -> Stretch:
    """Read the stretch that a folder describes.

    Raises:
        CorruptInput: naming the fields.
    """
    path = folder / STRETCH_FILE
    record = read_json(path)
    bag, since_ns, until_ns = (record.get(name) for name in ("bag", "since_ns", "until_ns"))
    if not (isinstance(bag, str) and type(since_ns) is int and type(until_ns) is int):
        raise CorruptInput(f"{path}: needs 'bag', a path, and 'since_ns' and 'until_ns', whole numbers")
    try:
        return Stretch(Path(bag), since_ns, until_ns)
    except InvalidInput as error:
        raise CorruptInput(f"{path}: {error}") from error
