"""SemanticKITTI SSC scores against scikit-learn and loops; its voxel files."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.evaluation.ssc import SscScores, read_ssc_truth, within
from occ_core.grid import SEMANTIC_KITTI_GRID
from occ_core.taxonomy import SEMANTIC_KITTI

metrics = pytest.importorskip("sklearn.metrics")
SHAPE = SEMANTIC_KITTI_GRID.shape


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth with cells to ignore, and an answer that is right in most; class 8 is nowhere, 7 in the answer only."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(SHAPE) < 0.1, rng.integers(1, 20, SHAPE), 0).astype(np.uint8)
    truth[np.isin(truth, (7, 8))] = 9
    predicted = np.where(rng.random(SHAPE) < 0.7, truth, rng.permutation(truth)).astype(np.uint8)
    predicted[:3, 128, 0] = 7
    truth[rng.random(SHAPE) < 0.85] = 255  # few are left, for scikit-learn's sake
    truth[:3, 128, 0] = 1
    return truth, predicted


def test_scores_equal_scikit_learn_at_each_range():
    pairs, scores = [random_pair(s) for s in range(2)], SscScores()
    for truth, predicted in pairs:
        scores.add(truth, predicted)
    report = scores.report()
    # VoxFormer's three ranges, in cells of 0.2 m: ahead, and to both sides of the middle.
    for name, ahead, side in (("12.8m", 64, 32), ("25.6m", 128, 64), ("51.2m", 256, 128)):
        part = (slice(0, ahead), slice(128 - side, 128 + side))
        y = np.concatenate([t[part].ravel() for t, _ in pairs])
        p = np.concatenate([p[part].ravel() for _, p in pairs])
        y, p = y[y != 255], p[y != 255]
        found = report[name]
        assert found["precision"] == pytest.approx(100 * metrics.precision_score(y > 0, p > 0))
        assert found["recall"] == pytest.approx(100 * metrics.recall_score(y > 0, p > 0))
        assert found["iou"] == pytest.approx(100 * metrics.jaccard_score(y > 0, p > 0))
        per_class = 100 * metrics.jaccard_score(y, p, labels=range(1, 20), average=None, zero_division=0)
        assert found["miou_19"] == pytest.approx(per_class.mean())
        values = [found["per_class"][name] for name in SEMANTIC_KITTI.names[1:]]
        assert values[7] is None and values[6] == 0  # nowhere; predicted, never there
        assert np.allclose([v or 0 for v in values], per_class)


def test_scores_equal_the_published_definition_counted_cell_by_cell():
    """MonoScene, section 4: IoU of occupied against empty, and the mean of 19 IoUs; cells of 255 count for nothing."""
    rng = np.random.default_rng(5)
    truth, predicted = np.full(SHAPE, 255, np.uint8), rng.integers(0, 20, SHAPE).astype(np.uint8)
    known = [tuple(cell) for cell in rng.integers(0, SHAPE, (3000, 3)).tolist()]
    for cell in known:
        truth[cell] = rng.choice([0, 0, 1, 9, 15, 19])
        if rng.random() < 0.6:
            predicted[cell] = truth[cell]
    scores = SscScores()
    scores.add(truth, predicted)
    tp, fp, fn = [0] * 20, [0] * 20, [0] * 20
    both = only_truth = only_predicted = 0
    for cell in set(known):
        t, p = int(truth[cell]), int(predicted[cell])
        both += t > 0 and p > 0
        only_truth += t > 0 and p == 0
        only_predicted += t == 0 and p > 0
        if t == p:
            tp[t] += 1
        else:
            fn[t] += 1
            fp[p] += 1
    ious = [tp[c] / (tp[c] + fp[c] + fn[c]) if tp[c] + fp[c] + fn[c] else 0.0 for c in range(1, 20)]
    found = scores.report()["51.2m"]
    assert found["iou"] == pytest.approx(100 * both / (both + only_truth + only_predicted))
    assert found["precision"] == pytest.approx(100 * both / (both + only_predicted))
    assert found["recall"] == pytest.approx(100 * both / (both + only_truth))
    assert found["miou_19"] == pytest.approx(100 * sum(ious) / 19)
    assert [found["per_class"][name] or 0 for name in SEMANTIC_KITTI.names[1:]] == pytest.approx(
        [100 * i for i in ious]
    )


def test_parts_add_up_to_the_whole():
    pairs, whole, parts = [random_pair(s) for s in range(2)], SscScores(), [SscScores(), SscScores()]
    for part, (truth, predicted) in zip(parts, pairs, strict=True):
        whole.add(truth, predicted)
        part.add(truth, predicted)
    parts[0].merge(parts[1])
    assert parts[0].report() == whole.report() and parts[0].samples == 2


def test_a_range_counts_its_cells():
    assert within(12.8).sum() == 64 * 64 and within(25.6).sum() == 128 * 128 and within(51.2).all()


def test_bad_input_is_named():
    scores, good = SscScores(), np.zeros(SHAPE, dtype=np.uint8)
    with pytest.raises(InvalidInput, match=r"prediction must be \(256, 256, 32\), got \(200, 200, 16\)"):
        scores.add(good, np.zeros((200, 200, 16), dtype=np.uint8))
    with pytest.raises(InvalidInput, match="prediction holds label 20, limit 19"):
        scores.add(good, good + 20)
    assert scores.samples == 0 and not any(matrix.any() for matrix in scores.matrices.values())


def test_voxel_files(tmp_path):
    rng = np.random.default_rng(3)
    raw = rng.choice([0, 1, 10, 40, 52, 70, 252], SHAPE).astype("<u2")
    invalid = rng.random(SHAPE) < 0.1
    path = tmp_path / "000000.label"
    raw.tofile(path)
    with pytest.raises(MissingInput, match="000000.invalid"):
        read_ssc_truth(path)
    np.packbits(invalid).tofile(tmp_path / "000000.invalid")
    truth = read_ssc_truth(path)
    names = {0: "empty", 10: "car", 40: "road", 70: "vegetation", 252: "car"}
    for label in np.unique(raw):
        expected = SEMANTIC_KITTI.id_of(names[label]) if label in names else 255  # outlier, other structure
        assert set(np.unique(truth[(raw == label) & ~invalid])) == {expected}
    assert (truth[invalid] == 255).all()
    path.write_bytes(b"\0" * 10)
    with pytest.raises(CorruptInput, match="10 bytes"):
        read_ssc_truth(path)


def test_occ_eval_knows_voxels_by_their_files(tmp_path):
    voxels, answers = tmp_path / "voxels", tmp_path / "answers"
    voxels.mkdir()
    answers.mkdir()
    raw = np.zeros(SHAPE, "<u2")
    raw[10:20, 120:140, 0] = 40
    raw.tofile(voxels / "000005.label")
    np.packbits(np.zeros(SHAPE, bool)).tofile(voxels / "000005.invalid")
    predicted = np.where(raw == 40, SEMANTIC_KITTI.id_of("road"), 0).astype(np.uint8)
    predicted[10:15] = 0  # half of the road is missed
    np.savez_compressed(answers / "000005.npz", pred=predicted)
    arguments = ["eval", str(answers), str(voxels), "--json", str(tmp_path / "s.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "1 samples" in result.output
    report = json.loads((tmp_path / "s.json").read_text())
    assert list(report) == ["ssc", "confusion"] and list(report["ssc"]) == ["12.8m", "25.6m", "51.2m"]
    road, cells = SEMANTIC_KITTI.id_of("road"), report["confusion"]["cells"]
    assert (cells[road][road], cells[road][0], cells[0][road]) == (100, 100, 0)
    near = report["ssc"]["12.8m"]
    assert (near["precision"], near["recall"], near["per_class"]["road"]) == (100, 50, 50)
    of_sequence = tmp_path / "sequences" / "08" / "voxels"
    of_sequence.parent.mkdir(parents=True)
    voxels.rename(of_sequence)
    voxels.symlink_to(of_sequence)
    (answers / "000005.npz").rename(answers / "08_000005.npz")  # as `occ predict` calls it
    result = CliRunner().invoke(app, ["eval", str(answers), str(of_sequence), "--json", str(tmp_path / "again.json")])
    assert result.exit_code == 0 and json.loads((tmp_path / "again.json").read_text()) == report
    (answers / "08_000005.npz").rename(answers / "000010.npz")
    assert "no ground truth for 1 predictions, first: 000010" in str(CliRunner().invoke(app, arguments).exception)


def test_invalid_cells_of_a_real_scan(shared_data, tmp_path):
    voxels = shared_data("semantickitti_seq08_10f") / "sequences" / "08" / "voxels"
    np.full(SHAPE, 40, "<u2").tofile(tmp_path / "000000.label")
    (tmp_path / "000000.invalid").symlink_to(voxels / "000000.invalid")
    truth = read_ssc_truth(tmp_path / "000000.label")
    seen = np.unpackbits(np.fromfile(voxels / "000000.bin", np.uint8)).reshape(SHAPE) == 1
    assert 0.1 < (truth == 255).mean() < 0.9
    assert (truth[seen] == 255).mean() < 0.02  # where the scan has points somebody has looked
