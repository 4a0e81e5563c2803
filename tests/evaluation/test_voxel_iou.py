"""Voxel scores against scikit-learn, and the evaluation of folders."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.predictions import read_observed, read_prediction
from occ_core.evaluation.report import VoxelScores, evaluate_folders
from occ_core.evaluation.voxel_iou import confusion_matrix, scores
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictions import save_prediction
from occ_core.occupancy import Occupancy, save_occ3d
from occ_core.taxonomy import OCC3D

metrics = pytest.importorskip("sklearn.metrics")


def random_labels(seed, shape=(20, 20, 8), classes=18):
    rng = np.random.default_rng(seed)
    return rng.choice(classes, size=shape, p=np.r_[np.full(classes - 1, 0.03), 1 - 0.03 * (classes - 1)]).astype(
        np.uint8
    )


def test_scores_equal_scikit_learn():
    truth, mask = random_labels(0), np.random.default_rng(2).random((20, 20, 8)) < 0.7
    predicted = np.where(np.random.default_rng(3).random(truth.shape) < 0.6, truth, random_labels(1))
    matrix = confusion_matrix(truth, predicted, mask, 18)
    assert np.array_equal(matrix, metrics.confusion_matrix(truth[mask], predicted[mask], labels=range(18)))
    out = scores(matrix, OCC3D)
    jaccard = 100 * metrics.jaccard_score(truth[mask], predicted[mask], labels=range(17), average=None)
    assert np.allclose([out["per_class"][name] for name in OCC3D.names[:17]], jaccard)
    assert out["miou_17"] == pytest.approx(jaccard.mean())
    assert out["miou_15"] == pytest.approx(np.delete(jaccard, [0, 12]).mean())
    binary = 100 * metrics.jaccard_score(truth[mask] != 17, predicted[mask] != 17)
    assert out["iou"] == pytest.approx(binary)


def test_a_class_nowhere_is_left_out_but_a_missed_class_counts_zero():
    truth = np.full((4, 4, 4), 17, dtype=np.uint8)
    truth[0], truth[1, 0] = 11, 4  # road, all found; a car, missed
    predicted = np.where(truth == 4, 17, truth).astype(np.uint8)
    out = scores(confusion_matrix(truth, predicted, np.ones_like(truth, dtype=bool), 18), OCC3D)
    assert out["per_class"]["driveable_surface"] == 100 and out["per_class"]["car"] == 0
    assert out["per_class"]["bus"] is None
    assert out["miou_15"] == out["miou_17"] == 50
    empty = scores(np.diag([0] * 17 + [5]), OCC3D)
    assert np.isnan(empty["iou"]) and np.isnan(empty["miou_15"])


def test_labels_out_of_range_are_refused():
    truth = np.zeros((2, 2, 2), dtype=np.uint8)
    with pytest.raises(InvalidInput, match="label 30, limit 17"):
        confusion_matrix(truth, truth + 30, truth == 0, 18)
    with pytest.raises(InvalidInput, match="shape"):
        confusion_matrix(truth, truth[:1], truth == 0, 18)


def truth_of(seed) -> Occupancy:
    rng = np.random.default_rng(seed)
    labels = random_labels(seed, OCC3D_GRID.shape)
    observed, lidar = rng.random(OCC3D_GRID.shape) < 0.5, rng.random(OCC3D_GRID.shape) < 0.3
    return Occupancy(OCC3D_GRID, OCC3D, labels, observed, mask_lidar=lidar)


@pytest.fixture
def folders(tmp_path):
    truths = {f"token{i}": truth_of(i) for i in range(2)}
    predictions = {token: random_labels(10 + i, OCC3D_GRID.shape) for i, token in enumerate(truths)}
    (tmp_path / "pred").mkdir()
    for token, truth in truths.items():
        save_occ3d(tmp_path / "gts" / "scene-1" / token / "labels.npz", truth)
        np.savez_compressed(tmp_path / "pred" / f"{token}.npz", pred=predictions[token])
    return tmp_path, truths, predictions


def test_every_protocol_and_one_summed_matrix(folders):
    path, truths, predictions = folders
    report, samples = evaluate_folders(path / "pred", path / "gts")
    assert samples == 2 and set(report) == {"camera", "camera_and_lidar", "full", "confusion"}
    masks = {
        "camera": lambda t: t.observed,
        "camera_and_lidar": lambda t: t.observed & t.mask_lidar,
        "full": lambda t: np.ones_like(t.observed),
    }
    for name, mask in masks.items():
        y = np.concatenate([t.labels[mask(t)] for t in truths.values()])
        p = np.concatenate([predictions[token][mask(t)] for token, t in truths.items()])
        expected = 100 * metrics.jaccard_score(y, p, labels=range(17), average="macro")
        assert report[name]["miou_17"] == pytest.approx(expected)


def test_command_line_writes_the_report(folders):
    path, _, _ = folders
    arguments = ["eval", str(path / "pred"), str(path / "gts"), "--json", str(path / "out" / "report.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((path / "out" / "report.json").read_text())
    assert set(report["camera"]) == {"iou", "miou_17", "miou_15", "per_class"}
    assert len(report["camera"]["per_class"]) == 17


def test_labels_scored_against_themselves_are_perfect(folders):
    path, _, _ = folders
    report, _ = evaluate_folders(path / "gts", path / "gts")
    assert report["camera"]["iou"] == report["full"]["miou_17"] == 100


def test_missing_and_broken_files_are_named(folders):
    path, _, _ = folders
    with pytest.raises(MissingInput, match="no such folder"):
        evaluate_folders(path / "nothing", path / "gts")
    with pytest.raises(MissingInput, match="no <scene>"):
        evaluate_folders(path / "pred", path)
    np.savez(path / "pred" / "stranger.npz", pred=np.zeros(3))
    with pytest.raises(MissingInput, match="stranger"):
        evaluate_folders(path / "pred", path / "gts")
    (path / "pred" / "stranger.npz").unlink()
    np.savez(path / "pred" / "token0.npz", other=np.zeros(OCC3D_GRID.shape))
    with pytest.raises(CorruptInput, match="neither 'pred' nor 'semantics'"):
        evaluate_folders(path / "pred", path / "gts")
    np.savez(path / "pred" / "token0.npz", pred=np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(CorruptInput, match="must be integers"):
        evaluate_folders(path / "pred", path / "gts")
    np.savez(path / "pred" / "token0.npz", pred=np.full(OCC3D_GRID.shape, 18, dtype=np.uint8))
    with pytest.raises(CorruptInput, match="token0.npz: prediction holds label 18, limit 17"):
        evaluate_folders(path / "pred", path / "gts")
    np.savez(path / "pred" / "token0.npz", pred=np.full(OCC3D_GRID.shape, -1, dtype=np.int16))
    with pytest.raises(CorruptInput, match="token0.npz: holds label -1, limits 0 and 255"):
        evaluate_folders(path / "pred", path / "gts")
    (path / "pred" / "token0.npz").write_bytes(b"not a zip")
    with pytest.raises(CorruptInput, match="token0"):
        evaluate_folders(path / "pred", path / "gts")


def test_a_truth_without_lidar_mask_does_not_count_in_that_protocol():
    truth = Occupancy(OCC3D_GRID, OCC3D, random_labels(0, OCC3D_GRID.shape), np.ones(OCC3D_GRID.shape, dtype=bool))
    total = VoxelScores()
    total.add(truth, truth.labels)
    assert total.matrices["camera"].sum() == truth.labels.size and not total.matrices["camera_and_lidar"].any()
    assert np.isnan(total.report()["camera_and_lidar"]["iou"])
    total.add(truth_of(1), truth.labels)
    assert total.warnings() == ["the truth lacks masks: 'camera and lidar' leaves out 1 of 2 samples"]


def test_a_prediction_keeps_what_was_not_observed(tmp_path):
    answer = truth_of(3)
    path = tmp_path / "token.npz"
    save_prediction(path, answer.labels, answer.observed)
    assert np.array_equal(read_prediction(path, OCC3D_GRID), answer.labels)
    assert np.array_equal(read_observed(path, OCC3D_GRID), answer.observed)
    save_occ3d(tmp_path / "labels.npz", answer)
    assert np.array_equal(read_observed(tmp_path / "labels.npz", OCC3D_GRID), answer.observed)
    np.savez(path, pred=answer.labels)
    assert read_observed(path, OCC3D_GRID).all()
    np.savez(path, pred=answer.labels, observed=np.ones(3))
    with pytest.raises(CorruptInput, match="must be bool"):
        read_observed(path, OCC3D_GRID)
