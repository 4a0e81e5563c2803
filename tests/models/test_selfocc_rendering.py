"""Signed distance fields along rays: against analytic surfaces, loops, and the plain photometric loss."""

import math

import pytest

torch = pytest.importorskip("torch")

from occ_core.models.selfocc.rendering import (  # noqa: E402
    Rays,
    camera_rays,
    pixel_grid,
    read,
    span_in_box,
    trilinear,
)
from occ_core.models.selfocc.sdf import (  # noqa: E402
    eikonal_loss,
    hessian_loss,
    neus_weights,
    sdf_gradient,
    sharpness,
    sparsity_loss,
)

torch.set_num_threads(1)
WALL_M = 5.3


def wall(distances_m, cosine):
    """Field and slope along rays that meet a plane WALL_M ahead (along the ray) at this cosine."""
    return (WALL_M - distances_m) * cosine, torch.full_like(distances_m, -cosine)


def samples(count, near=0.5, far=10.0):
    step = (far - near) / count
    return near + (torch.arange(count, dtype=torch.float64) + 0.5)[None] * step, step


@pytest.mark.parametrize("cosine", [1.0, 0.3])
def test_depth_of_a_plane_becomes_exact_as_s_grows(cosine):
    at, step = samples(256)
    errors = []
    for s in (0.4, 2.0, 60.0):
        weights = neus_weights(*wall(at, cosine), torch.full_like(at, step), torch.tensor(s))
        errors.append(abs(float((weights * at).sum() / weights.sum()) - WALL_M))
        assert float(weights.sum()) <= 1 + 1e-9
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


def test_weights_are_the_density_of_logistic_opacity():
    """In front of a plane, NeuS's rays pass to depth t with probability S(s f(t)) / S(s f(0))."""
    at, step = samples(4000)
    s = torch.tensor(4.0, dtype=torch.float64)
    weights = neus_weights(*wall(at, 1.0), torch.full_like(at, step), s)
    passed = 1 - weights.cumsum(-1)
    analytic = torch.sigmoid(s * (WALL_M - at - step / 2)) / torch.sigmoid(s * (WALL_M - 0.5))
    near = at < WALL_M + 1
    torch.testing.assert_close(passed[near], analytic[near], atol=0.02, rtol=0)  # 1e-5 a sample, 4000 samples


def test_weights_equal_alpha_compositing_in_a_loop():
    torch.manual_seed(0)
    sdf, slope = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    step, s, anneal = 0.7, 2.5, 0.4
    weights = neus_weights(sdf, slope, torch.tensor(step), torch.tensor(s), anneal)
    for r in range(3):
        passed = 1.0
        for i in range(6):
            f, g = float(sdf[r, i]), float(slope[r, i])
            fall = -(max(0.5 - 0.5 * g, 0) * (1 - anneal) + max(-g, 0) * anneal)
            before = 1 / (1 + math.exp(-s * (f - fall * step / 2)))
            after = 1 / (1 + math.exp(-s * (f + fall * step / 2)))
            alpha = min(max((before - after + 1e-5) / (before + 1e-5), 0), 1)
            assert float(weights[r, i]) == pytest.approx(passed * alpha, abs=1e-6)
            passed *= 1 - alpha


def test_weights_sum_to_at_most_one_and_a_level_far_field_lets_rays_pass():
    torch.manual_seed(1)
    sdf, slope = 5 * torch.randn(200, 64), 2 * torch.randn(200, 64)
    weights = neus_weights(sdf, slope, torch.tensor(0.5), torch.tensor(50.0))
    assert (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-5).all()
    far = neus_weights(torch.full((1, 64), 9.0), torch.zeros(1, 64), torch.tensor(0.5), torch.tensor(5.0))
    assert float(far.sum()) < 1e-3
    rising = neus_weights(torch.linspace(-1, 1, 64)[None], torch.ones(1, 64), torch.tensor(0.5), torch.tensor(2.0))
    assert float(rising.sum()) < 0.02  # leaving a thing is not hitting one


def test_gradients_of_the_weights():
    torch.manual_seed(2)
    sdf = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, c: neus_weights(a, b, torch.tensor(0.4), c, 0.5), (sdf, slope, s))


def test_sharpness_is_clipped():
    assert float(sharpness(torch.tensor(0.1))) == pytest.approx(math.e)
    assert float(sharpness(torch.tensor(9.0))) == 1e6


def vertices(shape, spacing):
    return torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float64) * d for n, d in zip(shape, spacing, strict=True)],
                       indexing="ij"), dim=-1)  # fmt: skip


def test_regularisers_vanish_on_a_plane_and_do_not_elsewhere():
    spacing = (0.4, 0.3, 0.2)
    points = vertices((8, 9, 7), spacing)
    normal = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    plane = (points @ normal)[None] - 0.9
    gradient = sdf_gradient(plane, spacing)
    torch.testing.assert_close(gradient, normal.expand_as(gradient))
    assert float(eikonal_loss(gradient)) < 1e-12 and float(hessian_loss(plane)) < 1e-12
    assert float(eikonal_loss(sdf_gradient(2 * plane, spacing))) == pytest.approx(1)
    square = (points[..., 0] ** 2)[None]  # second difference along x: 2 * 0.4^2, none along y and z
    assert float(hessian_loss(square)) == pytest.approx(2 * 0.16 / 3)


def test_eikonal_of_a_sphere_is_small_away_from_its_centre():
    spacing = (0.1, 0.1, 0.1)
    sphere = (vertices((20, 20, 20), spacing) + torch.tensor([2.0, 2.0, 2.0])).norm(dim=-1)[None] - 3
    assert float(eikonal_loss(sdf_gradient(sphere, spacing))) < 1e-5


def test_sparsity_is_the_mean_depth_below_the_surface():
    assert float(sparsity_loss(torch.tensor([-2.0, 3.0, -1.0, 0.5]).view(1, 2, 2, 1))) == pytest.approx(0.75)


def test_a_gradient_exists_where_the_field_is_level():
    level = torch.zeros(1, 3, 3, 3, requires_grad=True)
    eikonal_loss(sdf_gradient(level, (1.0, 1.0, 1.0))).backward()
    assert torch.isfinite(level.grad).all()


def test_trilinear_equals_a_loop_over_corners():
    torch.manual_seed(3)
    shape = (4, 5, 3)
    volume = torch.randn(*shape, 2, dtype=torch.float64)
    places = torch.rand(20, 3, dtype=torch.float64) * torch.tensor([3.0, 4.0, 2.0])
    places[0] = torch.tensor([3.0, 4.0, 2.0])  # the last vertex itself
    out = read(volume.flatten(0, 2), *trilinear(places, shape))
    for k, (x, y, z) in enumerate(places.tolist()):
        expected = torch.zeros(2, dtype=torch.float64)
        for i in range(4):
            for j in range(5):
                for m in range(3):
                    share = max(0, 1 - abs(x - i)) * max(0, 1 - abs(y - j)) * max(0, 1 - abs(z - m))
                    expected += share * volume[i, j, m]
        torch.testing.assert_close(out[k], expected)
    torch.testing.assert_close(out[0], volume[3, 4, 2])


def test_rays_project_back_to_their_pixels_and_their_parameter_is_depth():
    intrinsics = torch.tensor([[50.0, 0, 31.5], [0, 48, 15.5], [0, 0, 1]], dtype=torch.float64)
    ego_from_cam = torch.tensor([[0.0, 0, 1, 1.2], [-1, 0, 0, 0.3], [0, -1, 0, 1.6], [0, 0, 0, 1]], dtype=torch.float64)
    pixels = pixel_grid((8, 4), (64, 32), torch.zeros(2, dtype=torch.float64))
    assert pixels.shape == (4, 8, 2)
    torch.testing.assert_close(pixels[0, 0], torch.tensor([3.5, 3.5], dtype=torch.float64))
    rays = camera_rays(pixels, intrinsics, ego_from_cam)
    points = rays.origin_m + 7.0 * rays.directions
    in_cam = (points - ego_from_cam[:3, 3]) @ ego_from_cam[:3, :3]
    torch.testing.assert_close(in_cam[:, 2], torch.full((32,), 7.0, dtype=torch.float64))
    seen = in_cam @ intrinsics.T
    torch.testing.assert_close(seen[:, :2] / seen[:, 2:], pixels.flatten(0, 1))
    shifted = pixel_grid((8, 4), (64, 32), torch.tensor([0.5, -0.25], dtype=torch.float64))
    torch.testing.assert_close(shifted - pixels, torch.tensor([4.0, -2.0], dtype=torch.float64).expand_as(pixels))


def test_spans_in_a_box_by_hand():
    lower, upper = torch.tensor([-2.0, -2, -1]), torch.tensor([2.0, 2, 1])
    inside = Rays(torch.zeros(3), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0.1, 0, -1]]))
    enter, leave, hit = span_in_box(inside, lower, upper, 0.4)
    assert hit.all()
    torch.testing.assert_close(enter, torch.full((3,), 0.4))
    torch.testing.assert_close(leave, torch.tensor([2.0, 2.0, 1.0]))
    outside = Rays(torch.tensor([-5.0, 0, 0]), torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 1, 0]]))
    enter, leave, hit = span_in_box(outside, lower, upper, 0.4)
    assert hit.tolist() == [True, False, False]
    assert (float(enter[0]), float(leave[0])) == (3.0, 7.0)
