"""Hazards that are passed along image columns: against a plain loop, and what a network that has none of them keeps."""

import numpy as np
import pytest
from model_fixtures import SMALL, ring_rig

torch = pytest.importorskip("torch")

from occ_core.models.easyocc import ground  # noqa: E402
from occ_core.models.easyocc.foot import HazardsOfTheColumn  # noqa: E402
from occ_core.models.easyocc.model import EasyOcc  # noqa: E402
from occ_core.models.easyocc.table import build_table  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
CONFIG = SMALL.model_copy(update={"foot_heads": 2, "depth_by_ground": True})
LOG_DEPTH = torch.linspace(0, 3, CONFIG.depth_bins)[:, None, None]


def seen(n=2):
    generator = torch.Generator().manual_seed(3)
    w, h = CONFIG.feature_size
    rays = torch.from_numpy(build_table(ring_rig(), CONFIG).rays)[:n]
    return torch.randn(n, CONFIG.neck_channels, h, w, generator=generator), rays


def taught():
    torch.manual_seed(1)
    foot = HazardsOfTheColumn(CONFIG)
    for parameter in foot.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return foot


@torch.no_grad()
def test_each_pixel_hears_its_column_as_a_loop_over_pixels_says():
    foot, (features, rays) = taught(), seen()
    given = foot(features, rays, LOG_DEPTH).numpy()
    both = torch.cat([features, rays], dim=1)
    queries, keys = (layer(both).numpy() for layer in (foot.query, foot.key))
    absolute, along = foot.to_hazard(features).numpy(), foot.to_ground(features)
    n, _, h, w = features.shape
    d = CONFIG.depth_bins
    relative = np.stack([ground.over_depth(a, rays[:, 4:5], LOG_DEPTH).numpy() for a in along.chunk(2, dim=1)])
    for i, row, column in np.ndindex(n, h, w):
        wanted = np.zeros(d)
        for head in range(2):
            q = queries[i, 32 * head : 32 * head + 32, row, column]
            k = keys[i, 32 * head : 32 * head + 32, :, column]
            score = q @ k / np.sqrt(32) + [float(foot.by_distance[head, row - other + h - 1]) for other in range(h)]
            share = np.exp(score) / np.exp(score).sum()
            said = absolute[i, head * d : head * d + d, :, column] + relative[head, i, :, :, column]
            wanted += said @ share
        np.testing.assert_allclose(given[i, :, row, column], wanted, atol=1e-4)


@torch.no_grad()
def test_the_exported_order_gives_the_same():
    foot, (features, rays) = taught(), seen()
    given = foot(features, rays, LOG_DEPTH)
    position = ground.places(rays[:, 4].reshape(-1, 1), LOG_DEPTH.reshape(1, -1))
    rows = foot.of_rows(features, rays, position)
    w, h = CONFIG.feature_size
    torch.testing.assert_close(rows.reshape(2, h, w, -1).permute(0, 3, 1, 2), given, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_column_that_listens_to_its_lowest_pixel_repeats_what_that_says():
    foot, (features, rays) = taught(), seen()
    h = features.shape[2]
    for layer in (foot.query, foot.key):
        torch.nn.init.zeros_(layer.weight)
    foot.query.bias.fill_(100.0)
    foot.key.bias.zero_()
    foot.key.weight[:, 0] = 100.0
    features[:, 0] = torch.linspace(0, 1, h)[:, None]
    given = foot(features, rays, LOG_DEPTH)
    assert given[:, :, -1].abs().max() > 0.1
    torch.testing.assert_close(given, given[:, :, -1:].expand_as(given))


@torch.no_grad()
def test_until_it_has_learned_the_network_is_the_one_without():
    torch.manual_seed(0)
    plain = EasyOcc(CONFIG.model_copy(update={"foot_heads": 0})).eval()
    with_foot = EasyOcc(CONFIG).eval()
    lacking = with_foot.load_state_dict(plain.state_dict(), strict=False)
    assert not lacking.unexpected_keys and {name.split(".")[0] for name in lacking.missing_keys} == {"foot"}
    features, rays = seen()
    assert torch.equal(plain.hazard(features, rays), with_foot.hazard(features, rays))


def test_all_of_it_learns():
    foot, (features, rays) = taught(), seen()
    foot(features, rays, LOG_DEPTH).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in foot.parameters())
