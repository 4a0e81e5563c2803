"""A signed distance field on the vertices of the grid: its gradient, its regularisers, and its weights along rays.

Distances are metres, positive in free space. Vertices run from border to border of the grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA_LIMIT = 1 - 1e-6  # keeps the transmittance, and with it the gradient of its product, away from 0


def sdf_gradient(
    sdf_m: Tensor,  # [B, X, Y, Z]
    spacing_m: tuple[float, float, float],  # between vertices along x, y, z
) -> Tensor:  # [B, X, Y, Z, 3]
    """Central differences, one-sided at the borders; the gradient has no unit."""
    return torch.stack(torch.gradient(sdf_m, spacing=list(spacing_m), dim=[1, 2, 3]), dim=-1)


def eikonal_loss(
    gradient: Tensor,  # [..., 3]
) -> Tensor:
    """Mean of (|gradient| - 1)^2: 0 of a distance field (Gropp et al., arXiv 2002.10099)."""
    return (torch.linalg.vector_norm(gradient, dim=-1) - 1).square().mean()


def hessian_loss(
    sdf_m: Tensor,  # [B, X, Y, Z]
) -> Tensor:
    """Mean absolute second difference of neighbouring vertices, over the three axes; metres. 0 of planes (SelfOcc)."""
    return torch.stack([sdf_m.diff(n=2, dim=axis).abs().mean() for axis in (1, 2, 3)]).mean()


def sparsity_loss(
    sdf_m: Tensor,  # [B, X, Y, Z]
) -> Tensor:
    """Mean depth below the surface, metres: mean of relu(-sdf), as SelfOcc publishes it."""
    # It pulls vertices inside of things towards the surface, so what no ray supports thins out and becomes free; free
    # vertices feel nothing. (The name suggests a term on all vertices; it is not.)
    return F.relu(-sdf_m).mean()


def sharpness(
    v: Tensor,  # scalar, learned
) -> Tensor:
    """s = exp(10 v), 1/m: how sharply the field turns into surface (NeuS, arXiv 2106.10689)."""
    return (10 * v).exp().clamp(1e-6, 1e6)


def neus_weights(
    sdf_m: Tensor,  # [R, S], at samples in order along each ray
    slope: Tensor,  # [R, S], change of the field per metre along the ray
    step_m: Tensor,  # [R, 1] or [R, S], length of the interval around each sample
    s: Tensor,  # scalar, see `sharpness`
    anneal: float = 1.0,  # 0 at the start of training .. 1
) -> Tensor:  # [R, S]
    """The share of each ray that ends at each sample; what is left to 1 passes them all.

    NeuS (arXiv 2106.10689, eq. 13): the field at both ends of the interval is extrapolated with the slope, of which
    only the falling part counts; before `anneal` is 1, half of a slope (and 0.5 of a level field) counts too, so that
    a surface can appear where there is none.
    """
    falling = -(F.relu(0.5 - 0.5 * slope) * (1 - anneal) + F.relu(-slope) * anneal)
    half = falling * step_m / 2
    before, after = torch.sigmoid((sdf_m - half) * s), torch.sigmoid((sdf_m + half) * s)
    alpha = ((before - after + 1e-5) / (before + 1e-5)).clamp(0, ALPHA_LIMIT)
    passed = torch.cumprod(1 - alpha, dim=-1)
    return alpha * F.pad(passed[:, :-1], (1, 0), value=1.0)
