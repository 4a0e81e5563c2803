"""Losses on labelled cells, against loops over cells and scikit-learn's metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sklearn.metrics import jaccard_score, precision_score, recall_score  # noqa: E402

from occ_core.errors import InvalidInput  # noqa: E402
from occ_core.losses.labels import (  # noqa: E402
    affinity_loss,
    balanced_cross_entropy,
    geometry_affinity_loss,
    label_losses,
    occupied_logit,
)
from occ_core.losses.weights import LabelLossWeights  # noqa: E402

CLASSES, FREE = 5, 3
NONE = {"cross_entropy": 0, "lovasz": 0, "affinity": 0, "geometry_affinity": 0, "geometry": 0}
ALL = LabelLossWeights(affinity=1, geometry_affinity=1, geometry=1)


def sample(cells: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (cells, CLASSES))).float()
    target = torch.from_numpy(np.where(rng.random(cells) < 0.7, FREE, rng.integers(0, CLASSES - 1, cells)))
    return logits, target  # class 4 does not occur


def volume(logits, target):
    """The same cells as a grid of two samples."""
    shape = (2, 10, 5, len(target) // 100)
    return logits.reshape(*shape, CLASSES).movedim(-1, 1), target.reshape(shape).to(torch.uint8)


@pytest.mark.parametrize("free_share", [0.5, 0.8])
def test_cross_entropy_is_balanced_between_free_and_occupied(free_share):
    logits, target = sample()
    weights = [0.5, 2.0, 1.0, 99.0, 0.0]  # the free class's is not read
    sides: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for row, c in zip(logits.double().tolist(), target.tolist(), strict=True):
        loss = math.log(sum(math.exp(v) for v in row)) - row[c]
        sides[c == FREE].append((loss, 1.0 if c == FREE else weights[c]))
    means = {free: sum(a * w for a, w in pairs) / sum(w for _, w in pairs) for free, pairs in sides.items()}
    expected = free_share * means[True] + (1 - free_share) * means[False]
    ours = balanced_cross_entropy(logits.log_softmax(1), target, torch.tensor(weights), FREE, free_share)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("free_share", [0.5, 0.8])
def test_border_of_the_balanced_cross_entropy_is_where_its_docstring_says(free_share):
    """The best constant answer to cells of which a share f is free."""
    free = 0.9
    target = torch.tensor([FREE] * 90 + [0] * 10)
    logit = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([logit], max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        rows = torch.full((100, CLASSES), -1e4)
        rows = torch.cat([logit.expand(100, 1), rows[:, 1:3], torch.zeros(100, 1), rows[:, 4:]], dim=1)
        value = balanced_cross_entropy(rows.log_softmax(1), target, torch.ones(CLASSES), FREE, free_share)
        value.backward()
        return value

    optimiser.step(loss)
    true_odds, border = (1 - free) / free, free_share * (1 - free) / ((1 - free_share) * free)
    assert math.exp(logit.item()) == pytest.approx(true_odds / border, rel=1e-3)


def test_affinity_of_hard_answers_is_precision_recall_and_specificity():
    """With probabilities of 0 and 1, the soft shares are scikit-learn's."""
    rng = np.random.default_rng(1)
    truth = np.concatenate([np.arange(4), rng.integers(0, 4, 196)])  # class 4 does not occur
    answer = np.where(rng.random(200) < 0.6, truth, rng.integers(0, CLASSES, 200))
    expected = []
    for c in range(4):
        t, a = truth == c, answer == c
        shares = precision_score(t, a), recall_score(t, a), recall_score(~t, ~a)
        expected.append(-sum(math.log(s) for s in shares))
    probabilities = torch.nn.functional.one_hot(torch.from_numpy(answer), CLASSES).float()
    assert affinity_loss(probabilities, torch.from_numpy(truth)).item() == pytest.approx(np.mean(expected), rel=1e-5)

    t, a = truth == FREE, answer == FREE
    shares = precision_score(~t, ~a), recall_score(~t, ~a), recall_score(t, a)
    ours = geometry_affinity_loss(1 - probabilities[:, FREE], torch.from_numpy(~t))
    assert ours.item() == pytest.approx(-sum(math.log(s) for s in shares), rel=1e-5)


def test_affinity_of_soft_answers_is_the_loop_over_cells():
    logits, target = sample()
    p = logits.softmax(1).tolist()
    terms = []
    for c in range(CLASSES):
        hits = claimed = positives = rejected = negatives = 0.0
        for row, t in zip(p, target.tolist(), strict=True):
            claimed += row[c]
            if t == c:
                hits, positives = hits + row[c], positives + 1
            else:
                rejected, negatives = rejected + 1 - row[c], negatives + 1
        if positives:
            terms.append(-math.log(hits / claimed) - math.log(hits / positives) - math.log(rejected / negatives))
    assert len(terms) == 4
    assert affinity_loss(logits.softmax(1), target).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_affinity_where_one_side_is_empty():
    p = torch.tensor([0.2, 0.4])
    nothing_there = geometry_affinity_loss(p, torch.tensor([False, False]))
    assert nothing_there.item() == pytest.approx(-math.log(0.7), rel=1e-5)  # specificity alone
    all_there = geometry_affinity_loss(p, torch.tensor([True, True]))
    assert all_there.item() == pytest.approx(-math.log(1.0) - math.log(0.3), rel=1e-5)


def test_lovasz_of_hard_answers_is_one_minus_the_jaccard_index():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 4, 200)
    answer = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    logits = 100.0 * torch.nn.functional.one_hot(torch.from_numpy(answer), CLASSES).float()
    cells, labels = volume(logits, torch.from_numpy(truth))
    losses = label_losses(cells, labels, torch.ones(CLASSES), LabelLossWeights(**NONE | {"lovasz": 1}), FREE)
    assert losses["lovasz"].item() == pytest.approx(1 - jaccard_score(truth, answer, average="macro"), rel=1e-4)


def test_lovasz_of_a_random_subset_is_about_that_of_all():
    logits, target = sample(20_000)
    cells, labels = volume(logits, target)
    values = []
    for limit in (20_000, 5_000):
        torch.manual_seed(0)
        weights = LabelLossWeights(**NONE | {"lovasz": 1}, lovasz_cells=limit)
        values.append(label_losses(cells, labels, torch.ones(CLASSES), weights, FREE)["lovasz"].item())
    assert values[1] == pytest.approx(values[0], rel=0.02) and values[0] != values[1]


def test_occupied_logit_is_that_of_the_soft_max():
    logits, _ = sample()
    p = logits.double().softmax(1)
    expected = ((1 - p[:, FREE]) / p[:, FREE]).log()
    torch.testing.assert_close(occupied_logit(logits, FREE).double(), expected, rtol=1e-4, atol=1e-5)


def test_geometry_is_the_binary_cross_entropy_of_the_soft_max():
    logits, target = sample()
    p = 1 - logits.double().softmax(1)[:, FREE]
    expected = -torch.where(target == FREE, (1 - p).log(), p.log()).mean()
    cells, labels = volume(logits, target)
    losses = label_losses(cells, labels, torch.ones(CLASSES), LabelLossWeights(**NONE | {"geometry": 2}), FREE)
    assert losses["geometry"].item() == pytest.approx(2 * expected.item(), rel=1e-5)


def test_unobserved_cells_teach_nothing_or_free():
    logits, target = sample()
    known = target.clone()
    target[::3] = 255
    cells, labels = volume(logits, target)
    some = torch.arange(200) % 3 != 0
    ours = label_losses(cells, labels, torch.ones(CLASSES), ALL, FREE)
    few = label_losses(
        logits[some].T[None, :, :, None, None], target[some][None, :, None, None].byte(), torch.ones(CLASSES), ALL, FREE
    )
    known[::3] = FREE
    free = label_losses(*volume(logits, known), torch.ones(CLASSES), ALL, FREE)
    not_masked = label_losses(cells, labels, torch.ones(CLASSES), ALL, FREE, observed_only=False)
    assert set(ours) == {"cross_entropy", "lovasz", "affinity", "geometry_affinity", "geometry"}
    for name in ours:
        torch.testing.assert_close(ours[name], few[name])
        torch.testing.assert_close(not_masked[name], free[name])
        assert not torch.isclose(ours[name], not_masked[name])


@pytest.mark.parametrize("fill", [255, FREE, 0])
def test_labels_of_one_kind_leave_losses_finite(fill):
    logits, _ = sample()
    logits.requires_grad_()
    cells, labels = volume(logits, torch.full((200,), fill))
    losses = label_losses(cells, labels, torch.ones(CLASSES), ALL, FREE)
    sum(losses.values()).backward()
    assert all(math.isfinite(v.item()) for v in losses.values())
    assert torch.isfinite(logits.grad).all() and bool(logits.grad.any()) == (fill != 255)
    assert fill != 255 or not any(v.item() for v in losses.values())


def test_a_sample_without_labels_counts_for_nothing_even_where_unobserved_cells_are_free():
    cells, labels = volume(*sample())
    ones, blank = torch.ones(CLASSES), torch.full_like(labels, 255)
    both = torch.cat([cells, cells.flip(2)]).requires_grad_()
    for observed_only in (True, False):
        ours = label_losses(both, torch.cat([labels, blank]), ones, ALL, FREE, observed_only)
        alone = label_losses(cells, labels, ones, ALL, FREE, observed_only)
        for name in alone:
            torch.testing.assert_close(ours[name], alone[name])
        nothing = label_losses(both, torch.cat([blank, blank]), ones, ALL, FREE, observed_only)
        sum(nothing.values()).backward()
        assert len(nothing) == 5 and not any(v.item() for v in nothing.values()) and not both.grad.any()


def test_terms_of_weight_0_are_left_out_and_the_rest_are_weighted():
    cells, labels = volume(*sample())
    one = label_losses(cells, labels, torch.ones(CLASSES), LabelLossWeights(**NONE | {"affinity": 1}), FREE)
    three = label_losses(cells, labels, torch.ones(CLASSES), LabelLossWeights(**NONE | {"affinity": 3}), FREE)
    assert list(one) == ["affinity"]
    torch.testing.assert_close(3 * one["affinity"], three["affinity"])


def test_every_term_falls_on_the_way_to_the_truth():
    """Gradient steps on one term alone answer every occurring class right, or (geometry terms) free and occupied."""
    for name in NONE:
        logits, target = sample()
        logits = logits.requires_grad_()
        optimiser = torch.optim.Adam([logits], 0.3)
        for _ in range(100):
            optimiser.zero_grad()
            weights = LabelLossWeights(**NONE | {name: 1})
            label_losses(*volume(logits, target), torch.ones(CLASSES), weights, FREE)[name].backward()
            optimiser.step()
        if name.startswith("geometry"):
            assert ((occupied_logit(logits, FREE) > 0) == (target != FREE)).all(), name
        else:
            assert (logits.argmax(1) == target).all(), name


def test_labels_of_another_grid_are_refused():
    cells, labels = volume(*sample())
    with pytest.raises(InvalidInput, match=r"\(2, 5, 10, 5, 2\) and labels \(2, 10, 4, 2\)"):
        label_losses(cells, labels[:, :, :4], torch.ones(CLASSES), ALL, FREE)
