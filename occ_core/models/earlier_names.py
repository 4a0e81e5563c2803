"""Earlier names of tensors and settings, so that checkpoints and configs that were written with them still load.

A name that is changed gets a line here and nowhere else.
"""

from __future__ import annotations

from typing import Any

TENSORS = {
    "trust": "hazard_weight",  # EasyOcc nano
    "sight": "reached_weight",
    "seen": "observed_threshold",
    "seen_logit": "observed_threshold",  # EasyOcc
    "trust_in_pixels": "pixel_weight",  # OccLE
    "place": "voxel_weight",  # OccNeRF
}
"""The last part of a tensor's name, then and now."""

GONE = {"survival"}  # of EasyOcc nano
"""The last part of the names of tensors that no network has any more."""

SETTINGS = {"memory_moments": "memory_frames"}
"""A key of a model's or a run's settings, then and now."""


def with_todays_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the same tensors under the names that the networks use today, without those that none has any more."""
    return {_today(name): tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in GONE}


def with_todays_settings(settings: Any) -> Any:
    """Return the same settings under today's keys, in mappings of any depth; other values are not changed."""
    if not isinstance(settings, dict):
        return settings
    return {SETTINGS.get(key, key): with_todays_settings(value) for key, value in settings.items()}


def _today(name: str) -> str:
    parents, _, own = name.rpartition(".")
    own = TENSORS.get(own, own)
    return f"{parents}.{own}" if parents else own
