"""Plays a ROS 2 bag (mcap or sqlite3): the recorded bytes go out as they are, at the recorded times."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from occ_core.errors import CorruptInput, InvalidInput, need
from occ_core.sources.bag_reader import BagReader, connections_of
from occ_ros.messages import header_of
from occ_ros.parameters import PLAYER_PARAMETERS
from occ_ros.runtime import declare, run
from occ_ros.timings import percentiles, write_json

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"  # its CDR: 4 bytes of encapsulation, then the stamp, 8 bytes


class PlayerNode(Node):
    """Plays a bag and ends by itself afterwards. See docs/node.md."""

    def __init__(self) -> None:
        super().__init__("player_node")
        self.done, self.exit_code = False, 0
        p = self._values = declare(self, PLAYER_PARAMETERS)
        if not p["bag"]:
            raise InvalidInput("parameter 'bag' is empty: give the folder of a bag (-p bag:=PATH)")
        self._path = Path(p["bag"])
        self._reader = open_bag(self._path)
        self._skipped: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._late_ms: list[float] = []
        self._loops = 0
        self._stop = threading.Event()
        self._running = threading.Event()  # cleared while paused
        self._running.set()
        self._bag_ns = self._reader.start_time
        self._topics = self._open_topics()
        self._clock_topic = self.create_publisher(Clock, "/clock", 10) if p["clock_hz"] > 0 else None
        self._offer_pause()
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._thread.start()

    def _open_topics(self) -> dict[str, Any]:
        publishers: dict[str, Any] = {}
        for topic, info in self._reader.topics.items():
            message_type = python_type(info.connections[0].msgtype)
            if message_type is None:
                self._skipped[topic] = f"no Python type {info.connections[0].msgtype} is installed"
            elif topic == "/clock" and self._values["clock_hz"] > 0:
                self._skipped[topic] = "the player publishes its own clock"
            else:
                qos = offered_qos(info.connections, len_static=info.msgcount if topic == "/tf_static" else 0)
                publishers[topic] = self.create_publisher(message_type, topic, qos)
        for topic, why in self._skipped.items():
            self.get_logger().warning(f"{topic} is not played: {why}")
        if not publishers:
            raise CorruptInput(f"{self._path}: none of its {len(self._reader.topics)} topics can be played")
        return publishers

    def _offer_pause(self) -> None:
        """Offer the service ~/pause, if std_srvs is installed."""
        try:
            from std_srvs.srv import SetBool
        except ImportError:
            return

        def pause(request: Any, response: Any) -> Any:
            (self._running.clear if request.data else self._running.set)()
            response.success = True
            return response

        self.create_service(SetBool, "~/pause", pause)

    def _run(self) -> None:
        """Play, in a thread; any error becomes one line and an exit code."""
        try:
            if self._wait_for_subscribers():
                self._play_all()
                self._drain()
        except Exception as error:
            self.get_logger().error(
                f"{self._path}: damaged after {sum(self._counts.values())} messages "
                f"({type(error).__name__}: {error}); played up to there"
            )
            self.exit_code = 1
        self.done = True

    def _wait_for_subscribers(self) -> bool:
        topics = [topic for topic in self._values["wait_for_topics"] if topic]
        if unknown := [topic for topic in topics if topic not in self._topics]:
            self.get_logger().error(f"wait_for_topics names what the bag does not play: {', '.join(unknown)}")
            self.exit_code = 2
            return False
        deadline = time.monotonic() + self._values["wait_timeout_s"]
        needed = self._values["wait_for_subscribers"]
        while waiting := [t for t in topics if self._topics[t].get_subscription_count() < needed]:
            if time.monotonic() > deadline:
                self.get_logger().error(
                    f"after {self._values['wait_timeout_s']} s there are fewer than {needed} subscribers on "
                    f"{', '.join(waiting)}"
                )
                self.exit_code = 1
                return False
            if self._stop.wait(0.05):
                return False
        return True

    def _play_all(self) -> None:
        self._announce()
        if self._stop.wait(self._values["start_delay_s"]):
            return
        start_ns = self._reader.start_time + round(self._values["start_offset_s"] * 1e9)
        if start_ns > self._reader.end_time:
            raise InvalidInput(f"start_offset_s is beyond the end of the bag ({self._reader.duration / 1e9:.1f} s)")
        self.get_logger().info(
            f"playing {self._path}: {self._reader.message_count} messages, {self._reader.duration / 1e9:.1f} s, "
            f"rate {self._values['rate']}"
        )
        self._play_once(start_ns)
        while self._values["loop"] and not self._stop.is_set():
            self._loops += 1
            self._play_once(start_ns)

    def _announce(self) -> None:
        """Publish what is known beforehand on a robot that has been running: fixed transforms and calibration.

        Transforms stay with the publisher for those who come later. The first CameraInfo of each camera goes out with
        stamp zero, which says that it belongs to no image; it lets nodes build their tables before the first frame.
        """
        static = [c for c in connections_of(self._reader) if c.topic == "/tf_static"]
        if static and "/tf_static" in self._topics:
            for _, _, data in self._reader.messages(static):
                self._publish("/tf_static", data)
        for connection in connections_of(self._reader):
            if connection.msgtype == CAMERA_INFO and connection.topic in self._topics:
                first = next(iter(self._reader.messages([connection])), None)
                if first is not None:
                    self._topics[connection.topic].publish(first[2][:4] + bytes(8) + first[2][12:])

    def _play_once(self, start_ns: int) -> None:
        moving = [c for c in connections_of(self._reader) if c.topic in self._topics and c.topic != "/tf_static"]
        pace = Pace(start_ns, self._values["rate"])
        for connection, stamp_ns, data in self._reader.messages(moving, start=start_ns) if moving else ():
            self._advance(pace, stamp_ns)
            if self._stop.is_set():
                return
            self._late_ms.append(pace.late_ms(stamp_ns))
            self._publish(connection.topic, data)

    def _advance(self, pace: Pace, stamp_ns: int) -> None:
        """Wait for the time of a message, ticking the clock and standing still while paused."""
        while not self._stop.is_set():
            if not self._running.is_set():
                paused_s = time.monotonic()
                while not self._running.wait(0.1) and not self._stop.is_set():
                    pass
                pace.shift(time.monotonic() - paused_s)
            left_s = pace.left_s(stamp_ns)
            if self._clock_topic is None:
                step_s = min(left_s, 0.1)
            else:
                tick_ns = round(1e9 / self._values["clock_hz"] * self._values["rate"])
                now_ns = min(pace.bag_ns(), stamp_ns)
                if not 0 <= now_ns - self._bag_ns < tick_ns:
                    self._bag_ns = now_ns
                    self._clock_topic.publish(Clock(clock=header_of(now_ns, "").stamp))
                step_s = min(left_s, 1 / self._values["clock_hz"])
            if left_s <= 0:
                return
            self._stop.wait(step_s)

    def _publish(self, topic: str, data: bytes) -> None:
        self._topics[topic].publish(bytes(data))
        self._counts[topic] += 1

    def _drain(self) -> None:
        """Wait until reliable subscribers have everything, and late ones the fixed transforms."""
        deadline = time.monotonic() + 1.0
        for publisher in self._topics.values():
            left_s = deadline - time.monotonic()
            if left_s > 0:
                with contextlib.suppress(Exception):  # not every middleware can tell
                    publisher.wait_for_all_acked(Duration(seconds=left_s))
        self._stop.wait(self._values["drain_s"])

    def close(self) -> None:
        self._stop.set()
        self._running.set()
        self._thread.join(timeout=10.0)
        late = percentiles(np.array(self._late_ms))
        self.get_logger().info(
            f"played {sum(self._counts.values())} messages on {len(self._counts)} topics, "
            f"late p99 {late.get('p99', 'n/a')} ms"
        )
        if path := self._values["report_file"]:
            record = {
                "bag": str(self._path),
                "rate": self._values["rate"],
                "loops": self._loops,
                "messages": dict(sorted(self._counts.items())),
                "skipped_topics": self._skipped,
                "late_ms": late,
                "complete": self.exit_code == 0 and self.done,
            }
            write_json(Path(path), record)
        self._reader.close()


class Pace:
    """Relates bag time and wall time."""

    def __init__(self, start_ns: int, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._start_ns, self._rate, self._now, self._start_s = start_ns, rate, now, now()

    def bag_ns(self) -> int:
        return self._start_ns + round((self._now() - self._start_s) * self._rate * 1e9)

    def left_s(self, stamp_ns: int) -> float:
        """Seconds until a message is due."""
        return self._start_s + (stamp_ns - self._start_ns) / 1e9 / self._rate - self._now()

    def late_ms(self, stamp_ns: int) -> float:
        return max(0.0, -1e3 * self.left_s(stamp_ns))

    def shift(self, seconds: float) -> None:
        """Note that time stood still for so long."""
        self._start_s += seconds


def open_bag(path: Path) -> Any:
    """Open a rosbags Reader with at least one message.

    Raises:
        MissingInput: no such folder, no metadata.yaml in it, or no message.
        CorruptInput: truncated or damaged.
    """
    BagReader(path)  # names every fault in one line
    reader = need("rosbags.rosbag2", "bags").Reader(path)
    reader.open()
    return reader


def python_type(name: str) -> Any | None:
    """The class of a message type such as `sensor_msgs/msg/Image`; None if it is not installed."""
    package, _, kind = name.partition("/msg/")
    try:
        message_type = getattr(importlib.import_module(f"{package}.msg"), kind, None)
    except ImportError:
        return None
    return message_type


def offered_qos(connections: list[Any], len_static: int = 0) -> QoSProfile:
    """The QoS of the recorded publisher; reliable, volatile and depth 10 if the bag does not say.

    Args:
        connections: of rosbags, all of one topic.
        len_static: number of messages, of a topic whose every message has to reach late subscribers.
    """
    profiles = [profile for c in connections for profile in getattr(c.ext, "offered_qos_profiles", [])]
    qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
    if profiles:
        recorded = profiles[0]
        if recorded.history.name == "KEEP_ALL":
            qos.history = HistoryPolicy.KEEP_ALL
        qos.depth = max(1, recorded.depth)
        if recorded.reliability.name == "BEST_EFFORT":
            qos.reliability = ReliabilityPolicy.BEST_EFFORT
        if recorded.durability.name == "TRANSIENT_LOCAL":
            qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
    if len_static:
        qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
        qos.reliability = ReliabilityPolicy.RELIABLE
        qos.depth = max(qos.depth, len_static)
    return qos


def main() -> None:
    sys.exit(run(PlayerNode))


if __name__ == "__main__":
    main()
