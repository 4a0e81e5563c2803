"""The node with a network that remembers, over real DDS: with odometry, across a jump of it, without it."""

from __future__ import annotations

import os
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import ros_fixtures as fx
from fault_rig import LONGEST_PERIOD_S, NODE, Fault, FaultRig, until, watched

from occ_core.bags import messages as msg
from occ_core.geometry import pose

pytestmark = pytest.mark.ros
DOMAIN = fx.own_domain()
SPEED_M_S = 5.0
SMALL = fx.REMEMBERING.model_copy(update={"voxel_size_m": 3.2, "grid_shape": (24, 24, 8)})


class DrivingRig(FaultRig):
    """Sends where the robot is with each frame. odometry: it goes out. jumped_m: how far it has jumped."""

    def __init__(self, domain: int) -> None:
        self.odometry, self.jumped_m = True, 0.0
        super().__init__(domain)
        self.period_s = LONGEST_PERIOD_S

    def _send_transform(self, fault: Fault, stamp_ns: int) -> None:
        super()._send_transform(fault, stamp_ns)
        if self.odometry:
            x_m = SPEED_M_S * (stamp_ns % 10**12) / 1e9 + self.jumped_m
            place = pose((x_m, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
            self._send(self._tf, msg.transforms(stamp_ns, [("odom", "base_link", place)]), 0.0)

    def memory(self) -> str:
        return self.status["model"][3].get("memory", "")

    def count(self, how: str) -> int:
        return int(self.status["model"][3].get(f"answered_{how}", 0))


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    model = fx.tiny_model(folder, SMALL)
    process = fx.start_node("occupancy_node", DOMAIN, folder / "node.log", model=model, **NODE)
    made = DrivingRig(DOMAIN)
    with watched(process, made, folder / "node.log"):
        yield made


def test_01_with_odometry_the_memory_is_in_use(rig):
    until(lambda: rig.memory() == "in use" and rig.count("with_memory") > 3, 60.0, lambda: str(rig.status))
    assert rig.status["model"][1:3] == (0, "ok")


def test_02_a_jump_is_counted_and_the_memory_starts_again(rig):
    before = rig.count("without memory: jump")
    rig.jumped_m += 500.0
    until(lambda: rig.count("without memory: jump") > before, 60.0, lambda: str(rig.status))
    used = rig.count("with_memory")
    until(lambda: rig.memory() == "in use" and rig.count("with_memory") > used, 60.0, lambda: str(rig.status))


def test_03_without_odometry_each_moment_stands_alone(rig):
    rig.odometry = False
    until(lambda: rig.memory().startswith("not in use: no odometry: no transform 'odom' <- 'base_link'"), 60.0,
          lambda: str(rig.status))  # fmt: skip
    until(lambda: rig.status["model"][2].startswith("answers without memory: no transform"), 60.0,
          lambda: str(rig.status))  # fmt: skip
    answers, now_s = len(rig.answers), time.monotonic()
    until(lambda: len(rig.answers) > answers + 3, 60.0, lambda: str(rig.status))
    assert rig.answers[-1][0] > now_s
    rig.odometry = True
    until(lambda: rig.memory() == "in use" and rig.status["model"][2] == "ok", 60.0, lambda: str(rig.status))


def test_04_every_answer_is_with_memory_or_says_why_not(rig):
    def counts() -> tuple[int, int]:
        values = rig.status["model"][3]
        counted = sum(
            int(v) for name, v in values.items() if name.startswith(("answered_with_m", "answered_without mem"))
        )
        return int(values["frames_answered"]), counted

    until(lambda: counts()[0] > 10, 60.0, lambda: str(rig.status))
    assert counts()[0] == counts()[1]
