"""What stops a node at its start, in one line, and bags that a player can and cannot play."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import ros_fixtures as fx
from rosbags.rosbag2 import StoragePlugin

pytestmark = pytest.mark.ros
DOMAIN = fx.own_domain()
CAMERAS = list(fx.RIG.names)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return fx.tiny_model(tmp_path_factory.mktemp("model"))


def ends(module, folder, timeout_s=40.0, **parameters):
    """(exit code, output) of a node that is expected to end by itself."""
    process = fx.start_node(module, DOMAIN, folder / "log", **parameters)
    code = fx.finish(process, timeout_s)
    return code, (folder / "log").read_text()


@pytest.mark.parametrize(
    "module, parameters, words",
    [
        ("occupancy_node", {}, "parameter 'model' is empty"),
        ("occupancy_node", {"model": "/nowhere/x.safetensors"}, "/nowhere/x.safetensors: no such model"),
        (
            "occupancy_node",
            {"model": "x", "backend": "magic"},
            "must be auto or torch or torch-compiled or onnxruntime or openvino or tensorrt, got 'magic'",
        ),
        ("occupancy_node", {"model": "x", "deadline_s": -1.0}, "deadline_s"),
        ("occupancy_node", {"model": "x", "deadline_s": "soon"}, "deadline_s"),
        ("occupancy_node", {"model": "x", "cameras": ["a", "a"]}, "'cameras' must be one or more different names"),
        ("occupancy_node", {"model": "x", "image_topic": "/image"}, "must contain '{camera}'"),
        ("player_node", {}, "parameter 'bag' is empty"),
        ("player_node", {"bag": "/nowhere"}, "/nowhere: no such bag"),
    ],
)
def test_bad_parameters_are_one_line(tmp_path, module, parameters, words):
    code, output = ends(module, tmp_path, **parameters)
    assert code == 2
    assert words in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_model_that_is_no_safetensors(tmp_path, model):
    shutil.copy(model.with_suffix(".json"), tmp_path / "m.json")
    (tmp_path / "m.safetensors").write_bytes(b"\x80\x04 this could be a pickle")
    code, output = ends("occupancy_node", tmp_path, model=tmp_path / "m.safetensors", backend="torch")
    assert code == 2
    assert "safetensors" in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_player_plays_all_messages_at_the_rate(tmp_path, storage):
    fx.write_bag(tmp_path / "bag", 5, storage=storage)
    start = time.monotonic()
    code, output = ends("player_node", tmp_path, bag=tmp_path / "bag", rate=4.0, report_file=tmp_path / "played.json")
    assert code == 0, output
    played = json.loads((tmp_path / "played.json").read_text())
    assert played["messages"] == {
        "/tf_static": 1,
        **{f"/{name}/{topic}": 5 for name in CAMERAS for topic in ("camera_info", "image_raw/compressed")},
    }
    assert played["skipped_topics"] == {}
    assert time.monotonic() - start > 2.0 / 4.0


@pytest.mark.parametrize("how", ["empty", "truncated", "no metadata"])
def test_player_names_a_bad_bag(tmp_path, how):
    bag = fx.write_bag(tmp_path / "bag", 0 if how == "empty" else 3, tf=how != "empty")
    data = next(bag.glob("*.mcap"))
    if how == "truncated":
        data.write_bytes(data.read_bytes()[:-3000])
    if how == "no metadata":
        (bag / "metadata.yaml").unlink()
    code, output = ends("player_node", tmp_path, bag=bag)
    assert code == 2
    assert output.startswith(f"error: {bag}")
    assert output.count("\n") == 1


def test_player_gives_up_waiting(tmp_path):
    fx.write_bag(tmp_path / "bag", 1)
    wait = {"wait_for_topics": ["/f/camera_info"], "wait_timeout_s": 0.5}
    code, output = ends("player_node", tmp_path, bag=tmp_path / "bag", **wait)
    assert code == 1
    assert "fewer than 1 subscribers on /f/camera_info" in output


def test_evaluator_without_any_input_ends(tmp_path):
    code, output = ends(
        "evaluator_node", tmp_path, cameras=CAMERAS, start_timeout_s=0.5, report_file=tmp_path / "report.json"
    )
    assert code == 1
    assert "nothing came" in output
    assert json.loads((tmp_path / "report.json").read_text())["frames_sent"] == 0


def test_looping_player_stops_at_a_signal(tmp_path):
    fx.write_bag(tmp_path / "bag", 2)
    report = tmp_path / "played.json"
    process = fx.start_node(
        "player_node", DOMAIN, tmp_path / "log", bag=tmp_path / "bag", loop=True, rate=5.0, report_file=report
    )
    fx.wait_for(lambda: "playing" in (tmp_path / "log").read_text(), 60.0, "start of the player")
    time.sleep(3.0)
    assert process.poll() is None
    assert fx.stop(process, signal.SIGTERM) == 0
    played = json.loads(report.read_text())
    assert played["loops"] >= 2
    assert played["messages"]["/f/camera_info"] > 4
