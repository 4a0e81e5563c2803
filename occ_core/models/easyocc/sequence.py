"""Sequences of frames, for a network with memory: how it learns from them, and how it answers them one by one.

A sequence is a frame and some frames before it. The image network and all batch norms are frozen, so that the state is
the one that a deployed network keeps. Gradients reach back through one step: the network learns to keep what helps it
to answer the next frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from occ_core.models.easyocc.inputs import SampleSequence, TableImages
from occ_core.models.easyocc.logits import CellLogits, Hidden
from occ_core.models.easyocc.past import Memory
from occ_core.models.voxel_answer import VoxelAnswer

if TYPE_CHECKING:
    from occ_core.models.easyocc.model import EasyOcc


def last_columns(model: EasyOcc, sequence: SampleSequence) -> Tensor:
    """`Hidden.columns` of the sequence's newest frame, with what the network remembers of the others."""
    model.eval()
    state: Tensor | None = None
    motion: Tensor | None = None
    for k, frame in enumerate(sequence.frames):
        if state is not None:
            motion = sequence.then_from_now[k - 1]
            state = state * sequence.linked[k - 1, :, None, None, None]
        with torch.no_grad():
            lifted = model.lifted(model.views(frame.images, frame.rays), *frame.table)
        with torch.set_grad_enabled(k + 2 >= len(sequence.frames)):
            columns, state = model.columns(lifted, state, motion)
    return columns


class SequentialModel:
    """A network in eval mode that answers frames one by one in order of scene and time, as on a robot; with a memory it
    remembers earlier frames."""

    def __init__(self, model: EasyOcc, answer_of: Callable[[CellLogits], tuple[Tensor, Tensor, Tensor]]) -> None:
        self._model, self._answer_of = model, answer_of
        self._memory = Memory(model.config) if model.config.memory_channels else None

    @torch.no_grad()
    def hidden(self, inputs: TableImages) -> Hidden:
        past: list[Tensor] = []
        if self._memory is not None:
            past = [torch.from_numpy(array).to(inputs.images.device) for array in self._memory.before(inputs.pose)]
        hidden = self._model.hidden(inputs.images, *inputs.table, inputs.rays, *past)
        if self._memory is not None and hidden.state is not None:
            self._memory.keep(hidden.state.cpu().numpy(), inputs.pose)
        return hidden

    @torch.no_grad()
    def answer(self, inputs: TableImages) -> VoxelAnswer:
        return VoxelAnswer(*self._answer_of(self._model.cells(self.hidden(inputs).columns)))
