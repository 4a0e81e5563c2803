"""The node with a LiDAR over real DDS: what it answers, what it says when the LiDAR fails, how it comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import rclpy
import ros_fixtures as fx
import tiny_lidar_node as tiny
from fault_rig import NODE, until, watched
from lidar_rig import TOPIC, WELL, LidarRig, SweepFault, sweep_cells
from sensor_msgs.msg import Image, PointCloud2

from occ_core.clouds import LIDAR_POINT, VOXEL_POINT, occupancy_of
from occ_core.errors import MissingInput
from occ_core.taxonomy import OCC3D
from occ_ros.messages import points_of, stamp_ns_of
from occ_ros.recorded import lidar_topic_of

pytestmark = pytest.mark.ros
DOMAIN, SECOND_DOMAIN = fx.own_domain(), fx.own_domain()
LIMIT_S = float(os.environ.get("OCC_FAULT_LIMIT_S", "5"))
SMALL = fx.CONFIG.model_copy(update={"voxel_size_m": 1.6, "grid_shape": (48, 48, 8)})  # a network of cameras
GRID = tiny.TinyLidarConfig().grid


def start(folder: Path, model: Path, domain: int, **parameters: Any) -> subprocess.Popen:
    own = {"model": model, "lidar_max_age_s": 0.05, **parameters}  # below the period: each set waits for its own sweep
    command = [sys.executable, tiny.__file__, *fx.ros_args({**NODE, **own})]
    with open(folder / "node.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=fx.environment(domain))


def running(folder: Path, dropout: float, domain: int):
    """A rig with a node that answers it."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    process = start(folder, tiny.checkpoint(folder / "tiny.safetensors", dropout), domain, lidar_topic=TOPIC)
    rig = LidarRig(domain)
    with watched(process, rig, folder / "node.log"):
        yield rig


@pytest.fixture(scope="module")
def needing(tmp_path_factory):
    """A network that cannot do without the LiDAR."""
    yield from running(tmp_path_factory.mktemp("needing"), 0.0, DOMAIN)


@pytest.fixture(scope="module")
def tolerant(tmp_path_factory):
    """A network that was trained with LiDAR dropout."""
    yield from running(tmp_path_factory.mktemp("tolerant"), 0.3, SECOND_DOMAIN)


def says(rig: LidarRig, name: str, words: str, since_s: float = 0.0) -> Callable[[], bool]:
    return lambda: any(at_s > since_s and who == name and words in text for at_s, who, _, text in reversed(rig.said))


def well(rig: LidarRig) -> bool:
    """Fresh statuses tell no error; that sweeps were lost some seconds ago may still be told."""
    fresh_s = time.monotonic() - 1.5
    worst = {"lidar": 1, "model": 0}
    return all(
        rig.status.get(name, (0.0,))[0] > fresh_s and rig.status[name][1] <= level for name, level in worst.items()
    )


def labels_of(cloud: PointCloud2) -> np.ndarray:
    return occupancy_of(points_of(cloud, VOXEL_POINT), GRID, OCC3D).labels


def is_whole(rig: LidarRig, cloud: PointCloud2) -> bool:
    """The answer's stamp is that of the newest image of a frame that was sent."""
    return stamp_ns_of(cloud.header.stamp) in {sent.stamp_ns for sent in list(rig.sent)}


def expected(steps: int) -> np.ndarray:
    labels = np.full(GRID.shape, OCC3D.free_id, dtype=np.uint8)
    for ago in reversed(range(steps)):
        labels[tuple(sweep_cells(GRID, ago).T)] = tiny.PRESENT if ago == 0 else tiny.PAST
    return labels


def settled_counts(rig: LidarRig) -> dict[str, int]:
    now_s = time.monotonic()
    until(lambda: rig.status["model"][0] > now_s, 30.0, lambda: str(rig.status))
    return rig.counts()


def frames_to_recover(rig: LidarRig, ended_s: float) -> int:
    def first() -> int:
        whole = [sent.stamp_ns for sent in rig.sent if sent.at_s > ended_s + rig.period_s]
        answered = {stamp_ns for _, stamp_ns in rig.answers}
        return next((i + 1 for i, stamp_ns in enumerate(whole) if stamp_ns in answered), 0)

    return until(first, 30.0, lambda: f"no answer after the fault: {rig.status}")


def test_01_an_answer_holds_the_returns_of_three_sweeps(needing):
    """Each in the ego frame of the moment, by its own pose on a robot that drives."""
    until(lambda: well(needing), 30.0, lambda: str(needing.status))
    # Before DDS has found every camera's publisher, sets lack its images: an answer has the stamp of the newest it has.
    until(lambda: any(is_whole(needing, cloud) and np.array_equal(labels_of(cloud), expected(3))
                      for cloud in needing.clouds[-3:]), 20.0,
          lambda: f"{[is_whole(needing, cloud) for cloud in needing.clouds[-3:]]} "
                  f"{np.argwhere(labels_of(needing.clouds[-1]) != OCC3D.free_id)}")  # fmt: skip
    until(lambda: int(needing.status["lidar"][3]["used"]) > 0, 10.0, lambda: str(needing.status))


def nan(points: np.ndarray) -> np.ndarray:
    spoiled = points.copy()
    spoiled["x"] = np.nan
    return spoiled


def zeros(points: np.ndarray) -> np.ndarray:
    return np.zeros_like(points)


def renamed(message: Any) -> None:
    message.fields[2].name = "range"


def twice(message: Any) -> None:
    message.fields[4].name = "x"


def claims_much(message: Any) -> None:
    message.width = message.height = 2**20


def elsewhere(message: Any) -> None:
    message.header.frame_id = "attic"


def stampless(message: Any) -> None:
    message.header.stamp.sec = message.header.stamp.nanosec = 0


FAULTS = {
    "lost": (SweepFault(silent=True), "no sweep for"),
    "1 s old": (SweepFault(older_s=1.0), "older than the images (lidar_max_age_s 0.05)"),
    "a year ahead": (SweepFault(older_s=-365 * 86400.0), "newer than the images"),
    "no stamp": (SweepFault(message=stampless), "sweep rejected: it carries no stamp"),
    "empty": (SweepFault(points=lambda points: points[:0]), "sweep rejected: point cloud is empty"),
    "NaN": (SweepFault(points=nan), "sweep rejected: none of its 4 points is finite"),
    "zeros": (SweepFault(points=zeros), "sweep rejected: none of its 4 points"),
    "no z": (SweepFault(message=renamed), "point cloud has no x, y, z, only: x, y, range"),
    "x twice": (SweepFault(message=twice), "point field 'x' comes twice"),
    "2^40 points": (SweepFault(message=claims_much), "1099511627776 points, a sweep has at most 1048576"),
    "no transform": (SweepFault(message=elsewhere), "nobody published 'attic'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_02_a_network_that_needs_it_does_not_answer_without(needing, name):
    fault, words = FAULTS[name]
    until(lambda: well(needing), 30.0, lambda: str(needing.status))
    before, begun_s = settled_counts(needing), time.monotonic()
    try:
        needing.sweep_fault = fault
        until(says(needing, "lidar", words, begun_s), LIMIT_S, lambda: str(needing.status))
        until(says(needing, "model", "frame not answered: no LiDAR: ", begun_s), LIMIT_S, lambda: str(needing.status))
        last_s = needing.answers[-1][0]
        time.sleep(3 * needing.period_s)
        assert needing.answers[-1][0] == last_s, "an answer without the LiDAR"
    finally:
        needing.sweep_fault, ended_s = WELL, time.monotonic()
    frames = frames_to_recover(needing, ended_s)
    after = settled_counts(needing)
    assert after["in"] == after["answered"] + after["dropped"] + after["skipped"]
    assert after["failed"] > before["failed"]
    assert frames <= 2 + after["superseded"] - before["superseded"]


def test_03_late_sweeps_are_waited_for(needing):
    until(lambda: well(needing), 30.0, lambda: str(needing.status))
    begun_s = time.monotonic()
    needing.sweep_fault = SweepFault(delay_s=0.05)
    time.sleep(10 * needing.period_s)
    needing.sweep_fault = WELL
    assert not says(needing, "model", "no LiDAR", begun_s)(), needing.said[-5:]
    np.testing.assert_array_equal(labels_of(needing.clouds[-1]), expected(3))


def test_04_without_odometry_the_newest_sweep_is_taken_as_it_is(needing):
    until(lambda: well(needing), 30.0, lambda: str(needing.status))
    needing.odometry = False
    until(lambda: np.array_equal(labels_of(needing.clouds[-1]), expected(1)), 10.0, lambda: str(needing.status))
    until(says(needing, "lidar", "only the newest sweep is used: no transform 'odom' <- 'base_link'"), LIMIT_S,
          lambda: str(needing.status))  # fmt: skip
    needing.odometry = True
    until(lambda: well(needing), 30.0, lambda: str(needing.status))


def test_05_a_topic_of_another_type_is_named(needing):
    """And one whose publisher has gone."""
    needing.sweep_fault = SweepFault(silent=True)
    needing.node.destroy_publisher(needing.sweeps)
    until(says(needing, "lidar", "its publisher is gone"), LIMIT_S, lambda: str(needing.status))
    context = rclpy.Context()  # one participant holds one type a topic
    rclpy.init(context=context, domain_id=DOMAIN)
    other = rclpy.create_node("no_lidar", context=context)
    other.create_publisher(Image, TOPIC, 10)
    found_s = max(LIMIT_S, 5.0)  # a new participant has to be discovered first
    until(says(needing, "lidar", f"{TOPIC} has type Image, not PointCloud2"), found_s, lambda: str(needing.status))
    other.destroy_node()
    context.try_shutdown()
    needing.sweeps = needing.node.create_publisher(PointCloud2, TOPIC, 10)
    needing.sweep_fault = WELL
    until(lambda: well(needing), 30.0, lambda: str(needing.status))


def test_06_a_network_trained_with_dropout_answers_from_the_cameras(tolerant):
    until(lambda: well(tolerant), 30.0, lambda: str(tolerant.status))
    before = settled_counts(tolerant)
    tolerant.sweep_fault = SweepFault(silent=True)
    until(says(tolerant, "model", "answers without LiDAR: the newest sweep is"), LIMIT_S, lambda: str(tolerant.status))
    until(lambda: labels_of(tolerant.clouds[-1])[0, 0, 0] == tiny.NO_CLOUD, 10.0, lambda: str(tolerant.status))
    tolerant.set_parameter("missing_camera", "not_current")
    withheld = "not current: answers without LiDAR are withheld from ~/grid"
    until(says(tolerant, "model", withheld), LIMIT_S, lambda: str(tolerant.status))
    grids, clouds = len(tolerant.grids_s), len(tolerant.clouds)
    until(lambda: len(tolerant.clouds) >= clouds + 3, 10.0, lambda: str(tolerant.status))
    assert len(tolerant.grids_s) == grids
    tolerant.sweep_fault = WELL
    until(lambda: well(tolerant) and len(tolerant.grids_s) > grids, 30.0, lambda: str(tolerant.status))
    after = settled_counts(tolerant)
    assert after["in"] == after["answered"] + after["dropped"] + after["skipped"]
    assert after["failed"] == before["failed"]
    assert int(tolerant.status["model"][3]["answered_without_lidar"]) > 0


def test_07_model_and_topic_have_to_agree(tmp_path):
    needs = tiny.checkpoint(tmp_path / "needs.safetensors", 0.0)
    process = start(tmp_path, needs, DOMAIN)
    assert fx.finish(process, 60.0) == 2
    log = (tmp_path / "node.log").read_text()
    assert log.startswith("error: ") and log.count("\n") == 1
    assert "takes LiDAR: name its PointCloud2 topic (-p lidar_topic:=TOPIC)" in log


def test_08_a_network_of_cameras_refuses_a_lidar_topic(tmp_path):
    process = start(tmp_path, fx.tiny_model(tmp_path, SMALL), DOMAIN, lidar_topic=TOPIC)
    assert fx.finish(process, 60.0) == 2
    log = (tmp_path / "node.log").read_text()
    assert log.startswith("error: ") and log.count("\n") == 1
    assert f"takes no LiDAR: leave parameter 'lidar_topic' empty, it is '{TOPIC}'" in log


def test_09_the_topic_of_a_recorded_lidar_is_found(tmp_path, monkeypatch):
    tiny.use_tiny_lidar(monkeypatch.setattr)
    takes, other = tiny.checkpoint(tmp_path / "takes.safetensors", 0.0), fx.tiny_model(tmp_path, SMALL)
    points = {"/lidar_top/points": np.zeros(3, dtype=LIDAR_POINT)}
    bag = fx.write_bag(tmp_path / "bag", 1, clouds=points)
    assert lidar_topic_of(bag, takes) == {"lidar_topic": "/lidar_top/points"}
    assert lidar_topic_of(bag, other) == {}
    with pytest.raises(MissingInput, match="has no PointCloud2 topic of one, or several"):
        lidar_topic_of(fx.write_bag(tmp_path / "none", 1), takes)
    with pytest.raises(MissingInput, match="or several"):
        lidar_topic_of(
            fx.write_bag(tmp_path / "two", 1, clouds={**points, "/rear_lidar": points["/lidar_top/points"]}), takes
        )
