"""The sampler: which samples each training step takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from occ_core.training.ranks import batch_of_all


class BatchSampler:
    """Batch sampler of one process: an endless list of batches from `first_step` on.

    A batch is a list of (serial number, index of the sample). It depends on seed and serial number alone: a resumed run
    takes the samples that an unbroken one would have taken, and a step takes the same samples however they are divided
    among processes and accumulated batches.

    Args:
        count: samples of the data.
        batch_size, accumulate: samples in a batch, batches in a step of one process.
        rank, world: which of how many processes.
        labelled: indices of the labelled samples. labelled_share: of all draws, evenly spread, that take one of these;
            the others take the rest. None, or if all or none are labelled: each sample as often as any other.
        stream: number of the random stream of their order.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        first_step: int = 0,
        labelled: Sequence[int] = (),
        labelled_share: float | None = None,
        stream: int = 2,
    ) -> None:
        self.stream = stream
        self.seed, self.batch_size, self.accumulate = seed, batch_size, accumulate
        self.rank, self.world, self.first_step = rank, world, first_step
        rest = sorted(set(range(count)) - set(labelled))
        self.share = labelled_share if labelled and rest else None
        self._pools = [np.arange(count)] if self.share is None else [np.array(rest), np.array(labelled)]
        self._orders: list[tuple[int, np.ndarray]] = [(-1, pool) for pool in self._pools]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch = self.first_step * self.accumulate
        while True:
            first = batch_of_all(batch, self.rank, self.world, self.seed) * self.batch_size
            yield [(serial, self._sample_index(serial)) for serial in range(first, first + self.batch_size)]
            batch += 1

    def _sample_index(self, serial: int) -> int:
        if self.share is None:
            return self._nth(0, serial)
        before, until = math.floor(serial * self.share), math.floor((serial + 1) * self.share)
        return self._nth(1, before) if until > before else self._nth(0, serial - before)

    def _nth(self, pool: int, position: int) -> int:
        """Element `position` of an endless list in which each sample of the pool comes once in every epoch."""
        samples = self._pools[pool]
        epoch, order = self._orders[pool]
        if position // len(samples) != epoch:
            epoch = position // len(samples)
            salt = [pool] if pool else []
            order = samples[np.random.default_rng([self.seed, self.stream, epoch, *salt]).permutation(len(samples))]
            self._orders[pool] = epoch, order
        return int(order[position % len(samples)])
