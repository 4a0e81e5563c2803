"""One topic that a node publishes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile

from occ_ros.runtime import one_line

RATE_OVER_S = 5.0


class Output:
    """One topic: its publisher, and how often it was used."""

    def __init__(self, node: Node, kind: Any, topic: str, qos: int | QoSProfile) -> None:
        self._node, self.topic = node, topic
        self._publisher = node.create_publisher(kind, topic, qos)
        self._recent_s: deque[float] = deque(maxlen=256)
        self.published = 0
        self.error = ""  # why the last message could not be made

    @property
    def subscribers(self) -> int:
        return self._publisher.get_subscription_count()

    @property
    def last_s(self) -> float:
        """When the last message went out (monotonic clock); 0 before the first."""
        return self._recent_s[-1] if self._recent_s else 0.0

    def send(self, make: Callable[[], Any]) -> None:
        """Make a message and publish it; an error in one output must not stop the others."""
        try:
            self._publisher.publish(make())
        except Exception as error:
            self.error = one_line(error)
            return
        self.error = ""
        self.published += 1
        self._recent_s.append(time.monotonic())

    def rate_hz(self, now_s: float) -> float:
        recent = [sent_s for sent_s in list(self._recent_s) if now_s - sent_s <= RATE_OVER_S]
        return len(recent) / RATE_OVER_S if len(recent) < 2 else (len(recent) - 1) / max(now_s - recent[0], 1e-3)

    def destroy(self) -> None:
        self._node.destroy_publisher(self._publisher)
