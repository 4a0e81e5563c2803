"""Reliability against a plain loop over cells, and where it is known."""

import numpy as np
import pytest

from occ_core.errors import CorruptInput, InvalidInput
from occ_core.evaluation.in_words import in_words
from occ_core.evaluation.predictions import read_confidence
from occ_core.evaluation.reliability import BANDS, BINS, Reliability
from occ_core.evaluation.report import evaluate_folders
from occ_core.grid import OCC3D_GRID, VoxelGrid
from occ_core.inference.predictions import save_prediction
from occ_core.occupancy import Occupancy, save_occ3d
from occ_core.taxonomy import OCC3D

GRID = VoxelGrid((-24.0, -24.0, 0.0), 3.0, (16, 16, 4))
FREE = OCC3D.free_id


def sample(seed, grid=GRID):
    """Truth, labels, observed, and confidence that often is at the edge of a bin."""
    rng = np.random.default_rng(seed)
    true, called = (np.where(rng.random(grid.shape) < 0.4, rng.integers(0, 17, grid.shape), FREE) for _ in range(2))
    mask, observed = (rng.random(grid.shape) < 0.7 for _ in range(2))
    confidence = rng.choice([0, 25, 26, 51, 127, 128, 229, 230, 254, 255], grid.shape)
    truth = Occupancy(grid, OCC3D, true.astype(np.uint8), mask)
    return truth, called.astype(np.uint8), observed, confidence.astype(np.uint8)


def by_hand(samples, counts=lambda label, range_m: True):
    """ECE, and number of cells, cell by cell as its definition says it."""
    bins = [[] for _ in range(BINS)]
    for truth, called, observed, confidence in samples:
        centers = truth.grid.centers_m()
        for cell in np.ndindex(*truth.grid.shape):
            x, y, _ = centers[cell]
            if observed[cell] and truth.observed[cell] and counts(called[cell], np.hypot(x, y)):
                right = (called[cell] == FREE) == (truth.labels[cell] == FREE)
                p = int(confidence[cell])
                bins[min(BINS - 1, p * BINS // 255)].append((p / 255, right))
    total = sum(map(len, bins))
    off = sum(len(b) * abs(np.mean([p for p, _ in b]) - np.mean([right for _, right in b])) for b in bins if b)
    return 100 * off / total, total


def test_error_of_all_of_each_state_band_and_class_is_that_of_a_loop_over_cells():
    samples = [sample(0), sample(1)]
    first, second = Reliability(OCC3D, GRID), Reliability(OCC3D, GRID)
    first.add(*samples[0])
    second.add(*samples[1])
    first.merge(second)
    report = first.report()
    assert report["samples"] == 2
    edges = dict(zip(BANDS, ((0, 10), (10, 20), (20, 99)), strict=True))
    expected = [
        (report["all"], by_hand(samples)),
        (report["free"], by_hand(samples, lambda label, _: label == FREE)),
        (report["occupied"], by_hand(samples, lambda label, _: label != FREE)),
        (report["per_class"]["car"], by_hand(samples, lambda label, _: label == OCC3D.id_of("car"))),
    ]
    for band, (low, high) in edges.items():
        hand = by_hand(samples, lambda label, r, low=low, high=high: label != FREE and low <= r < high)
        expected.append((report["per_range"][band], hand))
    for row, (ece, cells) in expected:
        assert row["ece"] == pytest.approx(ece) and row["cells"] == cells > 0
    assert sum(row["cells"] for row in report["bins"]["occupied"]) == report["occupied"]["cells"]


def test_confidence_that_is_right_has_no_error_and_one_too_sure_has_what_it_is_off():
    rng, right_share = np.random.default_rng(0), 0.6
    grid = VoxelGrid((-40.0, -40.0, 0.0), 1.0, (80, 80, 20))
    called = np.full(grid.shape, 4, dtype=np.uint8)
    truth = Occupancy(
        grid,
        OCC3D,
        np.where(rng.random(grid.shape) < right_share, 11, FREE).astype(np.uint8),  # another class: occupied
        np.ones(grid.shape, dtype=bool),
    )
    for said, ece in ((0.6, 0.0), (0.9, 30.0)):
        total = Reliability(OCC3D, grid)
        total.add(truth, called, truth.observed, np.full(grid.shape, round(255 * said), dtype=np.uint8))
        assert total.report()["all"]["ece"] == pytest.approx(ece, abs=0.5)
        assert total.report()["free"] == {"cells": 0, "confidence": None, "right": None, "ece": None}


def test_confidence_of_another_kind_is_refused():
    truth, called, observed, confidence = sample(0)
    with pytest.raises(InvalidInput, match="confidence must be uint8"):
        Reliability(OCC3D, GRID).add(truth, called, observed, confidence / 255)


def test_folders_with_confidence_are_told_about_it_and_those_of_before_are_scored_without(tmp_path):
    truth, called, observed, confidence = sample(3, OCC3D_GRID)
    (tmp_path / "gts" / "scene" / "token").mkdir(parents=True)
    save_occ3d(tmp_path / "gts" / "scene" / "token" / "labels.npz", truth)
    path = tmp_path / "pred" / "token.npz"
    path.parent.mkdir()
    save_prediction(path, called, observed)
    before, _ = evaluate_folders(path.parent, tmp_path / "gts")
    assert "reliability" not in before and read_confidence(path, OCC3D_GRID) is None
    save_prediction(path, called, observed, confidence=confidence.astype(np.float32) / 255)
    assert np.array_equal(read_confidence(path, OCC3D_GRID), confidence)
    report, _ = evaluate_folders(path.parent, tmp_path / "gts")
    total = Reliability()
    total.add(truth, called, observed, confidence)
    scores = report.pop("reliability")
    assert scores == total.report() and report == before
    assert any("ECE of confidence" in line for line in in_words({"reliability": scores}) if isinstance(line, str))
    np.savez(path, pred=called, confidence=confidence[:3])
    with pytest.raises(CorruptInput, match="'confidence' must be uint8"):
        read_confidence(path, OCC3D_GRID)


def test_shares_of_votes_in_labels_are_no_confidence(tmp_path):
    truth, *_, confidence = sample(4, OCC3D_GRID)
    votes = Occupancy(OCC3D_GRID, OCC3D, truth.labels, truth.observed, confidence.astype(np.float32) / 255)
    save_occ3d(tmp_path / "labels.npz", votes)
    assert read_confidence(tmp_path / "labels.npz", OCC3D_GRID) is None
