"""Plays a stretch of a bag to the node with the parameters that `occ adapt` wrote, and reports what the node
counted."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from occ_core.errors import InvalidInput, OccError
from occ_core.sources.bag_reader import BagReader
from occ_core.sources.stretch import read_stretch
from occ_ros.processes import environment, node, wait_for

START_S, END_S = 90.0, 60.0  # limits for processes to start, and to end after the bag has been played
TABLE_S = 5.0  # the node builds its table
DRAIN_S = 10.0  # a slow machine answers the last set
ANSWERS = "/occupancy_node/occupancy"
LEAD_S = 1.0  # of the bag before the stretch: transforms


def replay(node_file: Path, stretch: Path) -> dict[str, Any]:
    """Play from the stretch's begin to the bag's end, at its own speed.

    Returns:
        frames_answered, frames_dropped; p50_ms and p95_ms from the last image to the answer.

    Raises:
        InvalidInput: no frame was answered. OccError: a process failed; the message names its log.
    """
    parameters = yaml.safe_load(node_file.read_text(encoding="utf-8"))["/**"]["ros__parameters"]
    part, logs = read_stretch(stretch), node_file.parent / "logs"
    with tempfile.TemporaryDirectory(prefix="occ_replay_") as folder:
        counted = Path(folder) / "node.json"
        topics = _image_topics(Path(parameters["rig_file"]))
        start_ns, end_ns = BagReader(part.bag).span_ns
        begin_s = max(0.0, (part.since_ns - start_ns) / 1e9 - LEAD_S)
        source = {
            "bag": part.bag, "start_offset_s": begin_s, "wait_for_topics": f"[{', '.join(topics)}]",
            "wait_timeout_s": START_S, "start_delay_s": TABLE_S, "drain_s": DRAIN_S,
        }  # fmt: skip
        os.environ.update(environment())  # before rclpy starts: this process listens in the same domain
        with (
            node("occupancy_node", logs / "occupancy_node.log", {**parameters, "timings_file": counted}) as occupancy,
            _listening(),
            node("player_node", logs / "player_node.log", source) as player,
        ):
            limit_s = START_S + (end_ns - start_ns) / 1e9 - begin_s + END_S
            wait_for("player_node", player, logs / "player_node.log", limit_s, {"occupancy_node": occupancy})
        if not counted.is_file():
            raise OccError(f"the node wrote no times; see {logs / 'occupancy_node.log'}")
        record = json.loads(counted.read_text(encoding="utf-8"))
    if not record["frames_answered"]:
        raise InvalidInput(f"the node answered no frame of {part.bag}; see {logs / 'occupancy_node.log'}")
    total = record["stages_ms"]["last image to output"]
    counts = {name: record[name] for name in ("frames_answered", "frames_dropped") if name in record}
    return {**counts, "p50_ms": total["p50"], "p95_ms": total["p95"]}


@contextmanager
def _listening() -> Iterator[None]:
    """Subscribe to the answers and ignore them; without a subscriber the node would idle."""
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import PointCloud2

    context = rclpy.Context()
    rclpy.init(context=context)
    listener = rclpy.create_node("occ_replay", context=context)
    listener.create_subscription(PointCloud2, ANSWERS, lambda message: None, QoSProfile(depth=1))
    try:
        yield
    finally:
        listener.destroy_node()
        rclpy.shutdown(context=context)


def _image_topics(rig_file: Path) -> list[str]:
    return [entry["image_topic"] for entry in yaml.safe_load(rig_file.read_text(encoding="utf-8"))["cameras"].values()]
