"""The fault matrix: what is done to the rig, and what the node has to say about it."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fault_rig import CAMERAS, HEALTHY, MOVING, RAW, Fault, FaultRig, flipped

YEAR_NS = 365 * 86_400 * 10**9


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        where: the status that has to name it: a camera, `model`, or `` where there is nothing to be named.
        words: part of its text.
        fault: of the rig's messages.
        begin, end: what else is done to the rig, or to the file that the backend obeys.
        answered: frames are answered while the fault lasts.
        slow: only in the full run.
    """

    name: str
    where: str
    words: str
    fault: Fault = HEALTHY
    begin: Callable[[FaultRig, Any], None] = lambda rig, order: None
    end: Callable[[FaultRig, Any], None] = lambda rig, order: None
    answered: bool = True
    slow: bool = True


def changed(**fields: Any) -> Callable[[Any], None]:
    """Sets fields of a message."""

    def change(message: Any) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def placed(translation: tuple[float, float, float] | None = None, xyzw: tuple[float, ...] | None = None) -> Any:
    """Sets the place in a TransformStamped."""

    def change(stamped: Any) -> None:
        for part, names, values in (
            (stamped.transform.translation, "xyz", translation),
            (stamped.transform.rotation, "xyzw", xyzw),
        ):
            for name, value in zip(names, values or (), strict=False):
                setattr(part, name, value)

    return change


def jumping() -> Callable[[Any], None]:
    """Another place each time."""
    count = iter(range(10**9))
    return lambda stamped: placed(translation=(float(next(count) % 7), 0.0, 1.5))(stamped)


def shifted(by_s: float, cameras: tuple[str, ...] = CAMERAS) -> Callable[[str, int, int], int]:
    """Stamps off by some time."""
    return lambda camera, number, stamp_ns: stamp_ns + round(by_s * 1e9) * (camera in cameras)


def backward(camera_backward: str) -> Callable[[str, int, int], int]:
    """One camera's stamps run backward, from 5 s ago."""
    first: list[int] = []

    def stamp(camera: str, number: int, stamp_ns: int) -> int:
        first.append(stamp_ns)
        return 2 * first[0] - stamp_ns - 5 * 10**9 if camera == camera_backward else stamp_ns

    return stamp


def looping(period_s: float) -> Callable[[str, int, int], int]:
    """A bag of `period_s` played over and over."""
    first: list[int] = []

    def stamp(camera: str, number: int, stamp_ns: int) -> int:
        first.append(stamp_ns)
        return first[0] + (stamp_ns - first[0]) % round(period_s * 1e9)

    return stamp


def order(text: str) -> Callable[[FaultRig, Any], None]:
    return lambda rig, file: file.write_text(text)


def nothing_more(rig: FaultRig, file: Any) -> None:
    file.write_text("")


def storm(rig: FaultRig, _: Any) -> None:
    """200 changes of parameters, every other one to be refused."""
    for i in range(100):
        rig.set_parameter("stale_s", 0.7 + i % 2)
        rig.set_parameter("grid_min_z_m", 50.0)  # above grid_max_z_m
    rig.set_parameter("stale_s", 0.7)


def unplug(rig: FaultRig, _: Any) -> None:
    rig.node.destroy_publisher(rig.images["f"])
    rig.fault = Fault(no_image=frozenset("f"))


def plug(rig: FaultRig, _: Any) -> None:
    rig.images["f"] = rig.image_publisher("f")


PNG_BOMB = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0) + bytes(4) + (
    struct.pack(">I4s", 0, b"IEND") + b"\xaeB`\x82"
)  # fmt: skip


def late(by_s: float) -> Fault:
    return Fault(delay_s={"l": by_s})


def jpeg(change: Callable[[bytes], bytes]) -> Fault:
    return Fault(jpeg={"l": change})


def raw(**fields: Any) -> Fault:
    return Fault(image={RAW: changed(**fields)})


def info(**fields: Any) -> Fault:
    return Fault(info={"f": changed(**fields)})


ROWS = (
    *(
        Row(f"camera {name} lost", name, "no image for", Fault(silent=frozenset(name)), slow=name != "f")
        for name in CAMERAS
    ),
    Row("all cameras lost", "f", "no image for", Fault(silent=frozenset(CAMERAS)), answered=False),
    Row("images lost, CameraInfo comes", "l", "no image for", Fault(no_image=frozenset("l"))),
    Row("publisher gone", "f", "its publisher is gone", begin=unplug, end=plug),
    Row("10 ms late", "", "", late(0.01)),
    Row("50 ms late", "", "", late(0.05)),
    Row("100 ms late", "", "", late(0.1)),
    Row("200 ms late", "l", "behind the other cameras'", late(0.2), slow=False),
    Row("500 ms late", "l", "behind the other cameras'", late(0.5)),
    Row("stamps zero", "f", "no stamp", Fault(stamp=lambda *_: 0), answered=False, slow=False),
    Row("stamps of one camera zero", "l", "no stamp", Fault(stamp=lambda c, _, t: 0 if c == "l" else t)),
    Row("stamps of one camera backward", "l", "behind the other cameras'", Fault(stamp=backward("l"))),
    Row("stamps 1 year ahead", "f", "in the future", Fault(stamp=lambda c, n, t: t + YEAR_NS), slow=False),
    Row("one camera 1 year ahead", "l", "ahead of the other cameras'", Fault(stamp=shifted(YEAR_NS / 1e9, ("l",)))),
    Row("bag loop of 0.6 s", "", "", Fault(stamp=looping(0.6))),
    Row("clock set back by 0.6 s", "", "", Fault(stamp=shifted(-0.6))),
    Row("clock set back by 10 s", "", "", Fault(stamp=shifted(-10.0)), slow=False),
    Row("wrong encoding", RAW, "'mono16' is not one of", raw(encoding="mono16")),
    Row("encoding of 10,000 letters", RAW, "(10000 characters)", raw(encoding="x" * 10_000)),
    Row("wrong step", RAW, "step 7 is less than a row", raw(step=7), slow=False),
    Row("step of 4 GiB", RAW, "image data holds", raw(step=2**32 - 1)),
    Row("wrong size", RAW, "image is 80 x 90 px, its calibration says 160 x 90", raw(width=80)),
    Row("size of 2^31", RAW, "image size must be", raw(width=2**31, height=2**31, step=2**32 - 1)),
    Row("truncated JPEG", "l", "cut short", jpeg(lambda data: data[: len(data) // 2]), slow=False),
    Row("bit-flipped JPEG", "", "", jpeg(flipped)),
    Row("header of a JPEG damaged", "l", "image rejected", jpeg(lambda data: data[:2] + b"\0\0" + data[4:])),
    Row("random bytes", "l", "neither JPEG nor PNG", jpeg(lambda data: np.random.default_rng(0).bytes(5000))),
    Row("empty data", "l", "starts with nothing", jpeg(lambda data: b"")),
    Row("PNG bomb", "l", "60000 x 60000", jpeg(lambda data: PNG_BOMB)),
    Row("CameraInfo: 10^5 coefficients", "f", "got 100000", info(d=np.full(10**5, 0.1))),
    Row("CameraInfo: size 10^6", "f", "1..16384 px", info(width=10**6, height=10**6)),
    Row("CameraInfo: K NaN", "f", "must be finite", info(k=np.full(9, math.nan))),
    Row("CameraInfo: K zero", "f", "focal lengths must be > 0", info(k=np.zeros(9)), slow=False),
    Row("CameraInfo: another size", "f", "its calibration says 80 x 45", info(width=80, height=45)),
    Row("CameraInfo stops", "", "", Fault(no_info=frozenset("f"))),
    Row("TF stops", MOVING, "no transform", Fault(transform=None), slow=False),
    Row("TF 150 ms late", "model", "without camera b", Fault(tf_delay_s=0.15)),
    Row("TF NaN", MOVING, "transform refused", Fault(transform=placed(translation=(math.nan, 0.0, 0.0)))),
    Row("TF quaternion zero", MOVING, "transform refused", Fault(transform=placed(xyzw=(0.0, 0.0, 0.0, 0.0)))),
    Row("TF quaternion of norm 2", "", "", Fault(transform=placed(xyzw=(-1.0, 1.0, 1.0, -1.0)))),
    Row("TF jumps at each sample", MOVING, "its place on the vehicle changed", Fault(transform=jumping())),
    Row("calibration changes", "", "", Fault(info={"f": lambda message: message.k.__setitem__(0, 150.0)}), slow=False),
    Row("slow subscriber", "", "", begin=lambda rig, _: setattr(rig, "answer_delay_s", 0.3),
        end=lambda rig, _: setattr(rig, "answer_delay_s", 0.0)),
    Row("subscribers gone", "outputs", "no subscribers", begin=lambda rig, _: rig.unsubscribe(),
        end=lambda rig, _: rig.subscribe(), answered=False),
    Row("backend raises", "model", "left the bus", begin=order("raise"), end=nothing_more, answered=False, slow=False),
    Row("out of memory", "model", "MemoryError", begin=order("memory"), end=nothing_more, answered=False),
    Row("backend answers NaN", "model", "not finite", begin=order("nan"), end=nothing_more, answered=False),
    Row("storm of parameters", "", "", begin=storm, slow=False),
)  # fmt: skip
