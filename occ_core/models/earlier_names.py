"""What tensors and settings were called in checkpoints and configs of before, so that these still load.

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
}
"""The last part of a tensor's name, then and now."""

SETTINGS = {"memory_moments": "memory_frames"}
"""A key of a model's or a run's settings, then and now."""


def with_todays_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same tensors, each by the name that the networks give it today."""
    return {_today(name): tensor for name, tensor in tensors.items()}


def with_todays_settings(settings: Any) -> Any:
    """The same settings by the keys of today, at any depth of mappings; other values as they are."""
    if not isinstance(settings, dict):
        return settings
    return {SETTINGS.get(key, key): with_todays_settings(value) for key, value in settings.items()}


def _today(name: str) -> str:
    parents, _, own = name.rpartition(".")
    own = TENSORS.get(own, own)
    return f"{parents}.{own}" if parents else own
