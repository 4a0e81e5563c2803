"""The whole line on a small robot's bag: what it leaves, and that kills change no byte of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'occ_ros[bags]'")
pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")
pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from adapt_robot import make_robot
from killed import run_killed
from label_fixtures import hashes

from occ_core.adapt import deploy
from occ_core.adapt.label import LABELS
from occ_core.adapt.line import plan, run
from occ_core.errors import InvalidInput
from occ_core.evaluation.report import evaluate_folders
from occ_core.inference.predictor import Predictor
from occ_core.rig_file import load_rig_file
from occ_core.sources.open import open_source

STEPS = 16
SETUP = """
from pathlib import Path
import importlib
from occ_core.adapt import line
judging = importlib.import_module("occ_core.adapt.judge")
from occ_core.inference import export
from occ_core.labels.store import LabelStore
from occ_core.training import loop
"""


@pytest.fixture(scope="module")
def robot(tmp_path_factory) -> dict[str, Path]:
    return make_robot(tmp_path_factory.mktemp("robot") / "r", keyframes=22)


def planned(robot, out):
    """Class maps as files, depth by the LiDAR: the quickest labels."""
    teacher = f"files:{robot['maps']}+lidar"
    return plan([robot["bag"]], out, robot["start"], teacher, steps=STEPS, threads=1)


@pytest.fixture(scope="module")
def adapted(robot, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "FRAMES", 1)
        patch.setattr(deploy, "REPEATS", 1)
        run(planned(robot, out), print)
    return out


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_what_the_line_leaves(robot, adapted):
    report = report_of(adapted)
    assert report["asked"]["recipe"] == "lidar" and report["size"] == {"steps": STEPS}
    assert report["labels"] == {"labels": {"drive.learn": 16, "drive.judge": 4}, "lacking": []}
    for part in ("before", "after"):
        scores = report[part]
        assert scores["lidar"]["frames"] == scores["labels"]["samples"] == 4 and "truth" not in scores
        assert len(list((adapted / "judged" / part).glob("*.npz"))) == 4
        by_file, _ = evaluate_folders(adapted / "judged" / part, adapted / "stretches" / "drive.judge" / LABELS)
        assert scores["labels"]["reliability"]["all"] == pytest.approx(by_file["reliability"]["all"])
        assert {"lidar_above", "lidar_ground"} & set(scores["summary"]) and scores["summary"]["labels_iou"] >= 0
    chosen = robot["start"] if not report["better"] else adapted / "train" / "model.safetensors"
    assert report["checkpoint"] == str(chosen) and report["trained"]["steps"] == STEPS
    assert {"torch fp32", "onnxruntime fp32", "onnxruntime int8"} <= set(report["speed"])
    assert report["speed"]["torch fp32"]["same_percent"] == 100 and report["speed"]["onnxruntime fp32"]["p50_ms"] > 0
    assert report["speed"]["onnxruntime fp32"]["equal_percent"] > 99.9
    page = (adapted / "report.html").read_text()
    assert '"volumes":["after","before","labels"]' in page and report["why"] in page


def test_the_nodes_parameters_run_what_was_judged(robot, adapted):
    parameters = yaml.safe_load((adapted / "node.yaml").read_text())["/**"]["ros__parameters"]
    frame = open_source(robot["bag"])[0]
    entries = load_rig_file(parameters["rig_file"])
    assert tuple(entry.camera.name for entry in entries) == frame.rig.names
    assert entries[0].image_topic == "/cam_back/image_raw/compressed" and parameters["base_frame"] == "base_link"
    np.testing.assert_allclose(entries[1].camera.ego_from_cam, frame.rig.cameras[1].ego_from_cam, atol=1e-9)
    predictor = Predictor.load(parameters["model"], parameters["backend"], 1)
    assert predictor.predict_frame(frame).labels.shape == (200, 200, 16)


def kill(robot, out: Path, watched: str, counts: tuple[int, ...]) -> list[bool]:
    """Runs of the line, killed at the so-and-so-many-th call of a function."""
    teacher = f"files:{robot['maps']}+lidar"
    where, name = watched.rsplit(".", 1)
    patch = f"old = {where}.{name}; {where}.{name} = lambda *a, **k: (step(), old(*a, **k))[1]"
    asked = f"[Path({str(robot['bag'])!r})], Path({str(out)!r}), Path({str(robot['start'])!r}), {teacher!r}"
    call = f"os.dup2(2, 1); {patch}; line.run(line.plan({asked}, steps={STEPS}, threads=1), print)"
    return run_killed(SETUP, call, counts)


def weights_and_labels(out: Path) -> dict[str, str]:
    found = hashes(out)
    return {name: of for name, of in found.items() if name.startswith("stretches") or name.endswith(".safetensors")}


@pytest.mark.slow
def test_killed_in_labels_and_training_ends_with_the_same_bytes(robot, adapted, tmp_path):
    out = tmp_path / "out"
    assert kill(robot, out, "LabelStore.write", (3, 5)) == [True, True]
    assert not (out / "stages" / "labels.json").exists() and (out / "stages" / "masks.json").exists()
    assert kill(robot, out, "loop.train_step", (9,)) == [True]
    run(planned(robot, out), print)
    assert weights_and_labels(out) == weights_and_labels(adapted)
    mine, theirs = report_of(out), report_of(adapted)
    assert mine["after"] == theirs["after"] and mine["before"] == theirs["before"]


@pytest.mark.slow
def test_killed_in_judging_and_export_ends_with_the_same_bytes(robot, adapted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(adapted, out)
    for stage in ("after", "export", "speed", "node"):
        os.remove(out / "stages" / f"{stage}.json")
    for path in (*out.glob("*.onnx"), *(out / "judged" / "after").glob("*.npz"), out / "node.yaml"):
        path.unlink()
    assert kill(robot, out, "judging.save_prediction", (3,)) == [True]
    assert len(list((out / "judged" / "after").glob("*.npz"))) == 2
    assert kill(robot, out, "export.write_atomically", (2,)) == [True]
    assert (out / "model_fp32.onnx").is_file() and not (out / "model_int8.onnx").exists()
    run(planned(robot, out), print)
    changed = {name for name, of in hashes(adapted).items() if hashes(out).get(name) != of}
    # times differ, and whatever tells them; the copy's own path
    assert {name for name in changed if name.endswith((".npz", ".safetensors", ".onnx"))} == set()


@pytest.mark.slow
def test_cities_beside_the_drive_are_learned_from_and_a_kill_changes_no_byte(robot, tmp_path):
    pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")
    teacher, setup = f"files:{robot['maps']}+lidar", SETUP + "from occ_core.world import scene\n"

    def call(out: Path) -> str:
        patch = "old = scene.write_atomically; scene.write_atomically = lambda *a: (step(), old(*a))"
        asked = f"[Path({str(robot['bag'])!r})], Path({str(out)!r}), Path({str(robot['start'])!r}), {teacher!r}"
        return f"os.dup2(2, 1); {patch}; line.run(line.plan({asked}, steps={STEPS}, threads=1, cities=4), print)"

    assert run_killed(setup, call(tmp_path / "a"), (0,)) == [False]
    assert run_killed(setup, call(tmp_path / "b"), (20, 0)) == [True, False]
    mine, theirs = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    kinds = ("cities/learn/", "cities/fit/", "train/model.safetensors", "stretches/")
    assert {n: of for n, of in mine.items() if n.startswith(kinds)} == {
        n: of for n, of in theirs.items() if n.startswith(kinds)
    }
    record = json.loads((tmp_path / "a" / "train" / "model.json").read_text())["training"]
    assert record["data"]["scenes"] == 5 and record["data"]["samples"] == 20
    assert len(record["data"]["threshold_scenes"]) == 3  # of `fit`: nothing that was learned from
    seen, rig = open_source(tmp_path / "a" / "cities" / "learn")[0].rig, open_source(robot["bag"])[0].rig
    assert seen.names == rig.names and report_of(tmp_path / "a")["labels"]["labels"] == {
        "drive.learn": 16,
        "drive.judge": 4,
    }


def test_another_adaption_in_the_same_folder_is_refused(robot, adapted):
    with pytest.raises(InvalidInput, match=r"another 'steps' \(16, asked for 17\): choose another folder"):
        plan([robot["bag"]], adapted, robot["start"], f"files:{robot['maps']}+lidar", steps=17, threads=1)
