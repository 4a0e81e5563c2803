"""The selective scan against its recurrence, step by step."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from occ_core.errors import InvalidInput  # noqa: E402
from occ_core.models.selective_scan import CHUNK, _on_cuda, selective_scan  # noqa: E402

torch.set_num_threads(1)


def scan_plain(x, step, rate, b, c):
    """The recurrence as it is written, one token after the other."""
    h = x.new_zeros(len(x), *x.shape[2:], b.shape[2])  # [B, H, P, N]
    y = []
    for t in range(x.shape[1]):
        decay = torch.exp(step[:, t] * rate)[..., None, None]
        h = decay * h + (step[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        y.append((h * c[:, t, None, None]).sum(-1))
    return torch.stack(y, dim=1)


def inputs(length, seed=0, batch=2, heads=2, channels=3, states=4):
    torch.manual_seed(seed)
    x = torch.randn(batch, length, heads, channels)
    step = torch.nn.functional.softplus(torch.randn(batch, length, heads))
    rate = -torch.rand(heads) * 2
    b, c = torch.randn(2, batch, length, states)
    return [tensor.requires_grad_() for tensor in (x, step, rate, b, c)]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4 * CHUNK), st.integers(0, 100))
def test_values_are_those_of_the_recurrence(length, seed):
    tensors = inputs(length, seed)
    torch.testing.assert_close(selective_scan(*tensors), scan_plain(*tensors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [7, CHUNK, CHUNK * CHUNK + 5])
def test_gradients_are_those_of_the_recurrence(length):
    """The last length needs chunks of chunks."""
    tensors = inputs(length, batch=1)
    wanted = torch.randn(1, length, 2, 3)
    fast = torch.autograd.grad((selective_scan(*tensors) * wanted).sum(), tensors)
    plain = torch.autograd.grad((scan_plain(*tensors) * wanted).sum(), tensors)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_long_memory_and_none():
    """Without decay all tokens count alike; with a strong one only the token itself is left, and nothing overflows."""
    length = 3000
    x, b = torch.randn(1, length, 1, 1), torch.ones(1, length, 1)
    step = torch.ones(1, length, 1)
    kept = selective_scan(x, step, torch.tensor([-1e-12]), b, b)
    torch.testing.assert_close(kept[0, :, 0, 0], x[0, :, 0, 0].cumsum(0), rtol=1e-4, atol=1e-3)
    lost = selective_scan(x, step, torch.tensor([-1e4]), b, b)
    torch.testing.assert_close(lost, x)


def test_price_is_linear_in_the_length():
    def flops(length):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            selective_scan(*inputs(length))
        return counter.get_total_flops()

    assert flops(64 * CHUNK) < 1.1 * 8 * flops(8 * CHUNK)


def test_other_shapes_are_refused():
    x, step, rate, b, c = inputs(5)
    with pytest.raises(InvalidInput, match=r"\[B, L, H\]"):
        selective_scan(x, step[:, :4], rate, b, c)


def test_the_cuda_kernel_is_given_the_same_recurrence_in_its_layout():
    """The kernel itself needs a GPU; here its documented recurrence, [B, channels, L] and a rate for each number."""

    def kernel(u, delta, rates, b, c):
        h, y = torch.zeros(*u.shape[:2], rates.shape[1]), []
        for t in range(u.shape[2]):
            h = torch.exp(delta[:, :, t, None] * rates) * h + (delta * u)[:, :, t, None] * b[:, None, :, t]
            y.append((h * c[:, None, :, t]).sum(-1))
        return torch.stack(y, dim=2)

    tensors = inputs(11)
    torch.testing.assert_close(_on_cuda(kernel, *tensors), scan_plain(*tensors), rtol=1e-4, atol=1e-5)
