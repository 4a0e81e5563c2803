"""The processes of one run: a single one, or as many as `torchrun` started; each draws its own samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from occ_core.errors import InvalidInput


def batch_of_all(batch: int, rank: int, world: int, seed: int) -> int:
    """Number a process's `batch`-th batch among those of all processes. They take turns in a random order: in a fixed
    one, a single process could get all labelled samples."""
    turn = rank + int(np.random.default_rng([seed, 3, batch]).integers(world))
    return batch * world + turn % world


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `world` processes, and the device that it trains on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one process that logs and saves."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum values over all processes; each gets the same result."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, device=self.device)  # a copy: it is summed in place
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process; each gets the same result."""
        return bool(self.sum(np.array([value], dtype=np.int64))[0])

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the first process's running statistics to all others; their weights are equal anyway."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


ALONE = Ranks(0, 1, torch.device("cpu"))


@contextmanager
def joined(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the other processes, if `torchrun` started several (gloo on CPU, nccl on CUDA); leave them at the end.

    Raises:
        InvalidInput: CUDA is asked for where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device is 'cuda', but this torch finds no CUDA device; use 'cpu' or 'auto'")
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    own_device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    if world == 1:
        yield Ranks(0, 1, own_device)
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world, own_device)
    finally:
        dist.destroy_process_group()
