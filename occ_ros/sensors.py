"""What the node observes of a sensor's topic, and what is wrong with the connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from occ_core.problems import KINDS

OK, WARN, ERROR = 0, 1, 2
FUTURE_NS = 1_000_000_000  # clocks of several machines may differ by less
PROFILE = "config/fastdds.xml"


class Found(NamedTuple):
    """A problem that was found.

    Attributes:
        level: of the diagnostics.
        text: one sentence.
        kind: one of `occ_core.problems.KINDS`, which has cause and cure; empty where the text says all.
    """

    level: int
    text: str
    kind: str = ""

    @property
    def help(self) -> dict[str, str]:
        """Cause and cure, as values of a status."""
        return KINDS[self.kind]._asdict() if self.kind else {}


@dataclass(kw_only=True)
class SensorInput:
    """What the node observes of one sensor.

    Attributes:
        received, rejected: messages that came, and those that could not be used.
        arrival_s: when the last one came (monotonic clock).
        stamp_ns: of the last one.
        age_ns: of the last one when it came, by the node's clock.
    """

    received: int = 0
    rejected: int = 0
    arrival_s: float | None = None
    stamp_ns: int = 0
    age_ns: int = 0

    def came(self, stamp_ns: int, clock_ns: int, now_s: float) -> None:
        """Note that a message came, at `clock_ns` of the node's clock (0: it stands still) and `now_s` of a monotonic
        one."""
        self.received += 1
        self.arrival_s, self.stamp_ns = now_s, stamp_ns
        self.age_ns = clock_ns - stamp_ns

    def silent_s(self, now_s: float) -> float:
        """Time since the last message; infinite before the first."""
        return np.inf if self.arrival_s is None else now_s - self.arrival_s


@dataclass(frozen=True)
class Surroundings:
    """What else has to be known to find out what is wrong with a sensor.

    Attributes:
        types: of the publishers on its topic, without the package; empty: there is no publisher.
        reliable_only: the node asks for reliable messages, and no publisher offers them.
        info_publishers: on a camera's CameraInfo topic, where it needs one.
        lag_s: by how much later than the other cameras' its images come after their stamps; negative: earlier.
        unused: its images came lately, and none of them got into a set.
        lost: messages that got lost on their way lately.
        rivals: topic -> nodes that publish on it, where there are several.
    """

    now_s: float
    stale_s: float
    max_age_s: float
    types: frozenset[str] = field(default=frozenset())
    reliable_only: bool = False
    info_publishers: int = 0
    lag_s: float = 0.0
    unused: bool = False
    lost: int = 0
    rivals: Mapping[str, Sequence[str]] = field(default_factory=dict)


def connection_problems(
    sensor: SensorInput, topic: str, kind: str, nouns: tuple[str, str], around: Surroundings, hint: str = ""
) -> Iterator[Found]:
    """Reasons why nothing comes; none while something does.

    Args:
        kind: type that the topic should have, without the package.
        nouns: what comes on it, and from what: image, camera.
        hint: what to do about another type.
    """
    silent_s, (message, device) = sensor.silent_s(around.now_s), nouns
    if silent_s <= around.stale_s:
        return
    if not around.types and sensor.arrival_s is None:
        yield Found(ERROR, f"no publisher on {topic}", "no publisher")
    elif around.types and kind not in around.types:
        yield Found(ERROR, f"{topic} has type {', '.join(sorted(around.types))}, not {kind}{hint}", "type")
    elif around.reliable_only:
        text = f"{topic} is published best effort, the node asks for reliable: set image_reliability:=best_effort"
        yield Found(ERROR, text, "qos")
    elif sensor.arrival_s is None:
        text = f"no {message} on {topic}, though it has a publisher: is the {device} running?"
        yield Found(ERROR, text, "silent")
    else:
        why = f"its publisher is silent, or its {message}s get lost" if around.types else "its publisher is gone"
        yield Found(WARN, f"no {message} for {silent_s:.1f} s (limit {around.stale_s} s): {why}", "silent")


def rival_problems(around: Surroundings) -> Iterator[Found]:
    """Problems of several publishers on a topic of one sensor, whose messages get mixed."""
    for topic, nodes in around.rivals.items():
        text = f"{len(nodes)} publishers on {topic}: {', '.join(nodes)}; what they send gets mixed"
        yield Found(WARN, text, "two publishers")


def stamp_problems(sensor: SensorInput, nouns: tuple[str, str], around: Surroundings) -> Iterator[Found]:
    """Problems of stamps that do not agree with the node's clock; `nouns` as above."""
    if sensor.age_ns < -FUTURE_NS and sensor.silent_s(around.now_s) <= around.stale_s:
        yield Found(WARN, f"stamps are {-sensor.age_ns / 1e9:.1f} s in the future by the node's clock", "future")
    elif 0 < around.max_age_s < sensor.age_ns / 1e9:
        old = f"stamps are {sensor.age_ns / 1e9:.1f} s old when the {nouns[0]}s come"
        yield Found(WARN, f"{old} (max_age_s {around.max_age_s})", "old")


def lost_problems(nouns: tuple[str, str], around: Surroundings) -> Iterator[Found]:
    """Problems of messages that do not arrive; `nouns` as in `connection_problems`."""
    message, device = nouns
    if around.lost:
        mend = f"start the {device} driver with FASTDDS_DEFAULT_PROFILES_FILE={PROFILE} (docs/node.md, Transport)"
        yield Found(WARN, f"{around.lost} {message}s were lost on their way in the last seconds: {mend}", "lost")
