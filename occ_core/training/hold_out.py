"""How many scenes are kept from training where there are fewer than a run was written for."""

from __future__ import annotations

import logging
from typing import NamedTuple

log = logging.getLogger(__name__)


class HoldOut(NamedTuple):
    """Scenes: the last ones are for validation, those before them to fit thresholds on, the others train."""

    validation: int
    thresholds: int


def hold_out(scenes: int, validation: int, thresholds: int = 0) -> HoldOut:
    """As many as are asked for where that leaves a scene to train on; else half of the scenes, shared as asked.

    Says in one line what it chose where that is not what was asked.
    """
    asked = HoldOut(validation, thresholds)
    if not scenes or sum(asked) < scenes or not sum(asked):
        return asked
    half = scenes // 2
    first = min(validation, max(1, half * validation // sum(asked)), half)
    chosen = HoldOut(first, min(thresholds, half - first))
    log.warning(
        "%d scenes are fewer than the run holds out: %d train, %d of %d validate, %d of %d fit thresholds",
        *(scenes, scenes - sum(chosen), chosen.validation, validation, chosen.thresholds, thresholds),
    )
    return chosen
