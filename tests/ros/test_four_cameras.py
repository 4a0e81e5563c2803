"""A robot of four cameras, one a fisheye, with a rig file and no CameraInfo: from its bag to its running node."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("torch")
pytest.importorskip("onnx", reason="export needs onnx: pip install 'occ_ros[export]'")
pytest.importorskip("onnxruntime")
pytest.importorskip("numba", reason="ray casting needs numba: pip install 'occ_ros[world]'")

import four_cameras
import rclpy
import ros_fixtures as fx
import yaml
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import PointCloud2

from occ_core.cli.main import app
from occ_core.clouds import VOXEL_POINT, occupancy_of
from occ_core.grid import OCC3D_GRID
from occ_core.labels.store import LabelStore
from occ_core.taxonomy import OCC3D
from occ_ros.messages import points_of, stamp_ns_of

pytestmark = [pytest.mark.ros, pytest.mark.slow]
DOMAIN = fx.own_domain()
RUN = {
    "model": {"kind": "easyocc-nano", "name": "four", "depth_by_ground": True},
    "nano": {"image_steps": 10, "image_batch": 2, "threshold_scenes": 0},
    "validation_scenes": 0, "threads": 1, "device": "cpu", "warmup_steps": 2, "learning_rate": 0.01, "ema_decay": 0.5,
}  # fmt: skip


def occ(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception}"
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The folder of all that the commands made."""
    folder = tmp_path_factory.mktemp("four")
    bag, maps = four_cameras.make(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    said = occ("bag", "check", bag)
    assert said.count("640 x 480") == 4 and said.count(" ok ") == 4 and "equidistant" in said
    occ("labels", "make", bag, folder / "labels", "--recipe", "single", "--teacher", f"files:{maps}")
    given = ("--data", bag, "--labels", folder / "labels", "--steps", 20, "--out", folder / "run")
    occ("train", folder / "run.yaml", *given, "--cache", folder / "cache")
    occ("export", folder / "run/model.safetensors", folder / "four.onnx")
    occ("predict", folder / "four.onnx", bag, folder / "predictions", "--threads", 1, "--backend", "onnxruntime")
    return folder


def test_labels_are_where_floor_and_wall_stand(line):
    store = LabelStore(line / "labels")
    assert len(store.samples) == 3
    for number, (scene, token) in enumerate(sorted(store.samples)):
        occupancy = store.read(scene, token).occupancy
        x_m, _, z_m = OCC3D_GRID.centers_of_m(occupancy.occupied).T
        floor = np.abs(z_m) <= OCC3D_GRID.voxel_size_m
        wall_x_m = four_cameras.WALL_X_M - number * four_cameras.SPEED_M_S * four_cameras.PERIOD_NS / 1e9
        wall = np.abs(x_m - wall_x_m) <= OCC3D_GRID.voxel_size_m
        assert floor.sum() > 500 and wall.sum() > 500 and (floor | wall).all()


def test_20_steps_of_four_cameras_are_recorded(line):
    record = json.loads((line / "run/model.json").read_text())["training"]
    assert record["data"]["cameras"] == 4 and record["data"]["samples"] == 3
    assert record["config"]["steps"] + record["config"]["nano"]["image_steps"] == 20
    assert len(list((line / "predictions").glob("*.npz"))) == 3


def test_the_node_answers_as_predict_does(line):
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    bag, clouds = line / "drive", []
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    listener, executor = rclpy.create_node("listener", context=context), SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    listener.create_subscription(PointCloud2, "/occupancy_node/occupancy", clouds.append, 10)
    node = fx.start_node(
        "occupancy_node", DOMAIN, line / "node.log", model=line / "four.onnx", backend="onnxruntime", threads=1,
        rig_file=bag / "rig.yaml", deadline_s=5.0, budget_ms=60000.0, image_reliability="reliable",
    )  # fmt: skip
    player = fx.start_node(
        "player_node", DOMAIN, line / "player.log", bag=bag, rate=0.1, wait_timeout_s=180.0, start_delay_s=2.0,
        wait_for_topics=["/rear/image_raw/compressed"],
    )  # fmt: skip
    try:
        while player.poll() is None:
            executor.spin_once(timeout_sec=0.1)
        fx.wait_for(lambda: executor.spin_once(timeout_sec=0.1) or clouds, 120, "an answer")
        assert (player.returncode, fx.stop(node, signal.SIGTERM)) == (0, 0)
    finally:
        for process in (node, player):
            if process.poll() is None:
                process.kill()
        print((line / "node.log").read_text(), (line / "player.log").read_text())
        executor.shutdown()
        context.try_shutdown()
    for cloud in clouds:
        said = occupancy_of(points_of(cloud, VOXEL_POINT), OCC3D_GRID, OCC3D)
        expected = np.load(line / f"predictions/drive_{stamp_ns_of(cloud.header.stamp)}.npz")["pred"]
        assert (said.labels == expected).mean() > 0.999  # rounding of the rig file's numbers
        assert (expected != OCC3D.free_id).any()
