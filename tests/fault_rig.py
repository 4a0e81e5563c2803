"""A camera rig over DDS that can be given a fault, and a listener to the node's answers and diagnostics."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
import ros_fixtures as fx
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from occ_core.bags import messages as msg
from occ_ros.messages import stamp_ns_of

CAMERAS = tuple(fx.RIG.names)
"""r sends Image, the others JPEG; the place of b on the vehicle comes by /tf, those of the others are fixed."""

NODE = {"cameras": list(CAMERAS), "image_topic": "/{camera}/image", "backend": "torch", "threads": 1}
NODE |= {"budget_ms": 60_000.0}  # a busy machine is no fault here
RAW, MOVING = "r", "b"
PERIOD_S, LONGEST_PERIOD_S = 0.1, 0.4  # of the cameras; a machine that is busy otherwise cannot answer at 10 Hz
STAGGER_NS = 4_000_000


@dataclass(frozen=True, eq=False)
class Fault:
    """What the rig does wrong; as made, nothing.

    Attributes:
        silent: cameras that send neither image nor CameraInfo.
        no_image, no_info: cameras that send only the other.
        delay_s: by camera, how late its images and CameraInfos go out.
        stamp: (camera, frame's number, its stamp) -> stamp of image and CameraInfo.
        jpeg: by camera, what becomes of the file.
        image, info: by camera, what is done to the message.
        transform: what is done to the message on /tf, whose header has the rig's time; None: it is not sent.
        tf_delay_s: how late /tf goes out.
    """

    silent: frozenset[str] = frozenset()
    no_image: frozenset[str] = frozenset()
    no_info: frozenset[str] = frozenset()
    delay_s: dict[str, float] = field(default_factory=dict)
    stamp: Callable[[str, int, int], int] = lambda camera, number, stamp_ns: stamp_ns
    jpeg: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    image: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    info: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    transform: Callable[[Any], None] | None = lambda message: None
    tf_delay_s: float = 0.0


HEALTHY = Fault()


@dataclass(frozen=True)
class Sent:
    """One frame as it went out: when (monotonic clock), its newest stamp, and whether it had a fault."""

    at_s: float
    stamp_ns: int
    faulty: bool


class FaultRig:
    """Publishes each `period_s` from `start` to `stop`, in a thread; another listens.

    Attributes:
        fault: of the frames to come.
        sent: frames that went out.
        answers: (arrival on the monotonic clock, stamp) of each answer.
        status: by name (a camera, `model`, `outputs`): (arrival, level, text, values) of the newest diagnostics.
        said: (arrival, name, level, text) of all diagnostics.
    """

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("fault_rig", context=self.context)
        self.fault, self.sent = HEALTHY, list[Sent]()
        self.answers: list[tuple[float, int]] = []
        self.status: dict[str, tuple[float, int, str, dict[str, str]]] = {}
        self.said: list[tuple[float, str, int, str]] = []
        self.period_s = PERIOD_S
        self.answer_delay_s = 0.0  # a slow subscriber
        self._due: list[tuple[float, int, Any, bytes]] = []
        self._pictures = [fx.images(index) for index in range(4)]
        self._jpegs = [{name: fx.jpeg(image) for name, image in images.items()} for images in self._pictures]
        self._number = 0
        self._open()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._publish)]

    def _open(self) -> None:
        """Topics and the service that the rig uses."""
        node, latched = self.node, QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._tf = node.create_publisher(TFMessage, "/tf", 10)
        self._static = node.create_publisher(TFMessage, "/tf_static", latched)
        self.images = {name: self.image_publisher(name) for name in CAMERAS}
        self._infos = {name: node.create_publisher(CameraInfo, f"/{name}/camera_info", 10) for name in CAMERAS}
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(node)
        self.parameters = node.create_client(SetParameters, "/occupancy_node/set_parameters")
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_status, 50)
        self.subscribe()

    def image_publisher(self, camera: str) -> Any:
        kind = Image if camera == RAW else CompressedImage
        return self.node.create_publisher(kind, f"/{camera}/image", 10)

    def subscribe(self) -> None:
        reliable = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        topics = ((PointCloud2, "occupancy", self._on_answer), (OccupancyGrid, "grid", lambda _: None))
        self._answers = [
            self.node.create_subscription(kind, f"/occupancy_node/{topic}", callback, reliable)
            for kind, topic, callback in topics
        ]

    def unsubscribe(self) -> None:
        for subscription in self._answers:
            self.node.destroy_subscription(subscription)

    def start(self) -> None:
        static = [("base_link", fx.camera_frame(c.name), c.ego_from_cam) for c in fx.RIG if c.name != MOVING]
        self._static.publish(bytes(msg.serialize(msg.transforms(time.time_ns(), static))))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    # --- publishing -------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        next_s = time.monotonic()
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = max(next_s + self.period_s, now_s - self.period_s)
                self._frame(self.fault)
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, publisher, data = heapq.heappop(self._due)
                publisher.publish(data)
            waits = next_s, self._due[0][0] if self._due else next_s
            self._stopping.wait(max(0.0, min(waits) - time.monotonic()))

    def _frame(self, fault: Fault) -> None:
        self._number += 1
        now_ns, stamps = time.time_ns(), []
        for i, name in enumerate(CAMERAS):
            if name in fault.silent:
                continue
            stamp_ns = fault.stamp(name, self._number, now_ns + i * STAGGER_NS)
            stamps.append(stamp_ns)
            delay_s = fault.delay_s.get(name, 0.0)
            if name not in fault.no_info:
                self._send(self._infos[name], self._info(fault, name, stamp_ns), delay_s)
            if name not in fault.no_image:
                self._send(self.images[name], self._image(fault, name, stamp_ns), delay_s)
        self._send_transform(fault, fault.stamp(MOVING, self._number, now_ns + len(CAMERAS) * STAGGER_NS))
        self.sent.append(Sent(time.monotonic(), max(stamps, default=0), fault is not HEALTHY))

    def _info(self, fault: Fault, name: str, stamp_ns: int) -> Any:
        info = msg.camera_info(stamp_ns, fx.camera_frame(name), fx.RIG[name])
        fault.info.get(name, lambda _: None)(info)
        return info

    def _image(self, fault: Fault, name: str, stamp_ns: int) -> Any:
        index, frame = self._number % len(self._pictures), fx.camera_frame(name)
        if name == RAW:
            image = msg.image(stamp_ns, frame, self._pictures[index][name])
        else:
            jpeg = fault.jpeg.get(name, lambda data: data)(self._jpegs[index][name])
            image = msg.compressed_image(stamp_ns, frame, "jpeg", jpeg)
        fault.image.get(name, lambda _: None)(image)
        return image

    def _send_transform(self, fault: Fault, stamp_ns: int) -> None:
        if fault.transform is None:
            return
        message = msg.transforms(stamp_ns, [("base_link", fx.camera_frame(MOVING), fx.RIG[MOVING].ego_from_cam)])
        fault.transform(message.transforms[0])
        self._send(self._tf, message, fault.tf_delay_s)

    def _send(self, publisher: Any, message: Any, delay_s: float) -> None:
        data = bytes(msg.serialize(message))
        if delay_s:
            heapq.heappush(self._due, (time.monotonic() + delay_s, len(self.sent), publisher, data))
        else:
            publisher.publish(data)

    # --- listening --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def _on_answer(self, cloud: PointCloud2) -> None:
        self.answers.append((time.monotonic(), stamp_ns_of(cloud.header.stamp)))
        time.sleep(self.answer_delay_s)

    def _on_status(self, message: DiagnosticArray) -> None:
        now_s = time.monotonic()
        for status in message.status:
            name, level = status.name.rpartition(" ")[2], status.level[0]
            self.status[name] = now_s, level, status.message, {v.key: v.value for v in status.values}
            self.said.append((now_s, name, level, status.message))

    def counts(self) -> dict[str, int]:
        """The frame counts of the model's newest status."""
        values = self.status["model"][3]
        return {key.removeprefix("frames_"): int(value) for key, value in values.items() if key.startswith("frames_")}

    def set_parameter(self, name: str, value: Any) -> Any:
        """A future of the node's answer."""
        kinds = {
            float: ("double_value", ParameterType.PARAMETER_DOUBLE),
            str: ("string_value", ParameterType.PARAMETER_STRING),
        }
        attribute, kind = kinds[type(value)]
        request = SetParameters.Request(
            parameters=[Parameter(name=name, value=ParameterValue(type=kind, **{attribute: value}))]
        )
        return self.parameters.call_async(request)


def until(condition: Callable[[], Any], limit_s: float, what: Callable[[], str]) -> Any:
    """The first true value of `condition()`."""
    end_s = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {limit_s} s: {what()}")
        time.sleep(0.01)
    return value


def flipped(data: bytes, seed: int = 0) -> bytes:
    """Bits flipped in the second half, where a JPEG has its scan."""
    out, rng = bytearray(data), np.random.default_rng(seed)
    for at in rng.integers(len(out) // 2, len(out) - 2, 12):
        out[at] ^= 1 << rng.integers(8)
    return bytes(out)
