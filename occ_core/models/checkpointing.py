"""Gradient checkpointing: activations are computed again in the backward pass and not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    """Compute `module(x)`; where `checkpointed` and a gradient is wanted, only `x` is kept in memory."""
    if not (checkpointed and torch.is_grad_enabled()):
        return module(x)
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_means_kept(module)))


@contextmanager
def _running_means_kept(module: nn.Module) -> Iterator[None]:
    """Keep the second pass from counting its batch again in the running means of batch norms."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
