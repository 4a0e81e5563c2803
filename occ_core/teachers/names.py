"""What a teacher's name says without loading it: whether networks are asked, and how many processes should ask."""

from __future__ import annotations

import os

from occ_core.errors import need

MEASURED = ("oracle", "realistic", "lidar", "motion")
"""Teachers that are no networks, beside `files:DIR`."""


def is_network(name: str) -> bool:
    """Whether a teacher of this name, such as `grounded-sam+lidar`, asks a network."""
    return any(part not in ("", *MEASURED) and not part.startswith("files:") for part in name.split("+"))


def processes_for(name: str, device: str | None) -> int:
    """How many processes should ask a teacher at once: one a GPU for networks, one where none is, else one a core.

    Each of them takes its own GPU (`networks.pick_device`); on a CPU a network uses all cores by itself.
    """
    if not is_network(name):
        return os.cpu_count() or 1
    return max(1, need("torch", "teachers").cuda.device_count()) if device is None else 1
