"""Selective scan: a linear recurrence whose decay and weights come from the sequence itself.

The recurrence of Mamba (arXiv 2312.00752) with one decay for all channels of a head, as in Mamba-2 (arXiv 2405.21060):
then all that passes within a stretch of the sequence is one matrix product, which a CPU computes at its full speed. The
state at the end of each stretch follows from the same recurrence over the stretches, so cost is linear in the length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from occ_core.errors import InvalidInput

CHUNK = 32  # tokens that one matrix product mixes


def selective_scan(
    x: Tensor,  # [B, L, H, P]
    step: Tensor,  # [B, L, H], > 0
    rate: Tensor,  # [H], < 0
    b: Tensor,  # [B, L, N]
    c: Tensor,  # [B, L, N]
) -> Tensor:  # float32 [B, L, H, P]
    """Compute y_t = c_t . h_t, where h_t = exp(step_t rate) h_(t-1) + step_t b_t x_t, and h is zero before the first
    token.

    H heads of P channels, each channel with a state of N numbers. On CUDA `mamba_ssm` computes it, where installed.

    Raises:
        InvalidInput: shapes that do not go together.
    """
    batch, length, heads, _ = x.shape
    if step.shape != x.shape[:3] or rate.shape != (heads,) or b.shape != c.shape or b.shape[:2] != (batch, length):
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, step, rate, b, c))
        raise InvalidInput(f"x, step, rate, b, c must be [B, L, H, P], [B, L, H], [H], [B, L, N] twice, got {shapes}")
    with torch.autocast(x.device.type, enabled=False):  # sums over thousands of tokens
        x, step, rate, b, c = (tensor.float() for tensor in (x, step, rate, b, c))
        kernel = _cuda_kernel() if x.is_cuda else None
        return _chunked(x, step, rate, b, c) if kernel is None else _on_cuda(kernel, x, step, rate, b, c)


def _chunked(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    batch, length, heads, channels = x.shape
    states = b.shape[2]
    rest = -length % CHUNK
    decay = F.pad(step * rate, (0, 0, 0, rest)).unflatten(1, (-1, CHUNK)).transpose(2, 3)  # [B, K, H, T], logarithms
    x = F.pad(x * step[..., None], (0, 0, 0, 0, 0, rest)).unflatten(1, (-1, CHUNK)).transpose(2, 3)  # [B, K, H, T, P]
    b, c = (F.pad(t, (0, 0, 0, rest)).unflatten(1, (-1, CHUNK)) for t in (b, c))  # [B, K, T, N]
    total = decay.cumsum(-1)
    within = (c @ b.transpose(-1, -2))[:, :, None] * _between(total)  # [B, K, H, T, T]
    y = within @ x
    left = x * (total[..., -1:] - total).exp()[..., None]  # what of each token is left at the end of its chunk
    ends = b.transpose(-1, -2)[:, :, None] @ left  # [B, K, H, N, P]
    before = _carried(total[..., -1], ends.flatten(3)).reshape(batch, -1, heads, states, channels)
    y = y + (c[:, :, None] @ before) * total.exp()[..., None]
    return y.transpose(2, 3).flatten(1, 2)[:, :length]


def _carried(
    decay: Tensor,  # [B, K, H], logarithms
    added: Tensor,  # [B, K, H, F]
) -> Tensor:  # [B, K, H, F]
    """The state before each chunk, given what each chunk adds to it; many chunks are themselves grouped into chunks."""
    count = decay.shape[1]
    rest = -count % CHUNK
    total = F.pad(decay, (0, 0, 0, rest)).unflatten(1, (-1, CHUNK)).transpose(2, 3).cumsum(-1)  # [B, K', H, T]
    added = F.pad(added, (0, 0, 0, 0, 0, rest)).unflatten(1, (-1, CHUNK)).transpose(2, 3)  # [B, K', H, T, F]
    after = _between(total) @ added
    if total.shape[1] > 1:
        before = _carried(total[..., -1], after[..., -1, :])  # [B, K', H, F]
        after = after + total.exp()[..., None] * before[..., None, :]
    after = after.transpose(2, 3).flatten(1, 2)[:, :count]
    return F.pad(after[:, :-1], (0, 0, 0, 0, 1, 0))


def _between(total: Tensor) -> Tensor:
    """From logarithms of decay since the start, [..., T], to the share of token s that is left at t, [..., T, T]; 0 for
    s after t."""
    size = total.shape[-1]
    never = torch.full((size, size), -torch.inf, device=total.device).triu(1)
    return (total[..., :, None] - total[..., None, :] + never).exp()


def _cuda_kernel() -> Any:
    """Return `selective_scan_fn` of the package mamba_ssm, or None."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _on_cuda(kernel: Any, x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Call the CUDA kernel, whose layout is [B, channels, L]; each channel has its own step, and each number of its
    state a rate."""
    heads, channels, states = x.shape[2], x.shape[3], b.shape[2]
    rows = x.flatten(2).transpose(1, 2).contiguous()
    steps = step.repeat_interleave(channels, dim=2).transpose(1, 2).contiguous()
    rates = rate.repeat_interleave(channels)[:, None].repeat(1, states)
    y = kernel(rows, steps, rates, b.transpose(1, 2).contiguous(), c.transpose(1, 2).contiguous())
    return y.transpose(1, 2).unflatten(2, (heads, channels))
