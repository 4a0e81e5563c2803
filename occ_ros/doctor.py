"""`occ doctor`: the table of `occ bag check` for live topics, from what a running node says on /diagnostics."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from occ_core.problems import KINDS, Problem
from occ_core.sources.bag_report import CameraRow
from occ_ros.sensors import OK

SETTLE_S = 2.5  # of listening, once the first status came: counts become rates
LEVELS = "ok", "warn", "error", "stale"


@dataclass
class Heard:
    """The first and the last status of each thing, and when they came."""

    first: dict[str, tuple[float, DiagnosticStatus]] = field(default_factory=dict)
    last: dict[str, tuple[float, DiagnosticStatus]] = field(default_factory=dict)

    def add(self, message: DiagnosticArray) -> None:
        now_s = time.monotonic()
        for status in message.status:
            if ": " in status.name:
                self.first.setdefault(status.name, (now_s, status))
                self.last[status.name] = now_s, status


def listen(seconds: float, node_name: str = "") -> Heard:
    """Collect statuses on /diagnostics, of one node or of all; ends early when nothing more can be learned.

    Args:
        seconds: longest wait for the first status.
        node_name: of the occupancy node; empty: any.
    """
    heard = Heard()
    rclpy.init(args=[])
    try:
        node = Node("occ_doctor")

        def take(message: DiagnosticArray) -> None:
            ours = [s for s in message.status if not node_name or s.name.startswith(f"{node_name}: ")]
            heard.add(DiagnosticArray(header=message.header, status=ours))

        node.create_subscription(DiagnosticArray, "/diagnostics", take, 50)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            executor.spin_once(timeout_sec=0.1)
            if heard.first:
                until_s = min(until_s, min(at_s for at_s, _ in heard.first.values()) + SETTLE_S)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return heard


def camera_rows(heard: Heard) -> list[CameraRow]:
    """Make a row for each camera of the node."""
    rows = []
    for name, (last_s, status) in sorted(heard.last.items()):
        if not name.partition(": ")[2].startswith("camera "):
            continue
        values, (first_s, before) = _values(status), heard.first[name]
        came, earlier = (int(v.get("received", "0")) for v in (values, _values(before)))
        row = CameraRow(name.partition(": camera ")[2], values.get("image_topic", ""))
        row.images = f"{values.get('used', '?')} of {came}"
        row.rate_hz = f"{(came - earlier) / (last_s - first_s):.1f}" if last_s > first_s else ""
        row.size, row.lens = values.get("size", ""), values.get("lens", "")
        row.encoding, row.path = values.get("encoding", ""), values.get("tf", "")
        row.offset_ms = f"{-1e3 * float(values.get('stamps_behind_s', 0)):+.0f}"
        if "azimuth_deg" in values:
            row.looks = f"{int(values['azimuth_deg']):+d} / {int(values['elevation_deg']):+d}"
        row.used = level_of(status) < 2
        if level_of(status) != OK:
            row.problems = ((_problem(status, values), 1),)
        rows.append(row)
    return rows


def other_lines(heard: Heard) -> list[str]:
    """Lines about everything else: model, outputs, LiDAR, map."""
    return [
        f"{name.partition(': ')[2]}: {LEVELS[level_of(status)]}: {status.message}"
        for name, (_, status) in sorted(heard.last.items())
        if not name.partition(": ")[2].startswith("camera ")
    ]


def level_of(status: DiagnosticStatus) -> int:
    return status.level[0] if isinstance(status.level, bytes) else int(status.level)


def _values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def _problem(status: DiagnosticStatus, values: dict[str, str]) -> Problem:
    """The problem that the node reports, and what else is wrong; its cause tells the kind."""
    kind = next((kind for kind, known in KINDS.items() if known.cause == values.get("cause")), "silent")
    return Problem(kind, "", "; also: ".join(filter(None, (status.message, values.get("also")))))


def well(rows: Iterable[CameraRow]) -> bool:
    return all(row.used and not row.problems for row in rows)
