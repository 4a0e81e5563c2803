"""What a teacher's name says without loading it: whether it uses networks, and how many processes should run it."""

from __future__ import annotations

import os
from pathlib import Path

from occ_core.errors import need

MEASURED = ("oracle", "realistic", "lidar", "motion")
"""Teachers that are no networks, beside `files:DIR`."""


def parts_of(name: str) -> list[str]:
    """The teachers of a name such as `A+B+lidar`. A folder of `files:DIR` may have a `+` in its own name: of all that
    could be meant, the longest that is there is."""
    parts, found = name.split("+"), []
    while parts:
        count = 1
        if parts[0].startswith("files:"):
            ends = range(len(parts), 1, -1)
            count = next((n for n in ends if Path("+".join(parts[:n]).removeprefix("files:")).is_dir()), 1)
        found.append("+".join(parts[:count]))
        parts = parts[count:]
    return found


def is_network(name: str) -> bool:
    """Whether a teacher of this name, such as `grounded-sam+lidar`, uses a network."""
    return any(part not in ("", *MEASURED) and not part.startswith("files:") for part in parts_of(name))


def processes_for(name: str, device: str | None) -> int:
    """How many processes should run a teacher at once: for networks one for each GPU, or one without a GPU; else one
    for each core.

    Each of them takes its own GPU (`networks.pick_device`); on a CPU a network uses all cores by itself.
    """
    if not is_network(name):
        return os.cpu_count() or 1
    return max(1, need("torch", "teachers").cuda.device_count()) if device is None else 1
