"""Photometric losses against loops, exact geometry and values that follow by hand."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from occ_core.losses.photometric import (  # noqa: E402
    minimum_error,
    photometric_error,
    photometric_loss,
    pixel_grid,
    reproject,
    sample_image,
    smoothness_loss,
    ssim,
    warp,
)

H, W, FOCAL = 12, 20, 10.0
INTRINSICS = torch.tensor([[[FOCAL, 0, 9.5], [0, FOCAL, 5.5], [0, 0, 1]]])


def images(n=1, seed=0, height=H, width=W):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def moved(x=0.0, y=0.0, z=0.0):
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([x, y, z])
    return pose.unsqueeze(0)


def plain_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Window by window, with numpy's own mean and covariance."""
    a, b = (np.pad(image, 1, mode="reflect") for image in (a, b))
    out = np.zeros((a.shape[0] - 2, a.shape[1] - 2))
    for v, u in np.ndindex(*out.shape):
        p, q = a[v : v + 3, u : u + 3].ravel(), b[v : v + 3, u : u + 3].ravel()
        (saa, sab), (_, sbb) = np.cov(p, q, bias=True)
        luminance = (2 * p.mean() * q.mean() + 1e-4) / (p.mean() ** 2 + q.mean() ** 2 + 1e-4)
        out[v, u] = luminance * (2 * sab + 9e-4) / (saa + sbb + 9e-4)
    return out


def test_ssim_equals_windows_one_by_one():
    a, b = images(seed=1), images(seed=2)
    found = ssim(a, b)
    for c in range(3):
        expected = plain_ssim(a[0, c].double().numpy(), b[0, c].double().numpy())
        np.testing.assert_allclose(found[0, c].numpy(), expected, atol=2e-5)


def test_error_of_equal_and_of_flat_images():
    a = images()
    assert photometric_error(a, a).abs().max() < 1e-6
    flat = photometric_error(torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.6))
    luminance = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    expected = torch.full((1, 1, 4, 4), 0.85 * (1 - luminance) / 2 + 0.15 * 0.4)
    torch.testing.assert_close(flat, expected, atol=1e-4, rtol=0)


def test_warp_without_motion_is_the_image():
    a = images(2)
    depth_m = 1 + 50 * torch.rand(2, H, W, generator=torch.Generator().manual_seed(3))
    warped, _ = warp(a, depth_m, INTRINSICS.expand(2, -1, -1), torch.eye(4).expand(2, 4, 4))
    torch.testing.assert_close(warped, a, atol=1e-4, rtol=0)


def test_warp_of_a_plane_is_a_shift_of_whole_pixels():
    """Camera 0.6 m to the right one moment later, wall at 2 m: everything is 3 px further left there."""
    a = images()
    warped, valid = warp(a, torch.full((1, H, W), 2.0), INTRINSICS, moved(x=-0.6))
    torch.testing.assert_close(warped[..., 4:], a[..., 1:-3], atol=1e-4, rtol=0)
    assert valid[0, 1:-1, 4:].all() and not valid[0, :, :3].any()


def test_reproject_by_hand_and_behind_the_neighbour():
    pixels, depth_m = torch.tensor([[[14.5, 0.5], [9.5, 5.5]]]), torch.tensor([[4.0, 1.0]])
    there, there_m = reproject(pixels, depth_m, INTRINSICS, moved(z=-2.0))
    torch.testing.assert_close(there_m, torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(there[0, 0], torch.tensor([9.5 + 10.0, 5.5 - 10.0]))
    _, valid = warp(images(), torch.full((1, H, W), 1.0), INTRINSICS, moved(z=-2.0))
    assert not valid.any()


def test_sample_image_between_pixels_and_beyond_the_border():
    ramp = pixel_grid(H, W).permute(2, 0, 1).unsqueeze(0)  # value = coordinate
    pixels = torch.tensor([[[3.25, 7.5], [0.0, 0.0], [W - 1.0, H - 1.0], [-0.01, 3.0], [2.0, H - 0.9]]])
    values, inside = sample_image(ramp, pixels)
    torch.testing.assert_close(values[0, :, :3], pixels[0, :3].T)
    assert inside.tolist() == [[True, True, True, False, False]]


def test_minimum_error_takes_the_best_valid_neighbour_and_masks_what_stands_still():
    errors = torch.tensor([0.1, 0.2, 0.9, 0.7, 0.5, 0.4]).reshape(1, 2, 1, 3)
    valid = torch.tensor([0, 1, 0, 1, 1, 0], dtype=torch.bool).reshape(1, 2, 1, 3)
    identity = torch.full((1, 2, 1, 3), torch.inf)
    identity[0, 1, 0, 0] = 0.3  # below 0.7, the only valid error of the first pixel
    errors.requires_grad_()
    loss = minimum_error(errors, valid, identity)
    torch.testing.assert_close(loss, torch.tensor((0.3 + 0.2) / 2))  # the third pixel has no valid neighbour
    loss.backward()
    assert errors.grad.nonzero().tolist() == [[0, 0, 0, 1]]


def slanted(depth_scale: float):
    """An image of a slanted plane, its neighbour 1.5 m to the right, and depths that are wrong by a factor."""
    v, u = np.mgrid[0:H, 0:W].astype(float)

    def texture(x, y):
        return np.stack([np.sin(1.5 * x + k) + np.cos(1.3 * y - k) for k in range(3)]) / 4 + 0.5

    def view(offset):
        # plane z = 4 + 0.2 x, in the frame of the camera: ray (a, b, 1) z from (offset, 0, 0)
        a, b = (u - 9.5) / FOCAL, (v - 5.5) / FOCAL
        z = (4 + 0.2 * offset) / (1 - 0.2 * a)
        return texture(offset + a * z, b * z), z

    (image, depth), (neighbour, _) = view(0.0), view(1.5)
    as_tensor = [torch.from_numpy(x).float().unsqueeze(0) for x in (depth_scale * depth, image, neighbour)]
    return as_tensor[0], as_tensor[1], as_tensor[2].unsqueeze(1)


def loss_at(depth_scale: float, present=True):
    depth_m, image, neighbours = slanted(depth_scale)
    present = torch.tensor([[present]])
    return photometric_loss(depth_m, image, neighbours, INTRINSICS, moved(x=-1.5).unsqueeze(1), present)


def test_photometric_loss_is_least_at_the_true_depth():
    assert 4 * loss_at(1.0) < min(loss_at(0.8), loss_at(1.25))


def test_photometric_loss_pulls_depth_towards_the_truth():
    for wrong, sign in ((0.9, -1), (1.1, 1)):
        scale = torch.tensor(wrong, requires_grad=True)
        depth_m, image, neighbours = slanted(1.0)
        present = torch.tensor([[True]])
        photometric_loss(depth_m * scale, image, neighbours, INTRINSICS, moved(x=-1.5).unsqueeze(1), present).backward()
        assert torch.sign(scale.grad) == sign


def test_photometric_loss_of_no_neighbour_is_zero():
    assert loss_at(0.8, present=False) == 0


def test_smoothness_by_hand():
    ramp = 1 + torch.arange(5.0).repeat(1, 4, 1)  # slope 1 along u, mean 3
    flat = torch.zeros(1, 3, 4, 5)
    torch.testing.assert_close(smoothness_loss(ramp, flat), torch.tensor(1 / 3))
    torch.testing.assert_close(smoothness_loss(7 * ramp, flat), torch.tensor(1 / 3))
    striped = torch.arange(5.0).remainder(2).expand(1, 3, 4, 5)  # an edge everywhere
    torch.testing.assert_close(smoothness_loss(ramp, striped), torch.tensor(np.exp(-1) / 3, dtype=torch.float32))
