"""What the loop asks of a kind of network: batches, their losses, a score. The loop knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.taxonomy import Taxonomy
from occ_core.training.config import TrainingConfig
from occ_core.training.ranks import Ranks


class Lessons(Protocol):
    """Data of one run and how a network learns from it.

    Attributes:
        phases: steps of each phase of the run; the learning rate rises and falls in each, and only the last one's
            weights are validated and shipped.
        fitted: tensors of the averaged network that `fit` sets, and that are no averages.
        taxonomy: classes of the confusion matrix.
        record: what the json beside the checkpoint says of the data.
    """

    phases: tuple[int, ...]
    fitted: frozenset[str]
    taxonomy: Taxonomy
    record: dict[str, Any]

    def batches(self, first_step: int) -> Iterator[Any]:
        """An endless stream, `accumulate` batches a step, that depends on seed, step and rank alone."""

    def losses(self, network: nn.Module, batch: Any, progress: float, average: nn.Module) -> dict[str, Tensor]:
        """Weighted terms by name. network: the one that trains, perhaps wrapped. progress: 0..1 of the run. average:
        the averaged network, in eval mode, for losses that ask it."""

    def fit(self, average: nn.Module) -> None:
        """Last touches to the averaged network before it is validated and saved."""

    def confusion(self, average: nn.Module) -> np.ndarray | None:
        """Cells by (truth, prediction) of this process's share of the held-out moments; None: nothing is held out."""


def open_lessons(config: TrainingConfig, ranks: Ranks, told: Any) -> Lessons:
    """The data of a run.

    Args:
        told: called with a line that says what is being read.
    """
    if isinstance(config.model, EasyOccConfig):
        from occ_core.training.nano import NanoLessons

        return NanoLessons(config, ranks, told)
    from occ_core.training.rig_lessons import RigLessons

    return RigLessons(config, ranks, told)
