"""No bag at all: cities seen by a rig file's cameras, a network that learns from them; kills change no byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("embreex", reason="the simulated city needs embreex: pip install 'occ_ros[world]'")
pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from adapt_robot import TINY
from killed import run_killed
from label_fixtures import hashes
from model_fixtures import write_checkpoint
from typer.testing import CliRunner

from occ_core.adapt import cities, deploy
from occ_core.adapt.line import plan_of_cities, run
from occ_core.camera import Camera, Rig
from occ_core.cli.main import app
from occ_core.errors import InvalidInput
from occ_core.rig_file import load_rig_file, rig_text
from occ_core.sources.open import open_source
from occ_core.world.sensors import mounted

STEPS = 16
TOPIC = "/front/image_raw"


def camera(name: str, yaw_deg: float, size: tuple[int, int], focal_px: float, **lens) -> Camera:
    k = np.array([[focal_px, 0, size[0] / 2], [0, focal_px, size[1] / 2], [0, 0, 1]])
    return Camera(name, k, size, mounted((0.3, 0.0, 0.8), np.radians([yaw_deg, 3.0, 0.0])), **lens)


RIG = Rig(
    (
        camera("front", 0.0, (640, 400), 400.0),
        camera("rear", 180.0, (96, 72), 30.0, distortion_model="equidistant", distortion=(0.01, 0.0, 0.0, 0.0)),
    )
)


@pytest.fixture(scope="module")
def robot(tmp_path_factory) -> dict[str, Path]:
    import torch

    folder = tmp_path_factory.mktemp("robot")
    (folder / "rig.yaml").write_text(rig_text(RIG, {"front": TOPIC}, {}))
    return {"rig": folder / "rig.yaml", "start": write_checkpoint(torch, TINY, folder / "start.safetensors")}


def planned(robot, out: Path):
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        return plan_of_cities(robot["rig"], out, robot["start"], 2, 5, steps=STEPS, threads=1)


def few(patch) -> None:
    patch.setattr(cities, "LEAST_CITIES", 2)
    patch.setattr(cities, "LEAST", 1)
    patch.setattr(deploy, "FRAMES", 1)
    patch.setattr(deploy, "REPEATS", 1)


@pytest.fixture(scope="module")
def adapted(robot, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "out"
    found = planned(robot, out)
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        run(found, print, replay=lambda node, stretch: pytest.fail("there is no bag to replay"))
    return out


@pytest.mark.slow
def test_what_the_line_leaves(robot, adapted):
    report = json.loads((adapted / "report.json").read_text())
    assert report["labels"]["labels"] == {"learn": 2, "fit": 1, "judge": 1} and report["labels"]["lacking"] == []
    for part in ("before", "after"):
        scores = report[part]
        assert scores["lidar"]["frames"] == scores["labels"]["samples"] == scores["truth"]["samples"] == 1
    assert report["trained"]["steps"] == STEPS and "replay" not in report
    seen = [open_source(adapted / "cities" / part)[0] for part in ("learn", "fit", "judge")]
    assert {frame.rig["front"].size for frame in seen} == {(480, 300)} and seen[0].rig["rear"].size == (96, 72)
    images = [frame.images["front"] for frame in seen]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])
    assert '"volumes":["after","before","labels","true"]' in (adapted / "report.html").read_text()


@pytest.mark.slow
def test_the_node_gets_the_rig_as_it_is(robot, adapted):
    parameters = yaml.safe_load((adapted / "node.yaml").read_text())["/**"]["ros__parameters"]
    assert "max_spread_s" not in parameters and Path(parameters["model"]).is_file()
    front, rear = load_rig_file(parameters["rig_file"])
    assert (front.image_topic, rear.image_topic) == (TOPIC, "")
    for entry, given in ((front, RIG["front"]), (rear, RIG["rear"])):
        assert entry.camera.size == given.size and entry.camera.distortion == given.distortion
        np.testing.assert_allclose(entry.camera.ego_from_cam, given.ego_from_cam, atol=1e-9)


@pytest.mark.slow
def test_killed_while_cities_are_rendered_ends_with_the_same_bytes(robot, adapted, tmp_path):
    out = tmp_path / "out"
    setup = """
from pathlib import Path
from occ_core.adapt import cities, deploy, line
from occ_core.world import scene
cities.LEAST_CITIES, cities.LEAST, deploy.FRAMES, deploy.REPEATS = 2, 1, 1, 1
"""
    patch = "old = scene.write_atomically; scene.write_atomically = lambda *a: (step(), old(*a))"
    asked = f"Path({str(robot['rig'])!r}), Path({str(out)!r}), Path({str(robot['start'])!r}), 2, 5"
    call = f"os.dup2(2, 1); {patch}; line.run(line.plan_of_cities({asked}, steps={STEPS}, threads=1), print)"
    assert run_killed(setup, call, (9, 12)) == [True, True]
    assert not (out / "stages" / "cities.json").exists() and (out / "cities" / "learn").is_dir()
    found = planned(robot, out)
    with pytest.MonkeyPatch.context() as few_patch:
        few(few_patch)
        run(found, print)
    mine, theirs = hashes(out), hashes(adapted)
    kinds = ("cities/", "train/model.safetensors")
    assert {n: of for n, of in mine.items() if n.startswith(kinds)} == {
        n: of for n, of in theirs.items() if n.startswith(kinds)
    }
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, adapted)]
    assert reports[0]["after"] == reports[1]["after"]


def test_what_cannot_be_done_is_one_line_before_any_work(robot, tmp_path):
    out = tmp_path / "out"

    def said(*arguments) -> str:
        result = CliRunner().invoke(app, ["adapt", *map(str, arguments)])
        assert result.exception is not None and not out.exists()
        assert isinstance(result.exception, InvalidInput), result.exception
        return str(result.exception)

    assert "no file 'nowhere.yaml'" in said("--sim-only", "nowhere.yaml", out)
    assert "cities must be at least 4, got 3" in said("--sim-only", robot["rig"], "--cities", 3, out)
    assert "--sim-only takes OUT alone" in said("--sim-only", robot["rig"], tmp_path, out)
    assert "--sim-only takes OUT alone" in said("--sim-only", robot["rig"], "--teacher", "oracle", out)
    low = Rig((Camera("low", RIG["front"].intrinsics, (640, 400), mounted((0, 0, 0.01), np.zeros(3))),))
    (tmp_path / "low.yaml").write_text(rig_text(low, {}, {}))
    assert "camera 'low' is 0.01 m above" in said("--sim-only", tmp_path / "low.yaml", out)


def test_a_dry_run_says_how_much_there_is_to_do(robot, tmp_path):
    result = CliRunner().invoke(app, ["adapt", "--sim-only", str(robot["rig"]), str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "80 simulated cities of one keyframe, seen by 2 cameras (front, rear)" in result.output
    assert "recipe completed, teacher realistic+realistic+lidar; 8 of them only judge" in result.output


def test_another_rig_in_the_same_folder_is_refused(robot, tmp_path):
    (tmp_path / "adapt.json").write_text(json.dumps(planned(robot, tmp_path).asked))
    assert planned(robot, tmp_path).out == tmp_path
    (tmp_path / "other.yaml").write_text(rig_text(Rig(RIG.cameras[:1]), {"front": TOPIC}, {}))
    with pytest.raises(InvalidInput, match="holds an adaption with another 'rig'"):
        planned({**robot, "rig": tmp_path / "other.yaml"}, tmp_path)
