"""See odd_robots.py; hundreds by `python benchmarks/odd_robots.py`."""

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import odd_robots
import ros_fixtures as fx

pytestmark = [pytest.mark.ros, pytest.mark.slow]
DOMAIN = 1 + (os.getpid() + 29) % 100


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """(rig, answers to its pictures) of a node that has to live to the end."""
    folder = tmp_path_factory.mktemp("odd")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(Path(__file__).resolve().parents[2] / "config" / "fastdds.xml")
    model = fx.tiny_model(folder, odd_robots.MODEL, occupied_share=0.9)
    process = fx.start_node("occupancy_node", DOMAIN, folder / "node.log", model=str(model), **odd_robots.PARAMETERS)
    rig = odd_robots.OddRig(DOMAIN)
    rig.start()
    try:
        yield rig, odd_robots.learn(rig)
        assert process.poll() is None, "the node died"
    finally:
        rig.stop()
        fx.stop(process, signal.SIGTERM)
        print((folder / "node.log").read_text())


@pytest.mark.parametrize("name", sorted(odd_robots.ODD))
def test_what_is_odd_is_named_or_changes_nothing(answered, name):
    rig, plain = answered
    seed = next(seed for seed in range(10_000) if f": {name} of " in odd_robots.case(seed)[0])
    assert not odd_robots.finding(rig, plain, seed)
