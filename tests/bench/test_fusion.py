"""OccLE's fusion: what it costs, and how far it reads."""

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from occ_core.bench.fusion import _measure  # noqa: E402
from occ_core.models.occle.fusion import DualFusion  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("mixer", ["mamba", "conv"])
def test_price_of_the_fusion_is_linear_and_branches_read_each_other(mixer):
    torch.manual_seed(0)
    fusion = DualFusion(mixer, 8, 16, stages=4, heads=2, state=4)

    def flops(x):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            fusion(torch.zeros(1, 8, x, 16, 8), torch.zeros(1, 8, x, 16, 8))
        return counter.get_total_flops()

    prices = [flops(32 * times) for times in (1, 2, 4, 8)]
    assert all(later < 2.05 * earlier for earlier, later in zip(prices, prices[1:], strict=False))
    semantic, geometry = torch.randn(2, 1, 8, 10, 6, 4).requires_grad_().unbind()
    what, where = fusion(semantic, geometry)
    assert what.shape == where.shape == semantic.shape
    assert torch.autograd.grad(what.sum(), geometry, retain_graph=True)[0].any()
    assert torch.autograd.grad(where.sum(), semantic)[0].any()


def test_mamba_reads_the_whole_volume_conv_only_what_is_near():
    torch.manual_seed(0)
    volume = torch.randn(1, 8, 32, 16, 8)
    changed = volume.clone()
    changed[..., :4, :4, :4] += 1.0
    for mixer, far_reaching in (("mamba", True), ("conv", False)):
        fusion = DualFusion(mixer, 8, 16, stages=1, heads=2, state=4).eval()
        with torch.no_grad():
            difference = (fusion(volume, volume)[1] - fusion(changed, changed)[1]).abs()[..., 24:, :, :]
        assert bool(difference.any()) == far_reaching


def test_bench_measures_a_pass():
    row = _measure("conv", (8, 16, 1, 2, 4), (8, 8, 4), 1, 1)
    fusion = DualFusion("conv", 8, 16, 1, 2, 4)
    assert row["cells"] == 256 and row["parameters"] == sum(p.numel() for p in fusion.parameters())
    assert row["step_cpu_s"] > 0 and row["memory_mb"] >= 0
