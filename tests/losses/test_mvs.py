"""The MVS-embedded photometric loss against loops, and against the plain loss it must equal for one-hot weights."""

import pytest

torch = pytest.importorskip("torch")

from occ_core.losses.mvs import mvs_photometric_error  # noqa: E402
from occ_core.losses.photometric import photometric_error  # noqa: E402

torch.set_num_threads(1)


def case(samples=4, h=3, w=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(1, 3, h, w, generator=g, dtype=torch.float64)
    proposals = torch.rand(1, 3, samples, h, w, generator=g, dtype=torch.float64)
    weights = torch.rand(1, samples, h, w, generator=g, dtype=torch.float64)
    inside = torch.rand(1, samples, h, w, generator=g) > 0.3
    return target, proposals, inside, weights / weights.sum(1, keepdim=True)


def ssim_by_hand(a, b, y, x):
    """SSIM of two [h, w] planes (lists) in the 3 x 3 window at (y, x), borders mirrored."""
    h, w = len(a), len(a[0])

    def mirrored(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    at = [(mirrored(y + i, h), mirrored(x + j, w)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    pa, pb = [a[i][j] for i, j in at], [b[i][j] for i, j in at]
    ma, mb = sum(pa) / 9, sum(pb) / 9
    va = sum((p - ma) ** 2 for p in pa) / 9
    vb = sum((p - mb) ** 2 for p in pb) / 9
    cov = sum((p - ma) * (q - mb) for p, q in zip(pa, pb, strict=True)) / 9
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def test_error_equals_loops_over_samples():
    target, proposals, inside, weights = case()
    inside[0, :, 1, 2] = False  # a ray of which the neighbour sees nothing
    error, valid = mvs_photometric_error(target, proposals, inside, weights)
    samples, h, w = weights.shape[1:]
    l1 = [[0.0] * w for _ in range(h)]
    blended = [[[0.0] * w for _ in range(h)] for _ in range(3)]
    for y in range(h):
        for x in range(w):
            seen = [s for s in range(samples) if inside[0, s, y, x]]
            assert bool(valid[0, 0, y, x]) == bool(seen)
            seen = seen or range(samples)  # not compared, but beside the windows of others
            total = sum(float(weights[0, s, y, x]) for s in seen)
            for s in seen:
                share = float(weights[0, s, y, x]) / total
                for c in range(3):
                    l1[y][x] += share * abs(float(proposals[0, c, s, y, x] - target[0, c, y, x])) / 3
                    blended[c][y][x] += share * float(proposals[0, c, s, y, x])
    for y in range(h):
        for x in range(w):
            like = sum(ssim_by_hand(blended[c], target[0, c].tolist(), y, x) for c in range(3)) / 3
            expected = 0.85 * (1 - like) / 2 + 0.15 * l1[y][x]
            assert float(error[0, 0, y, x]) == pytest.approx(expected, abs=2e-5)  # SSIM is computed in float32


def test_one_hot_weights_give_the_plain_photometric_error():
    target, proposals, _, _ = case(seed=1)
    chosen = torch.randint(0, 4, (1, 1, 3, 4), generator=torch.Generator().manual_seed(2))
    weights = torch.zeros(1, 4, 3, 4, dtype=torch.float64).scatter_(1, chosen, 1.0)
    error, valid = mvs_photometric_error(target, proposals, torch.ones(1, 4, 3, 4, dtype=torch.bool), weights)
    warped = proposals.gather(2, chosen[:, None].expand(-1, 3, -1, -1, -1)).squeeze(2)
    assert valid.all()
    torch.testing.assert_close(error, photometric_error(target, warped))


def test_a_weight_falls_on_a_wrong_proposal_however_far_it_is_from_the_right_one():
    target, proposals, inside, _ = case(seed=3)
    proposals[:, :, 3] = target  # the last sample fits, all others do not
    logits = torch.zeros(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(60):
        error, _ = mvs_photometric_error(target, proposals, torch.ones_like(inside), logits.softmax(1))
        (gradient,) = torch.autograd.grad(error.mean(), logits)
        logits = (logits - 20 * gradient).detach().requires_grad_()
    assert (logits.softmax(1)[:, 3] > 0.5).all()
