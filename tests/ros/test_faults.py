"""The fault matrix over real DDS: the node lives, names the cause, is back within two frames, and loses no frame.

`OCC_FAULT_LIMIT_S` is how long the node may take to name a fault (1 s on an idle machine; more by default, as tests
run beside other work); `OCC_FAULT_TABLE` names a file for the measured times.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import ros_fixtures as fx
from fault_rig import CAMERAS, HEALTHY, LONGEST_PERIOD_S, SMALL, Fault, FaultRig, start, until, watched
from fault_rows import ROWS, Row

pytestmark = pytest.mark.ros
CONFIG = Path(__file__).resolve().parents[2] / "config"
DOMAIN = fx.own_domain()
LIMIT_S = float(os.environ.get("OCC_FAULT_LIMIT_S", "5"))
RECOVERY_FRAMES = 2
HOLD_S = 1.5


@dataclass
class Measured:
    """One row of the table."""

    fault: str
    named_by: str
    text: str
    named_s: float | None
    frames_to_recover: int
    frames_in: int
    frames_answered: int
    frames_dropped: int
    frames_skipped: int


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fx.tiny_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture(scope="module")
def table():
    rows: list[Measured] = []
    yield rows
    if path := os.environ.get("OCC_FAULT_TABLE"):
        Path(path).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


@pytest.fixture(scope="module")
def running(tmp_path_factory, model):
    """(rig, node's process, folder), answering."""
    folder = tmp_path_factory.mktemp("faults")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(CONFIG / "fastdds.xml")
    process = start(folder, model, DOMAIN)
    rig = FaultRig(DOMAIN)
    with watched(process, rig, folder / "node.log"):
        yield rig, process, folder


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] if row.slow else [], id=row.name) for row in ROWS]
)
def test_fault(running, table, row):
    rig, process, folder = running
    _wait_until_well(rig, row)
    before = rig.counts()
    try:
        rig.fault = row.fault
        begun_s = time.monotonic()
        row.begin(rig, folder / "order")
        named_s, text = _named(rig, row, begun_s)
        time.sleep(max(0.0, begun_s + HOLD_S - time.monotonic()))
        if row.answered:
            faulty_s = begun_s + 3 * rig.period_s  # what was under way is through
            until(lambda: rig.answers[-1][0] > faulty_s, 20.0, lambda: f"no answer during the fault: {rig.status}")
        assert process.poll() is None, "the node died"
    finally:
        ended_s = time.monotonic()
        row.end(rig, folder / "order")
        rig.fault = HEALTHY
    frames = _frames_to_recover(rig, ended_s)
    after = _settled_counts(rig)
    delta = {key: after[key] - before[key] for key in after}
    ends = (delta[key] for key in ("in", "answered", "dropped", "skipped"))
    table.append(Measured(row.name, row.where, text, named_s, frames, *ends))
    assert after["in"] == after["answered"] + after["dropped"] + after["skipped"]
    assert frames <= RECOVERY_FRAMES + delta["superseded"]


def test_frames_in_are_the_frames_sent(running):
    """By the rig's own count, with nothing under way before and after."""
    rig, _, _ = running
    nobody = Fault(silent=frozenset(CAMERAS))

    def calm() -> tuple[int, dict[str, int], int]:
        rig.fault = nobody
        time.sleep(2.0)  # longer than an image may take after its CameraInfo
        sent, counts = sum(frame.stamp_ns > 0 for frame in rig.sent), _settled_counts(rig)
        return sent, counts, int(rig.status["model"][3]["sets_partial"])

    sent, counts, partial = calm()
    rig.fault = HEALTHY
    time.sleep(3.0)
    sent_after, after, partial_after = calm()
    rig.fault = HEALTHY
    torn = partial_after - partial + after["incomplete"] - counts["incomplete"]  # one that comes in parts counts as two
    assert 0 < sent_after - sent <= after["in"] - counts["in"] <= sent_after - sent + torn


def test_security_policy_lists_what_the_node_uses(running):
    """config/sros2_policy.xml against the running node: nothing missing, nothing more but what only some nodes use."""
    rig, _, _ = running
    profile = ElementTree.parse(CONFIG / "sros2_policy.xml").find(".//profile")
    assert (profile.get("ns"), profile.get("node")) == ("/", "occupancy_node")

    def allowed(what: str) -> set[str]:
        (group,) = (part for part in profile if part.get(what) == "ALLOW")
        return {entry.text.replace("~", "/occupancy_node") for entry in group}

    def used(look_up) -> set[str]:
        return {name for name, _ in look_up("occupancy_node", "/")}

    node = rig.node
    heard = {re.sub(r"^/[flbr]/image$", "/cam_front/image_raw/compressed", name) for name in used(
        node.get_subscriber_names_and_types_by_node
    )}  # fmt: skip
    heard = {re.sub("^/[flbr]/camera_info$", "/cam_front/camera_info", name) for name in heard}
    cameras = {name for name in allowed("subscribe") if name.startswith("/cam_")}
    assert len(cameras) == 12
    only_some = {"/clock", "/lidar_top/points"}  # with use_sim_time, with a network that takes LiDAR
    assert heard == allowed("subscribe") - only_some - {name for name in cameras if not name.startswith("/cam_front/")}
    optional = set() if find_spec("vision_msgs") else {"/occupancy_node/segmentation/label_info"}
    assert used(node.get_publisher_names_and_types_by_node) == allowed("publish") - optional
    assert used(node.get_service_names_and_types_by_node) == allowed("reply")


def _wait_until_well(rig: FaultRig, row: Row) -> None:
    """Answers come, and no status has the row's words; where the machine is too busy for that, from slower cameras."""

    def well() -> bool:
        fresh = time.monotonic() - 1.5
        said = rig.status.get(row.where or "model", (0.0, 2, "", {}))
        return (
            bool(rig.answers)
            and rig.answers[-1][0] > time.monotonic() - 1.0
            and said[0] > fresh
            and (not row.words or row.words not in said[2])
            and rig.status["model"][1] == 0
        )

    while True:
        try:
            until(well, 20.0, lambda: f"before '{row.name}': {rig.status}")
            return
        except AssertionError:
            if rig.period_s >= LONGEST_PERIOD_S:
                raise
            rig.period_s *= 2


def _named(rig: FaultRig, row: Row, begun_s: float) -> tuple[float | None, str]:
    """After how long the node named the fault, and how."""
    if not row.where:
        return None, ""

    def found() -> tuple[float, str] | None:
        for at_s, name, _, text in reversed(rig.said):
            if at_s < begun_s:
                return None
            if name == row.where and row.words in text:
                return at_s, text
        return None

    at_s, text = until(found, LIMIT_S, lambda: f"'{row.words}' of {row.where}; it says {rig.status[row.where][1:3]}")
    return round(at_s - begun_s, 3), text


def _frames_to_recover(rig: FaultRig, ended_s: float) -> int:
    """Number of the first whole frame after the fault that was answered; 1 is the first one."""

    def first() -> int:
        healthy = [sent.stamp_ns for sent in rig.sent if not sent.faulty and sent.at_s > ended_s]
        stamps = {stamp_ns for _, stamp_ns in rig.answers}
        return next((i + 1 for i, stamp_ns in enumerate(healthy) if stamp_ns in stamps), 0)

    return until(first, 30.0, lambda: f"no answer after the fault: {rig.status}")


def _settled_counts(rig: FaultRig) -> dict[str, int]:
    """Counts of a status that came after now."""
    now_s = time.monotonic()
    until(lambda: rig.status["model"][0] > now_s, 30.0, lambda: str(rig.status))
    return rig.counts()
