"""Contraction, sampling along rays, rendering and its losses, against loops and against what follows by hand."""

import numpy as np
import pytest

from occ_core.grid import OCC3D_GRID, VoxelGrid

torch = pytest.importorskip("torch")

from occ_core.losses.rendering import distortion, entropy_loss  # noqa: E402
from occ_core.models.contraction import Contraction  # noqa: E402
from occ_core.models.volume_rendering import (  # noqa: E402
    RaySampling,
    render,
    sample_depths,
    sample_volume,
    stop_weights,
)

FREE = 1
GRID = VoxelGrid((-8.0, -8.0, -2.0), 1.0, (16, 16, 4))
BOX = Contraction(GRID, 2 / 3, (24, 24, 6))
PLAIN = Contraction(GRID, 1.0, (16, 16, 4))
SAMPLING = RaySampling(samples=64, samples_per_class=4, depth_m=(0.1, 100.0), rays_per_chunk=1 << 14, checkpoint=False)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [1.0, 2 / 3, 0.5])
def test_contraction_there_and_back(ratio):
    box = Contraction(OCC3D_GRID, ratio, (300, 300, 24))
    points = (random(1000, 3) - 0.5) * torch.tensor([400.0, 400.0, 60.0])
    contracted = box.contract(points)
    torch.testing.assert_close(box.expand(contracted), points, rtol=1e-3, atol=1e-4)
    if ratio < 1:
        assert contracted.abs().max() < 1


def test_contraction_keeps_the_grid_cell_by_cell():
    box = Contraction(OCC3D_GRID, 2 / 3, (300, 300, 24))
    centers = box.cell_centers_m().reshape(300, 300, 24, 3)
    assert box.inner == (slice(50, 250), slice(50, 250), slice(4, 20))
    np.testing.assert_allclose(centers[box.inner].numpy(), OCC3D_GRID.centers_m(), atol=2e-4)
    assert (centers[250, 0, 0, 0] > OCC3D_GRID.upper_m[0]) and centers.isfinite().all()


def test_contraction_is_smooth_at_the_border_of_the_grid():
    """Value and slope agree on both sides, x = 8 m here; the published formula, evaluated by hand, beyond."""
    x = torch.tensor([7.999, 8.0, 8.001, 16.0], dtype=torch.float64)
    c = BOX.contract(torch.stack([x, torch.zeros(4), torch.zeros(4)], dim=1))[:, 0]
    assert c[1] == pytest.approx(2 / 3)
    assert (c[1] - c[0]) == pytest.approx(float(c[2] - c[1]), rel=1e-2)
    assert c[3] == pytest.approx((1 + 2 - 1 / (2 * 2 + 1 - 2)) / 3)  # t = 2, x' = 2 * 16 / 8


def test_sample_volume_equals_a_loop_over_corners():
    volume = random(3, 4, 5, 6, seed=1)
    points = random(20, 3, seed=2) * 2.4 - 1.2  # some beyond the border
    for found, point in zip(sample_volume(volume, points), points.numpy(), strict=True):
        cell = np.clip([(p + 1) * n / 2 - 0.5 for p, n in zip(point, (4, 5, 6), strict=True)], 0, [3, 4, 5])
        low = np.floor(cell).astype(int)
        expected = np.zeros(3)
        for corner in np.ndindex(2, 2, 2):
            i = np.minimum(low + corner, [3, 4, 5])
            share = np.prod([f if up else 1 - f for f, up in zip(cell - low, corner, strict=True)])
            expected += share * volume[:, i[0], i[1], i[2]].numpy()
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_stop_weights_equal_a_walk_along_the_ray():
    occupied = random(30, 12, seed=3) * 0.3
    weights, opacity = stop_weights(occupied)
    for w, o, p in zip(weights.numpy(), opacity.numpy(), occupied.numpy(), strict=True):
        left, expected = 1.0, []
        for stop in p[:-1]:
            expected.append(min(stop, left))
            left -= expected[-1]
        np.testing.assert_allclose(w, [*expected, left], atol=1e-6)
        assert o == pytest.approx(1 - left, abs=1e-6)


def test_samples_are_spread_evenly_by_cells():
    directions = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.5, 0.3], [0.01, 0.0, 1.0]])
    depth_m, spacing = sample_depths(BOX, torch.zeros(3, 3), directions, torch.full((3,), 0.5), 40, (0.1, 100.0))
    assert (depth_m.diff(dim=1) > 0).all() and depth_m.min() >= 0.1 and depth_m.max() <= 100
    cells = BOX.contract(depth_m.unsqueeze(-1) * directions.unsqueeze(1)) * torch.tensor([12.0, 12.0, 3.0])
    torch.testing.assert_close(cells.diff(dim=1).norm(dim=-1), spacing.expand(3, 39), rtol=0.1, atol=0)


def test_samples_stay_in_a_plain_grid():
    origins = torch.tensor([[0.0, 0, 0], [-20.0, 0, 0], [0.0, 0, 50.0]])
    directions = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    depth_m, spacing = sample_depths(PLAIN, origins, directions, torch.full((3,), 0.5), 32, (0.1, 100.0))
    x = origins[:2, :1] + depth_m[:2]
    assert (x.abs() <= 8).all() and x[1].min() < -6 and x[:, -1].min() > 6
    assert spacing[2] == 0 and depth_m[2].isfinite().all()


def wall_at(x_m: float, box: Contraction) -> torch.Tensor:
    """Logits of classes 0 (wall) and FREE; everything from x_m on along x is wall, two cells thick."""
    x = box.cell_centers_m()[:, 0].reshape(box.shape)
    wall = (x > x_m) & (x < x_m + 2)
    return torch.stack([torch.where(wall, 20.0, -20.0), torch.where(wall, -20.0, 20.0)]).unsqueeze(0)


def look(volume, box, yaws_deg=(0.0, 20.0, -35.0), sampling=SAMPLING, jitter=None):
    yaw = torch.deg2rad(torch.tensor(yaws_deg))
    directions = torch.stack([torch.ones_like(yaw), yaw.tan(), torch.zeros_like(yaw)], dim=1).unsqueeze(0)
    return render(volume, FREE, box, torch.zeros_like(directions), directions, sampling, jitter)


@pytest.mark.parametrize("samples", [64, 256])
@pytest.mark.parametrize("box", [BOX, PLAIN])
def test_a_wall_is_rendered_at_its_depth(box, samples):
    """Directions have length 1 along x, so that every ray meets a wall across x at the same depth."""
    sampling = RaySampling(samples, 4, (0.1, 100.0), 1 << 14, False)
    seen = look(wall_at(5.0, box), box, sampling=sampling)
    torch.testing.assert_close(seen.depth_m, torch.full((1, 3), 5.0), atol=0.7, rtol=0)  # less than a cell
    assert (seen.opacity > 0.99).all() and (seen.classes.argmax(-1) == 0).all()
    assert entropy_loss(seen.opacity) < 0.05


def test_empty_space_is_free_to_its_end():
    volume = torch.stack([torch.full(BOX.shape, -20.0), torch.full(BOX.shape, 20.0)]).unsqueeze(0)
    seen = look(volume, BOX)
    assert (seen.depth_m > 60).all() and (seen.opacity < 1e-6).all() and (seen.classes.argmax(-1) == FREE).all()


def test_thin_haze_stops_rays_the_same_however_finely_they_are_sampled():
    logit = float(np.log(0.04 / 0.96))  # a cell stops 4 %
    volume = torch.stack([torch.full(BOX.shape, 0.0), torch.full(BOX.shape, -logit)]).unsqueeze(0)
    coarse = look(volume, BOX, sampling=RaySampling(32, 4, (0.1, 100.0), 1 << 14, False))
    fine = look(volume, BOX, sampling=RaySampling(256, 4, (0.1, 100.0), 1 << 14, False))
    torch.testing.assert_close(coarse.opacity, fine.opacity, atol=0.03, rtol=0)  # one sample, the last, is not in it
    # straight ahead: 12 cells of half a box, less the tenth of a metre before the first sample and the end at 100 m
    assert fine.opacity[0, 0] == pytest.approx(0.04 * 11.4, abs=0.02)


def test_chunks_and_checkpoints_change_nothing():
    volume = torch.randn(2, 4, *BOX.shape, generator=torch.Generator().manual_seed(5))
    origins, directions = random(2, 50, 3, seed=6), random(2, 50, 3, seed=7) - 0.5
    results = []
    for rays, checkpoint in ((1000, False), (7, False), (7, True)):
        leaf = volume.clone().requires_grad_()
        sampling = RaySampling(16, 4, (0.1, 100.0), rays, checkpoint)
        seen = render(leaf, FREE, BOX, origins, directions, sampling, random(2, 50, seed=8))
        (seen.depth_m.mean() + seen.classes.pow(2).mean() + seen.opacity.mean() + seen.distortion.mean()).backward()
        results.append((*seen, leaf.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_rendering_has_the_right_gradient():
    box = Contraction(VoxelGrid((-2.0, -2.0, -2.0), 1.0, (4, 4, 4)), 2 / 3, (6, 6, 6))
    generator = torch.Generator().manual_seed(9)
    volume = torch.randn(1, 3, 6, 6, 6, dtype=torch.float64, generator=generator) + 2  # mostly free: no ray is full
    origins, directions = torch.zeros(1, 2, 3).double(), torch.tensor([[[1.0, 0.2, 0.1], [-0.3, 1.0, 0.4]]]).double()
    sampling = RaySampling(8, 4, (0.1, 20.0), 100, False)

    def outputs(v):
        seen = render(v, FREE, box, origins, directions, sampling)
        others = [c for c in range(3) if c != FREE]
        return seen.depth_m / 20, seen.classes[..., others], seen.opacity, seen.distortion

    volume[:, FREE] += 2
    assert (outputs(volume)[2] < 0.95).all()
    grads = torch.autograd.grad([x.sum() for x in outputs(volume.requires_grad_())], volume)[0]
    for index in ((0, 0, 4, 3, 3), (0, FREE, 4, 3, 3), (0, FREE, 3, 4, 3), (0, 2, 3, 4, 3), (0, FREE, 5, 3, 3)):
        step = torch.zeros_like(volume)
        step[index] = 1e-2
        up, down = (sum(x.sum() for x in outputs((volume + s).detach())) for s in (step, -step))
        assert grads[index].item() == pytest.approx(float(up - down) / 2e-2, rel=2e-2, abs=1e-4)
    # Rendered "free" teaches the free logit through the weights alone: where that is the same everywhere, nothing.
    even = torch.full_like(volume, 4.0, requires_grad=True)
    seen = render(even, FREE, box, origins, directions, sampling)
    (grad,) = torch.autograd.grad(seen.classes[..., FREE].sum(), even)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-9, rtol=0)


def test_distortion_equals_the_double_sum():
    weights, widths = random(5, 9, seed=10), random(5, 9, seed=11)
    positions = random(5, 9, seed=12).sort(dim=1).values
    found = distortion(weights, positions, widths)
    for n in range(5):
        w, s, d = (x[n].double().numpy() for x in (weights, positions, widths))
        expected = sum(w[i] * w[j] * abs(s[i] - s[j]) for i in range(9) for j in range(9))
        assert found[n].item() == pytest.approx(expected + sum(w[i] ** 2 * d[i] for i in range(9)) / 3, rel=1e-5)


def test_entropy_against_scipy_and_at_its_ends():
    stats = pytest.importorskip("scipy.stats")
    p = random(50, seed=13)
    expected = np.mean([stats.bernoulli(float(x)).entropy() for x in p])
    assert entropy_loss(p).item() == pytest.approx(float(expected), rel=1e-4)
    ends = torch.tensor([0.0, 1.0], requires_grad=True)
    entropy_loss(ends).backward()
    assert entropy_loss(ends) < 1e-4 and ends.grad.isfinite().all()
