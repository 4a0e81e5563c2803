"""Moments in a row, for a network with memory: how it learns from them, and how it is judged on a whole scene.

A chain is a moment and some before it. The image network stands still and the batch norms with it, so what is kept of a
moment is what a deployed network keeps. Gradients reach back through one step: what is kept is learned from what it was
good for. How many moments there are before is drawn for each chain; none, too, so that the network still answers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.model import EasyOcc, Hidden
from occ_core.models.easyocc.past import Memory, Moment, refusal, then_from_now
from occ_core.training.cache import SceneCache
from occ_core.training.config import TrainingConfig
from occ_core.training.data import Batch, Draw, Sample, collate, pick_columns, read_sample, tensors_of

NO_COLUMNS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Chain:
    """K moments of B robots, the newest last; losses are on its columns alone.

    Attributes:
        linked: bool (K - 1, B), whether there was something before; where not, the moment before stands in for nothing.
        then_from_now: float32 (K - 1, B, 2, 3), from each moment but the first to the one before.
    """

    moments: list[Batch]
    linked: np.ndarray
    then_from_now: np.ndarray


class DrawChains:
    """As Draw, of chains: each moment of them is mirrored, recoloured and blinded alike."""

    def __init__(self, scenes: list[SceneCache], rare: np.ndarray, config: TrainingConfig, step: int = 0):
        self._draw = Draw(scenes, rare, config, step)

    def __next__(self) -> Chain:
        """Depends on the seed and the step alone."""
        draw, c = self._draw, self._draw.config
        rng = np.random.default_rng([c.seed, 5, draw.step])
        before = int(rng.integers(c.nano.memory_moments + 1))
        rows = [self._row(*draw.place(k), before, rng) for k in range(c.batch_size)]
        columns = [pick_columns(row[-1].labels, c.nano.columns, draw.rare, rng) for row in rows]
        draw.step += 1
        return chained(rows, columns, draw.model)

    def _row(self, scene: SceneCache, i: int, before: int, rng: np.random.Generator) -> list[Sample]:
        """The moment `i` of a scene and at most so many before it, as far as a network may remember."""
        first = i
        while first > 0 and i - first < before and _follows(scene, first):
            first -= 1
        alike = int(rng.integers(2**32))
        return [self._draw.augmented(scene, j, np.random.default_rng(alike)) for j in range(first, i + 1)]


def chained(rows: list[list[Sample]], columns: list[np.ndarray], config: EasyOccConfig) -> Chain:
    """Rows of moments, the newest last; a row that begins later than others waits with its first moment.

    Args:
        columns: of each row's newest moment.
    """
    length = max(map(len, rows))
    linked = np.zeros((length - 1, len(rows)), dtype=bool)
    motion = np.zeros((length - 1, len(rows), 2, 3), dtype=np.float32)
    for b, row in enumerate(rows):
        for k, (then, now) in enumerate(pairwise(row), start=length - len(row)):
            linked[k, b], motion[k, b] = True, then_from_now(then.world_from_ego, now.world_from_ego)
    waiting = [[row[0]] * (length - len(row)) + row for row in rows]
    none = [NO_COLUMNS] * len(rows)
    before = [collate(list(samples), none, config) for samples in list(zip(*waiting, strict=True))[:-1]]
    return Chain([*before, collate([row[-1] for row in rows], columns, config)], linked, motion)


def _follows(scene: SceneCache, i: int) -> bool:
    return refusal(moment_of(scene, i - 1), moment_of(scene, i)) is None


def moment_of(scene: SceneCache, i: int) -> Moment:
    stamp_ns, pose, rig = (scene[name][i] for name in ("stamp_ns", "world_from_ego", "rig"))
    return Moment(int(stamp_ns), np.array(pose), scene.name, str(int(rig)))


def last_columns(model: EasyOcc, chain: Chain, device: torch.device) -> Tensor:
    """`Hidden.columns` of the chain's newest moment, with what the network remembers of the others."""
    model.eval()
    state: Tensor | None = None
    motion: Tensor | None = None
    for k, moment in enumerate(chain.moments):
        batch = {name: tensor.to(device) for name, tensor in tensors_of(moment).items()}
        if state is not None:
            linked, motion = (
                torch.from_numpy(array[k - 1]).to(device) for array in (chain.linked, chain.then_from_now)
            )
            state = state * linked[:, None, None, None]
        with torch.no_grad():
            views = model.views(batch["images"], batch["rays"])
            lifted = model.lifted(views, batch["voxel_index"], batch["pillar_index"])
        with torch.set_grad_enabled(k + 2 >= len(chain.moments)):
            columns, state = model.columns(lifted, state, motion)
    return columns


@torch.no_grad()
def follow(model: EasyOcc, scene: SceneCache) -> Iterator[tuple[Sample, Hidden]]:
    """Each moment of a scene in turn, as a robot meets them: a network with memory remembers those before."""
    memory = Memory(model.config) if model.config.memory_channels else None
    for i in range(len(scene.tokens)):
        sample = read_sample(scene, i, model.config)
        batch = tensors_of(collate([sample], [NO_COLUMNS], model.config))
        inputs = [batch[name] for name in ("images", "voxel_index", "pillar_index", "rays")]
        moment = moment_of(scene, i)
        past = () if memory is None else map(torch.from_numpy, memory.before(moment))
        hidden = model.hidden(*inputs, *past)
        if memory is not None and hidden.state is not None:
            memory.keep(hidden.state.numpy(), moment)
        yield sample, hidden
