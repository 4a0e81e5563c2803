"""Lifting image features into the grid by one gather through a look-up table."""

from __future__ import annotations

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """`index_select` on axis 0 whose backward scatters with int64 indices: 10x faster on CPU than autograd's own."""

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = rows.shape
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_add_(0, index.long(), grad.contiguous()), None


def gather_rows(
    rows: Tensor,  # [R, C]
    index: Tensor,  # [K] int32 or int64; R means "seen by no camera"
) -> Tensor:  # [K, C]
    """Rows by index; index R gives zeros. Exports to one ONNX Gather on axis 0."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    if padded.requires_grad:
        return _GatherRows.apply(padded, index)
    return padded.index_select(0, index)


def depth_evidence(
    logits: Tensor,  # [N, D, h, w]: along the ray of each feature pixel
) -> Tensor:  # [N * h * w * D, 2]
    """What each depth bin of each viewing ray says: probability that the ray ends in it, and that it goes beyond it.

    The surface is a categorical distribution over the bins and "beyond all of them", whose logit is fixed at 0.
    """
    n, d, h, w = logits.shape
    rows = logits.permute(0, 2, 3, 1).reshape(n * h * w, d)
    hit = torch.softmax(torch.cat([rows, rows.new_zeros(rows.shape[0], 1)], dim=1), dim=1)
    beyond = torch.ones(d + 1, d, dtype=rows.dtype, device=rows.device).tril(-1)
    passed = hit @ beyond  # passed[:, k] = sum of hit[:, k + 1:]; a product, since CumSum is rare in runtimes
    return torch.stack([hit[:, :d], passed], dim=2).reshape(n * h * w * d, 2)
