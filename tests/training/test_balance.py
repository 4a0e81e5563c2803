"""The balance of grid and ray against data whose balance is known."""

import numpy as np
import pytest
from model_fixtures import SMALL
from nano_fixtures import hand_made, judged

torch = pytest.importorskip("torch")

from occ_core.models.easyocc.balance import fit_balance, grid_and_ray_logits, regress  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402
from occ_core.models.easyocc.thresholds import in_sight  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


def test_regression_finds_the_weights_that_made_the_cells():
    rng = np.random.default_rng(0)
    grid, ray = rng.normal(-1, 2, 200_000), rng.normal(-1, 3, 200_000)
    p = 1 / (1 + np.exp(-(0.4 * grid + 1.5 * ray - 0.6)))
    np.testing.assert_allclose(regress(grid, ray, rng.random(200_000) < p), [0.4, 1.5, -0.6], atol=0.1)
    p = 1 / (1 + np.exp(grid - ray))  # the grid says the opposite of what is there
    assert regress(grid, ray, rng.random(200_000) < p)[0] == 0
    np.testing.assert_array_equal(regress(*np.zeros((3, 0))), [1, 1, 0])


@pytest.mark.parametrize("seed", range(6))
def test_regression_is_the_best_of_all_weights_however_few_cells_are_occupied(seed):
    """As an optimiser that knows nothing of Newton's method finds it."""
    minimize = pytest.importorskip("scipy.optimize").minimize
    rng = np.random.default_rng(seed)
    grid, ray = rng.normal(-9, 3, 4000), rng.normal(-6, 4, 4000)
    occupied = rng.random(4000) < 1 / (1 + np.exp(-(rng.normal(0, 1, 2) @ np.stack([grid, ray]) - 9)))
    start, features = np.array([1.0, 1.0, 0.0]), np.stack([grid, ray, np.ones(4000)])

    def unlikely(weights):
        logit = weights @ features
        return (np.logaddexp(0, logit) - occupied * logit).mean() + 0.005 * ((weights - start) ** 2).sum()

    best = minimize(unlikely, start, method="L-BFGS-B", bounds=[(0, None), (0, None), (None, None)])
    found = regress(grid, ray, occupied)
    assert unlikely(found) <= best.fun + 1e-6
    np.testing.assert_allclose(found, best.x, atol=0.02)


def test_the_balance_makes_held_out_cells_likelier_and_no_scene_leaves_it():
    torch.manual_seed(0)
    model, scene = EasyOcc(SMALL).eval(), hand_made("s")

    def loss() -> float:
        total = 0.0
        for inputs, targets in judged(scene):
            hidden = model.sequential().hidden(inputs)
            _, ray = grid_and_ray_logits(model, hidden.columns)
            seen = torch.from_numpy(in_sight(inputs, targets, SMALL)) & (ray[0] > -30)
            occupied = targets.labels[0] != SMALL.classes.free_id
            logit = model.cells(hidden.columns).occupied[0]
            total += float(torch.nn.functional.binary_cross_entropy_with_logits(logit[seen], occupied[seen].float()))
        return total

    with torch.no_grad():
        before = loss()
        fit_balance(model, judged(scene))
        assert loss() < before
        fit_balance(model, [])
    assert model.balance.tolist() == [[1.0] * 8, [1.0] * 8, [0.0] * 8]


def test_without_samples_what_was_fitted_at_the_start_stays():
    model = EasyOcc(SMALL).eval()
    given = {name: torch.rand_like(model.get_buffer(name)) for name in sorted(SMALL.fitted)}
    for name, value in given.items():
        model.get_buffer(name).copy_(value)
    model.fit([], torch.ones(len(SMALL.classes)))
    assert all(torch.equal(model.get_buffer(name), value) for name, value in given.items()) and len(given) == 4


def test_what_is_deployed_has_the_balance():
    from occ_core.models.easyocc.deployed import Deployed

    torch.manual_seed(1)
    model, scene = EasyOcc(SMALL).eval(), hand_made("s")
    plain = [answer_of(Answer(model), scene)]
    model.balance.copy_(torch.stack([torch.full((8,), 0.3), torch.full((8,), 1.7), torch.full((8,), 2.5)]))
    plain.append(answer_of(Answer(model), scene))
    for ours, theirs in zip(plain[1], answer_of(Deployed(model), scene), strict=True):
        assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours == theirs).float().mean() > 0.999
    assert not torch.equal(plain[0][1], plain[1][1])


@torch.no_grad()
def answer_of(network: torch.nn.Module, scene) -> tuple[torch.Tensor, ...]:
    inputs = [scene["images"][0], *(scene[name][0] for name in ("voxel_index", "pillar_index", "rays"))]
    return network(*map(torch.from_numpy, inputs))
