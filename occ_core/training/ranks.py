"""The processes of one run: one, or as many as `torchrun` started; they differ in the samples they draw."""

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
    """Number of a process's `batch`-th batch among those of all processes, which take turns at random: in a fixed
    order, the labelled samples could all be one process's."""
    turn = rank + int(np.random.default_rng([seed, 3, batch]).integers(world))
    return batch * world + turn % world


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` processes, and the device that it trains on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The one process that logs and saves."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The same in every process: the sum over processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, device=self.device)  # a copy: it is summed in place
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def any(self, value: bool) -> bool:
        """The same in every process: true if it is anywhere."""
        return bool(self.sum(np.array([value], dtype=np.int64))[0])

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's running statistics; weights are alike anyway."""
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
