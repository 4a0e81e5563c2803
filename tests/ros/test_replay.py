"""A stretch of a bag, played to the node by the files that `occ adapt` writes."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("rosbags")
pytest.importorskip("torch")

from adapt_robot import TINY
from bag_robot import T0, S, robot
from model_fixtures import write_checkpoint

from occ_core.adapt.deploy import write_node_of
from occ_core.sources.stretch import Stretch
from occ_ros.replay import replay

pytestmark = pytest.mark.ros


def test_the_end_of_a_bag_through_the_node(tmp_path):
    import torch

    out = tmp_path / "out"
    bag = robot(images=30).write(tmp_path / "drive")
    Stretch(bag, T0 + 2 * S, T0 + 3 * S).write(out / "drive.judge")
    model = write_checkpoint(torch, TINY, tmp_path / "model.safetensors")
    said = write_node_of(out, out / "drive.judge", model, "torch", threads=1)
    assert said["run"].endswith(f"--params-file {out / 'node.yaml'}")
    counted = replay(out / "node.yaml", out / "drive.judge")
    assert 1 <= counted["frames_answered"] <= 21  # from a second before the stretch to the end, at 10 Hz
    assert counted["p95_ms"] >= counted["p50_ms"] > 0
