"""`occ compare`: two reports, two folders of predictions, two trainings."""

from __future__ import annotations

import base64
import json
import shutil
import zlib

import numpy as np
import pytest
import small_nuscenes
from typer.testing import CliRunner

from occ_core.cli.main import app
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictions import save_prediction

SCORES = {"iou": 40.0, "miou_17": 10.0, "miou_15": 12.04, "per_class": {"car": 30.0, "other_flat": None}}


def occ(*arguments) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def page(path) -> dict:
    return json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])


def rows(data: dict, title: str) -> dict[str, list[str]]:
    (table,) = [table for table in data["tables"] if table["title"].startswith(title)]
    return {row[0]: row[1:] for row in table["rows"]}


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare") / "city"
    return root, small_nuscenes.make(root, keyframes=3)


@pytest.fixture(scope="module")
def predictions(city):
    """Two folders: the first lacks the first frame, the second the last one."""
    folders, rng = [city[0].parent / name for name in ("one", "other")], np.random.default_rng(3)
    for number, folder in enumerate(folders):
        for token in city[1][1 - number : 3 - number]:
            occupied = rng.random(OCC3D_GRID.shape) < 0.02 * (1 + number)
            labels = np.where(occupied, rng.integers(0, 17, OCC3D_GRID.shape), 17).astype(np.uint8)
            save_prediction(folder / f"{token}.npz", labels, np.ones(OCC3D_GRID.shape, bool))
    return folders


def test_reports_and_their_differences(tmp_path):
    other = {**SCORES, "iou": 38.5, "miou_15": 12.0, "per_class": {"car": None, "bus": 5.0}}
    lidar = {"above": {"0-10m": {"returns": 5, "within_1m": 20.0}}, "frames": 3}
    (tmp_path / "a.json").write_text(json.dumps({"camera": SCORES, "lidar": lidar}))
    (tmp_path / "b.json").write_text(json.dumps({"camera": other}))
    said = occ(tmp_path / "a.json", tmp_path / "b.json", "--html", tmp_path / "c.html")
    data = page(tmp_path / "c.html")
    assert data["scene"] is None and data["tables"][0]["header"] == ["", "a", "b", "difference"]
    scores = rows(data, "scores")
    assert scores["camera: IoU"] == ["40.0", "38.5", "-1.5"]
    assert scores["camera: mIoU, 15 classes"] == ["12.0", "12.0", "+0.0"]
    assert scores["LiDAR, above, 0-10m: within 1 m"] == ["20.0", "-", "-"]
    assert rows(data, "classes") == {"car": ["30.0", "-", "-"], "bus": ["-", "5.0", "-"]}
    assert "camera: IoU" in said and "-1.5" in said


def test_predictions_are_scored_on_what_both_have(city, predictions, tmp_path):
    root, tokens = city
    out = tmp_path / "c.html"
    said = occ(*predictions, root / "gts", "--html", out)
    assert "one: 1 of 2 predictions left out" in said and "other: 1 of 2 predictions left out" in said
    data = page(out)
    assert data["scene"]["volumes"] == ["one", "other", "true"] and len(data["scene"]["frames"]) == 1
    for folder in predictions:
        packed = data["scene"]["frames"][0]["volumes"][folder.name]
        with np.load(folder / f"{tokens[1]}.npz") as file:
            labels = file["pred"][file["pred"] != 17]
        np.testing.assert_array_equal(np.frombuffer(zlib.decompress(base64.b64decode(packed["label"])), "u1"), labels)
    for place, folder in enumerate(predictions):  # alone, by `occ eval`
        alone = tmp_path / folder.name
        alone.mkdir()
        shutil.copy(folder / f"{tokens[1]}.npz", alone)
        arguments = ["eval", str(alone), str(root / "gts"), "--json", str(tmp_path / "s.json")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        report = json.loads((tmp_path / "s.json").read_text())
        assert rows(data, "scores")["camera: IoU"][place] == f"{report['camera']['iou']:.1f}"
        assert rows(data, "classes")["car"][place] == f"{report['camera']['per_class']['car']:.1f}"
        assert data["confusion"][place] == {"name": folder.name, **report["confusion"]}


def test_without_truth_predictions_are_shown(city, predictions, tmp_path):
    occ(*predictions, "--data", city[0], "--html", tmp_path / "c.html")
    data = page(tmp_path / "c.html")
    assert data["scene"]["volumes"] == ["one", "other", "true"] and data["tables"] == []
    with pytest.raises(MissingInput, match="nothing to compare predictions by"):
        occ(*predictions)


def test_what_makes_no_sense_is_refused_in_one_line(city, predictions, tmp_path):
    report, other = tmp_path / "a.json", tmp_path / "b.json"
    report.write_text(json.dumps({"camera": SCORES}))
    with pytest.raises(InvalidInput, match="only two of a kind"):
        occ(report, predictions[0])
    for text in ("[]", "{", '{"camera": 5}', '{"camera": {"iou": "x"}}', '{"step": 5}', '{"reliability": {}}'):
        other.write_text(text)
        with pytest.raises(CorruptInput, match=r"b\.json"):
            occ(report, other)
    apart = tmp_path / "apart"
    save_prediction(apart / f"{city[1][0]}.npz", np.full(OCC3D_GRID.shape, 17, np.uint8))
    with pytest.raises(InvalidInput, match="no frame in common"):
        occ(predictions[0], apart, city[0] / "gts")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text("step,total\n1,2\n")
    with pytest.raises(MissingInput, match="a training without a checkpoint"):
        occ(tmp_path / "run", tmp_path / "run")


def test_two_trainings(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    import tiny_camera_network as tiny

    from occ_core.training import loop

    tiny.use_tiny(monkeypatch.setattr)
    tiny.make_data(tmp_path / "set")
    for name, rate in (("a", 0.05), ("b", 0.001)):
        loop.train(tiny.run_config(tmp_path / "set", steps=3, learning_rate=rate), tmp_path / name)
    occ(tmp_path / "a", tmp_path / "b", "--html", tmp_path / "c.html")
    data = page(tmp_path / "c.html")
    metrics = [json.loads((tmp_path / n / "model.json").read_text())["training"]["metrics"] for n in "ab"]
    assert rows(data, "scores")["camera: IoU"][:2] == [f"{m['iou']:.1f}" for m in metrics]
    assert rows(data, "settings")["config.learning_rate"] == ["0.05", "0.001"]
    assert [curve["name"] for curve in data["curves"]] == ["a", "a, held out", "b", "b, held out"]
    assert data["curves"][2]["lines"]["total"] == [float(row["total"]) for row in tiny.rows(tmp_path / "b")]
