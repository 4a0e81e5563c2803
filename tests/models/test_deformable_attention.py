"""Deformable attention against loops over queries, heads, levels and points, with bilinear interpolation by hand."""

import math

import pytest

torch = pytest.importorskip("torch")

from occ_core.models.deformable_attention import DeformableAttention, sample_and_sum  # noqa: E402

torch.set_num_threads(1)


def bilinear(image, x, y):
    """Value of [D, h, w] at the cell coordinates (x, y), cell centres at integers; zeros outside."""
    total = torch.zeros(image.shape[0], dtype=image.dtype)
    for i in (math.floor(x), math.floor(x) + 1):
        for j in (math.floor(y), math.floor(y) + 1):
            if 0 <= i < image.shape[2] and 0 <= j < image.shape[1]:
                total += (1 - abs(x - i)) * (1 - abs(y - j)) * image[:, j, i]
    return total


def test_sampling_equals_loops():
    torch.manual_seed(0)
    b, q, heads, points, d = 2, 3, 2, 2, 4
    values = [torch.randn(b, heads, d, h, w, dtype=torch.float64) for h, w in ((5, 7), (2, 3))]
    places = torch.rand(b, q, heads, 2, points, 2, dtype=torch.float64) * 1.4 - 0.2  # some outside
    weights = torch.rand(b, q, heads, 2, points, dtype=torch.float64)
    out = sample_and_sum(values, places, weights)
    for n in range(b):
        for k in range(q):
            for head in range(heads):
                expected = torch.zeros(d, dtype=torch.float64)
                for level, value in enumerate(values):
                    h, w = value.shape[-2:]
                    for p in range(points):
                        u, v = places[n, k, head, level, p].tolist()
                        sample = bilinear(value[n, head], u * w - 0.5, v * h - 0.5)
                        expected += weights[n, k, head, level, p] * sample
                torch.testing.assert_close(out[n, k, head * d : (head + 1) * d], expected)


def test_attention_is_the_soft_max_weighted_projection_of_the_samples():
    """Equation 3: sum over heads W_m [ sum over levels and points A * W'_m x(p + offset) ]."""
    torch.manual_seed(1)
    layer = DeformableAttention(channels=6, heads=2, levels=2, points=3).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    query = torch.randn(1, 4, 6, dtype=torch.float64)
    references = torch.rand(4, 1, 1, 2, dtype=torch.float64)
    levels = [torch.randn(1, 6, h, w, dtype=torch.float64) for h, w in ((4, 6), (2, 3))]
    out = layer(query, references, levels)
    for k in range(4):
        offsets = (layer.places.offsets.weight @ query[0, k] + layer.places.offsets.bias).reshape(2, 2, 3, 2)
        logits = (layer.places.logits.weight @ query[0, k] + layer.places.logits.bias).reshape(2, 6)
        share = (logits.exp() / logits.exp().sum(1, keepdim=True)).reshape(2, 2, 3)
        heads = []
        for head in range(2):
            total = torch.zeros(3, dtype=torch.float64)
            for level, features in enumerate(levels):
                h, w = features.shape[-2:]
                kernel = layer.value.weight[head * 3 : head * 3 + 3, :, 0, 0]
                value = torch.einsum("dc,chw->dhw", kernel, features[0])
                value = value + layer.value.bias[head * 3 : head * 3 + 3, None, None]
                for p in range(3):
                    x = references[k, 0, 0, 0] * w - 0.5 + offsets[head, level, p, 0]  # an offset is in cells
                    y = references[k, 0, 0, 1] * h - 0.5 + offsets[head, level, p, 1]
                    total += share[head, level, p] * bilinear(value, x.item(), y.item())
            heads.append(total)
        torch.testing.assert_close(out[0, k], layer.out.weight @ torch.cat(heads) + layer.out.bias)


def test_points_start_around_the_reference_in_a_direction_a_head():
    layer = DeformableAttention(channels=8, heads=4, levels=1, points=3)
    offsets, logits = layer.places(torch.randn(1, 2, 8))
    assert torch.equal(logits, torch.zeros_like(logits))
    first = offsets[0, 0, :, 0]  # [heads, P, 2]
    torch.testing.assert_close(first[:, 2], 3 * first[:, 0])
    torch.testing.assert_close(first[:, 0], torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6, rtol=0)


def test_gradients_reach_query_and_values():
    torch.manual_seed(2)
    values = [torch.randn(1, 1, 2, 3, 3, dtype=torch.float64, requires_grad=True)]
    places = (torch.rand(1, 2, 1, 1, 2, 2, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    weights = torch.rand(1, 2, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, p, w: sample_and_sum([v], p, w), (*values, places, weights))
