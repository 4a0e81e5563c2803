"""Decides how many scenes are held out when there are fewer than the run asks for."""

from __future__ import annotations

import logging
from typing import NamedTuple

log = logging.getLogger(__name__)


class HoldOut(NamedTuple):
    """Numbers of scenes: the last ones validate, those before them fit thresholds, the others train."""

    validation: int
    thresholds: int


def hold_out(scenes: int, validation: int, thresholds: int = 0) -> HoldOut:
    """Hold out as many scenes as asked, if that leaves one to train on; otherwise half of the scenes, divided in the
    asked ratio.

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
