"""Losses that compare an image with its neighbours in time, seen through a depth map.

Pixel coordinates are (u, v) with (0, 0) at the centre of the top-left pixel; images are float in 0..1.
Sources: Monodepth2 (Godard et al., arXiv 1806.01260, equations 1 to 5); SSIM (Wang et al., IEEE TIP 2004, equation 13).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2  # SSIM's stabilisers for values in 0..1
SSIM_SHARE = 0.85
WHOLE = 0.999  # all four pixels that a value comes from show the world
NEAREST_M = 0.1  # points nearer to the neighbour's image plane, or behind it, are not in its image


def as_float(
    images: Tensor,  # uint8 [..., H, W, 3]
) -> Tensor:  # float32 [..., 3, H, W] in 0..1
    """Convert images to the form in which losses compare them."""
    return images.movedim(-1, -3).float() / 255


def ssim(
    a: Tensor,  # [N, C, h, w]
    b: Tensor,  # [N, C, h, w]
) -> Tensor:  # [N, C, h, w] in -1..1
    """Structural similarity in 3 x 3 windows of equal weights; borders are mirrored."""
    a, b = (F.pad(image.float(), (1, 1, 1, 1), mode="reflect") for image in (a, b))
    mean_a, mean_b = F.avg_pool2d(a, 3, 1), F.avg_pool2d(b, 3, 1)
    variance_a = F.avg_pool2d(a * a, 3, 1) - mean_a * mean_a
    variance_b = F.avg_pool2d(b * b, 3, 1) - mean_b * mean_b
    covariance = F.avg_pool2d(a * b, 3, 1) - mean_a * mean_b
    above = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    below = (mean_a * mean_a + mean_b * mean_b + C1) * (variance_a + variance_b + C2)
    return above / below


def photometric_error(
    a: Tensor,  # [N, C, h, w]
    b: Tensor,  # [N, C, h, w]
) -> Tensor:  # [N, 1, h, w]
    """0.85 (1 - SSIM) / 2 + 0.15 |a - b|, mean over channels (Monodepth2, equation 2)."""
    unlike = ((1 - ssim(a, b)) / 2).clamp(0, 1).mean(1, keepdim=True)
    return SSIM_SHARE * unlike + (1 - SSIM_SHARE) * (a - b).abs().mean(1, keepdim=True)


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Centres (u, v) of all pixels, float32 [height, width, 2]."""
    v, u = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([u, v], dim=-1)


def reproject(
    pixels: Tensor,  # [N, K, 2]
    depth_m: Tensor,  # [N, K] along the optical axis
    intrinsics: Tensor,  # [N, 3, 3], of both images
    neighbour_from_cam: Tensor,  # [N, 4, 4]
) -> tuple[Tensor, Tensor]:
    """Project the points seen at `pixels` into the neighbour's image; returns pixels [N, K, 2] and depth_m [N, K]
    there."""
    # In float64 and without large matrix products: reduced precision (autocast, TF32) would move points by pixels.
    k, motion = intrinsics.double(), neighbour_from_cam.double()
    turn = (k @ motion[:, :3, :3] @ k.inverse()).float()[:, :, :, None]  # [N, 3, 3, 1]
    shift = (k @ motion[:, :3, 3:]).float()  # [N, 3, 1]
    u, v = pixels.unbind(-1)
    x, y, there_m = (
        (m[:, 0] * u + m[:, 1] * v + m[:, 2]) * depth_m + s
        for m, s in zip(turn.unbind(1), shift.unbind(1), strict=True)
    )
    return torch.stack([x, y], dim=-1) / there_m.clamp(min=NEAREST_M).unsqueeze(-1), there_m


def sample_image(
    images: Tensor,  # [N, C, H, W]
    pixels: Tensor,  # [N, K, 2]
) -> tuple[Tensor, Tensor]:
    """Bilinear values [N, C, K], and whether all four pixels they come from are in the image, bool [N, K]."""
    size = images.new_tensor([images.shape[3], images.shape[2]])
    inside = ((pixels >= 0) & (pixels <= size - 1)).all(dim=-1)
    normalised = (2 * pixels + 1) / size - 1
    values = F.grid_sample(
        images, normalised.unsqueeze(1).to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return values.squeeze(2), inside


def warp(
    neighbours: Tensor,  # [N, C, h, w]
    depth_m: Tensor,  # [N, h, w] of the image that is to be made, along the optical axis
    intrinsics: Tensor,  # [N, 3, 3], of both images
    neighbour_from_cam: Tensor,  # [N, 4, 4]
) -> tuple[Tensor, Tensor]:
    """The image as its neighbour would show it at these depths, [N, C, h, w], and where that is possible, bool [N, h,
    w]."""
    n, h, w = depth_m.shape
    pixels = pixel_grid(h, w, depth_m.device).reshape(1, h * w, 2).expand(n, -1, -1)
    there, there_m = reproject(pixels, depth_m.reshape(n, h * w), intrinsics, neighbour_from_cam)
    values, inside = sample_image(neighbours, there)
    return values.reshape(n, -1, h, w), (inside & (there_m > NEAREST_M)).reshape(n, h, w)


def minimum_error(
    errors: Tensor,  # [N, K, h, w] of the image against each warped neighbour
    valid: Tensor,  # [N, K, h, w] bool
    identity_errors: Tensor,  # [N, K, h, w] of the image against each neighbour as it is; inf where there is none
) -> Tensor:
    """Mean over pixels of the least error over neighbours (Monodepth2, equations 4 and 5); 0 if no pixel is valid.

    Where a neighbour as it is fits better than any warped one (things that move with the car, a car that stands), that
    error takes its place: it depends on no depth, so such a pixel teaches nothing.
    """
    least = torch.where(valid, errors, torch.inf).amin(1)
    automask = identity_errors.amin(1)
    seen = valid.any(1)
    kept = torch.where(least < automask, least, automask)[seen]
    return kept.sum() / max(len(kept), 1)


def photometric_loss(
    depth_m: Tensor,  # [N, h, w] along the optical axis
    images: Tensor,  # [N, 3, h, w]
    neighbours: Tensor,  # [N, K, 3, h, w]
    intrinsics: Tensor,  # [N, 3, 3] of all of them
    neighbour_from_cam: Tensor,  # [N, K, 4, 4]
    neighbour_present: Tensor,  # [N, K] bool
    sees: Tensor | None = None,  # [N, h, w] bool: pixels that show the world, of an image and of its neighbours
) -> Tensor:
    """Least photometric error over the neighbours that are present, with automask; see `minimum_error`."""
    errors, valid, identity = [], [], []
    for k in range(neighbours.shape[1]):
        warped, seen = warp(neighbours[:, k], depth_m, intrinsics, neighbour_from_cam[:, k])
        present = neighbour_present[:, k].reshape(-1, 1, 1)
        errors.append(photometric_error(images, warped).squeeze(1))
        if sees is not None:
            there, _ = warp(sees.unsqueeze(1).float(), depth_m.detach(), intrinsics, neighbour_from_cam[:, k])
            seen = seen & sees & (there.squeeze(1) > WHOLE)
        valid.append(seen & present)
        as_it_is = photometric_error(images, neighbours[:, k]).squeeze(1)
        identity.append(torch.where(present, as_it_is, torch.inf))
    return minimum_error(torch.stack(errors, 1), torch.stack(valid, 1), torch.stack(identity, 1))


def smoothness_loss(
    inverse_depth: Tensor,  # [N, h, w], any unit
    images: Tensor,  # [N, C, h, w]
    sees: Tensor | None = None,  # [N, h, w] bool: pixels that show the world
) -> Tensor:
    """Mean |slope| of inverse depth over its mean, less where the image has edges (Monodepth2, equation 3)."""
    d = inverse_depth / (inverse_depth.mean(dim=(1, 2), keepdim=True) + 1e-7)
    slope_u, slope_v = (d[:, :, 1:] - d[:, :, :-1]).abs(), (d[:, 1:] - d[:, :-1]).abs()
    edge_u = (images[..., 1:] - images[..., :-1]).abs().mean(1)
    edge_v = (images[..., 1:, :] - images[..., :-1, :]).abs().mean(1)
    slope_u, slope_v = slope_u * torch.exp(-edge_u), slope_v * torch.exp(-edge_v)
    if sees is None:
        return slope_u.mean() + slope_v.mean()
    pairs = (slope_u, sees[:, :, 1:] & sees[:, :, :-1]), (slope_v, sees[:, 1:] & sees[:, :-1])
    return sum(((slope * both).sum() / both.sum().clamp(min=1) for slope, both in pairs), slope_u.new_zeros(()))
