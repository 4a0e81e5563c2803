"""The life cycle of the occupancy node over its services, its parameters, and signals at any moment."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import rclpy
import ros_fixtures as fx
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

pytestmark = pytest.mark.ros
DOMAIN, SIGNALS_DOMAIN = fx.own_domain(), fx.own_domain()
CAMERAS = list(fx.RIG.names)


class Manager:
    """A lifecycle manager and parameter client of the node."""

    def __init__(self, context):
        self.node = rclpy.create_node("manager", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.status = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_status, 10)
        self.clients = {
            kind: self.node.create_client(kind, f"/occupancy_node/{name}")
            for kind, name in (
                (ChangeState, "change_state"),
                (GetState, "get_state"),
                (SetParametersAtomically, "set_parameters_atomically"),
                (GetParameters, "get_parameters"),
            )
        }

    def _on_status(self, message):
        for status in message.status:
            self.status[status.name.rpartition(" ")[2]] = (status.level[0], status.message)

    def call(self, request, kind):
        assert self.clients[kind].wait_for_service(timeout_sec=60.0)
        future = self.clients[kind].call_async(request)
        self.executor.spin_until_future_complete(future, timeout_sec=60.0)
        assert future.done(), f"no answer to {request}"
        return future.result()

    def change(self, transition):
        return self.call(ChangeState.Request(transition=Transition(id=transition)), ChangeState).success

    @property
    def state(self):
        return self.call(GetState.Request(), GetState).current_state.id

    def set(self, **values):
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self.call(SetParametersAtomically.Request(parameters=parameters), SetParametersAtomically).result

    def get(self, name):
        (value,) = self.call(GetParameters.Request(names=[name]), GetParameters).values
        return rclpy.parameter.parameter_value_to_python(value)

    def until_status(self, words, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while words not in self.status.get("model", (0, ""))[1]:
            assert time.monotonic() < deadline, f"no '{words}' in {self.status}"
            self.executor.spin_once(timeout_sec=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fx.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def managed(tmp_path_factory):
    log = tmp_path_factory.mktemp("managed") / "node.log"
    process = fx.start_node(
        "occupancy_node", DOMAIN, log, autostart=False, backend="torch", threads=1, cameras=CAMERAS, grid_max_z_m=2.5
    )
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    manager = Manager(context)
    try:
        yield manager, log
        assert fx.stop(process, signal.SIGINT) == 0
    finally:
        if process.poll() is None:
            process.kill()
        print(log.read_text())
        manager.executor.shutdown()
        manager.node.destroy_node()
        context.try_shutdown()
    assert "Traceback" not in log.read_text()


def test_01_a_failed_configure_names_the_cause_and_leaves_the_node_unconfigured(managed):
    """The steps build on each other."""
    manager, log = managed
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED
    assert not manager.change(Transition.TRANSITION_CONFIGURE)
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED
    manager.until_status("unconfigured: parameter 'model' is empty")
    assert log.read_text().count("[ERROR]") == 1


def test_02_all_parameters_may_change_while_unconfigured(managed, model):
    manager, _ = managed
    assert manager.set(model="/nowhere.safetensors").successful
    assert not manager.change(Transition.TRANSITION_CONFIGURE)
    manager.until_status("/nowhere.safetensors: no such model")
    assert "must be auto or torch" in manager.set(backend="magic").reason
    assert manager.set(model=str(model)).successful


def test_03_configure_and_activate(managed):
    manager, _ = managed
    assert not manager.change(Transition.TRANSITION_ACTIVATE)  # not from here
    assert manager.change(Transition.TRANSITION_CONFIGURE)
    assert manager.state == State.PRIMARY_STATE_INACTIVE
    manager.until_status("inactive")
    assert manager.node.count_subscribers("/f/camera_info") == 0
    assert manager.change(Transition.TRANSITION_ACTIVATE)
    manager.until_status("idle")
    assert manager.node.count_subscribers("/f/camera_info") == 1


def test_04_fixed_parameters_say_what_to_do(managed):
    manager, _ = managed
    refused = manager.set(model="other.safetensors")
    assert not refused.successful
    for words in ("'model' is fixed while the node is active", "deactivate it, clean up", "/occupancy_node"):
        assert words in refused.reason
    assert manager.set(base_frame="base_link").successful  # no change


@pytest.mark.parametrize(
    "values, words",
    [
        ({"grid_min_z_m": 3.0}, "'grid_min_z_m' (3.0) must be below 'grid_max_z_m' (2.5)"),
        ({"grid_min_z_m": float("nan")}, "nan"),
        ({"missing_camera": "guess"}, "must be mask or not_current"),
        ({"stale_s": -1.0}, "stale_s"),
        ({"stale_s": "soon"}, "Wrong parameter type"),  # rclpy's own words
        ({"stale_s": 0.9, "grid_max_z_m": 0.1}, "must be below"),
    ],
)
def test_05_bad_values_are_refused_as_a_whole(managed, values, words):
    manager, _ = managed
    refused = manager.set(**values)
    assert not refused.successful
    assert words in refused.reason
    assert manager.get("stale_s") == 0.7
    assert manager.get("grid_min_z_m") == 0.3


def test_06_a_storm_of_changes_is_harmless(managed):
    manager, _ = managed
    for i in range(300):
        assert manager.set(grid_min_z_m=i / 100, grid_max_z_m=i / 100 + 1.0, marker_rate_hz=1.0 + i).successful == (
            i < 100
        )
    assert manager.get("marker_rate_hz") == 100.0
    manager.until_status("idle")


def test_07_deactivate_clean_up_and_again(managed):
    manager, _ = managed
    for _ in range(2):
        assert manager.change(Transition.TRANSITION_DEACTIVATE)
        manager.until_status("inactive")
        assert manager.node.count_subscribers("/f/camera_info") == 0
        assert manager.change(Transition.TRANSITION_ACTIVATE)
    assert manager.change(Transition.TRANSITION_DEACTIVATE)
    assert manager.change(Transition.TRANSITION_CLEANUP)
    manager.until_status("unconfigured")
    assert manager.set(cameras=CAMERAS[:3]).successful
    assert manager.change(Transition.TRANSITION_CONFIGURE)
    assert manager.change(Transition.TRANSITION_ACTIVATE)
    assert manager.node.count_subscribers(f"/{CAMERAS[3]}/camera_info") == 0
    manager.until_status("idle")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["importing", "loading"])  # while it runs: see the other tests
def test_signals_end_the_process_with_code_0(tmp_path, model, number, when):
    log = tmp_path / "log"
    process = fx.start_node("occupancy_node", SIGNALS_DOMAIN, log, model=model, backend="torch", cameras=CAMERAS)
    try:
        if when == "importing":
            # From when Python runs the module's first lines: torch is not yet loaded then.
            fx.wait_for(lambda: "signal" in handled(process.pid), 30.0, "signal handler")
            time.sleep(random.Random(str(number)).uniform(0.0, 0.4))
        else:
            maps = Path(f"/proc/{process.pid}/maps")
            fx.wait_for(lambda: "libtorch_cpu" in maps.read_text(), 60.0, "torch")
        assert fx.stop(process, number, 30.0) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
    assert "Traceback" not in log.read_text()


def handled(pid):
    """'signal' once a process has its own handler of SIGTERM."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return "signal" if caught & 1 << (signal.SIGTERM - 1) else ""
