"""What a run shows of itself, against the files it was trained on and what its checkpoint answers."""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tiny_camera_network as tiny  # noqa: E402

from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.sources.open import open_source  # noqa: E402
from occ_core.training import loop, watch  # noqa: E402
from occ_core.training.data_sets import open_data  # noqa: E402

torch.set_num_threads(1)


pytestmark = pytest.mark.usefixtures("tiny_network")


def page(out: Path) -> dict:
    return json.loads((out / "report.html").read_text().split('id="data">')[1].split("</script>")[0])


def scores(out: Path) -> list[dict[str, str]]:
    with open(out / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_curves_pictures_and_a_page(data, tmp_path):
    path = loop.train(tiny.run_config(data, steps=6, validate_every=3), tmp_path / "out")
    out, source = path.parent, open_source(data)
    held_out = [i for i, (scene, _) in enumerate(source.samples) if scene == "scene-0003"]
    tokens = [source.names[i] for i in held_out]
    record = json.loads(path.with_suffix(".json").read_text())["training"]["metrics"]
    assert [int(row["step"]) for row in scores(out)] == [3, 6]
    assert float(scores(out)[-1]["iou"]) == pytest.approx(record["iou"], rel=1e-5)
    names = {f"step_{step:07d}_scene-0003_{token}.png" for step in (3, 6) for token in tokens}
    assert {file.name for file in (out / "pictures").iterdir()} == names
    predictor = Predictor.load(path, "torch", 1)
    for number, token in zip(held_out, tokens, strict=True):
        said = predictor.predict_frame(source[number])
        with np.load(out / "held_out" / f"{token}.npz") as file:
            np.testing.assert_array_equal(file["pred"], said.labels)
            np.testing.assert_array_equal(file["observed"], said.observed)
    shown = page(out)
    assert shown["scene"]["volumes"] == ["predicted", "label"] and len(shown["scene"]["frames"]) == 2
    label = shown["scene"]["frames"][0]["volumes"]["label"]
    cells = np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(label["steps"])), "<u4"))
    x, y, z = np.unravel_index(cells, tiny.GRID.shape)
    assert len(cells) == 18 * 20 and x.min() == 2 and not z.any()  # ground, but for two rows that nobody observed
    curves = {curve["name"]: curve["lines"] for curve in shown["curves"]}
    assert curves["training"]["total"] == [float(row["total"]) for row in tiny.rows(out)]
    assert curves["held out"]["iou"] == [float(row["iou"]) for row in scores(out)]
    assert ["IoU", f"{record['iou']:.1f}"] in shown["tables"][0]["rows"]


def test_the_plot_has_lines(data, tmp_path):
    pytest.importorskip("matplotlib")
    loop.train(tiny.run_config(data, steps=4), tmp_path / "out")
    picture = cv2.imread(str(tmp_path / "out" / "loss.png"))
    spread = np.ptp(picture.astype(int), axis=2)
    assert picture.shape[1] > 1000 and (spread > 60).sum() > 500  # two plots, with coloured lines


def test_ctrl_c_leaves_a_page_of_what_was_learned(data, tmp_path, monkeypatch):
    original = loop.train_step

    def interrupted(now, *rest):
        if now.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(now, *rest)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(tiny.run_config(data, steps=5), tmp_path / "out")
    shown = page(tmp_path / "out")
    assert shown["scene"] is None and shown["curves"][0]["x"]["values"] == [1, 2, 3]
    monkeypatch.setattr(loop, "train_step", original)
    loop.train(tiny.run_config(data, steps=5), tmp_path / "out", resume=True)
    shown = page(tmp_path / "out")
    assert shown["curves"][0]["x"]["values"] == [1, 2, 3, 4, 5] and len(shown["scene"]["frames"]) == 2


def test_a_run_that_holds_out_nothing_has_curves_alone(data, tmp_path):
    loop.train(tiny.run_config(data, steps=2, validation_scenes=0), tmp_path / "out")
    shown = page(tmp_path / "out")
    assert shown["scene"] is None and shown["tables"] == [] and [c["name"] for c in shown["curves"]] == ["training"]
    assert not (tmp_path / "out" / "scores.csv").exists() and not (tmp_path / "out" / "pictures").exists()


def test_a_new_run_removes_what_the_old_one_showed_and_nothing_else(data, tmp_path):
    out = tmp_path / "out"
    loop.train(tiny.run_config(data, steps=2), out)
    mine = [out / "pictures" / "mine.png", out / "held_out" / "mine.txt"]
    for path in mine:
        path.write_text("mine")
    loop.train(tiny.run_config(data, steps=1), out, overwrite=True)
    assert all(path.read_text() == "mine" for path in mine)
    assert {path.name[:12] for path in (out / "pictures").glob("step_*")} == {"step_0000001"}


def test_without_optional_packages_the_rest_is_there(data, tmp_path, monkeypatch):
    known = watch.find_spec
    monkeypatch.setattr(watch, "find_spec", lambda name: None if name in ("matplotlib", "tensorboard") else known(name))
    loop.train(tiny.run_config(data, steps=1), tmp_path / "out")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert "report.html" in there and not there & {"loss.png", "tensorboard"}


def test_tensorboard_has_what_log_and_scores_say(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    loop.train(tiny.run_config(data, steps=4, validate_every=2), out)
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    scalars = [(event.step, event.value) for event in board.Scalars("training/total")]
    assert scalars == [(int(row["step"]), pytest.approx(float(row["total"]), rel=1e-5)) for row in tiny.rows(out)]
    assert [event.step for event in board.Scalars("held_out/iou")] == [2, 4]
    (name, other) = board.Tags()["images"]
    assert name != other and [event.step for event in board.Images(name)] == [2, 4]


def test_samples_of_tables_are_found_in_their_data(tmp_path):
    """The order of a table's samples, scene by scene, is that of their keyframes."""
    from model_fixtures import COARSE_NANO

    from occ_core.training.task import needs_of

    tiny.make_data(tmp_path / "set", scenes=3, keyframes=2, grid=COARSE_NANO.grid)
    config = tiny.run_config(tmp_path / "set", model=COARSE_NANO, cache=tmp_path / "cache", validation_scenes=1)
    held = open_data(config, needs_of(config), lambda line: None)
    for part in (held.training, held.validation):
        for index in range(len(part)):
            source, keyframe = part.keyframe(index)
            scene, place = part.indices[index]
            assert part.scenes[scene].tokens[place] == keyframe.token
            assert source.frames.samples[keyframe.frame_index] == (keyframe.scene, keyframe.token)
