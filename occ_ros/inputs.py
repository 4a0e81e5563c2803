"""The node's subscriptions. Callbacks only store messages, group them into sets and offer these to the worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from occ_core.sync import FrameSynchroniser, SyncedSet
from occ_ros.calibration import Calibration
from occ_ros.cameras import CameraInput, ImageSlot
from occ_ros.messages import stamp_ns_of
from occ_ros.runtime import Guard
from occ_ros.sweeps import Sweep, Sweeps, SweepWait
from occ_ros.transport_watch import TransportWatch

LIDAR = "lidar"
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def is_latched(publisher: Any) -> bool:
    """Whether a publisher, as `get_publishers_info_by_topic` describes it, keeps its last messages for late
    subscribers."""
    return publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL


class Receiver(Protocol):
    """Who is given what comes; the node's is InferenceWorker, whose methods these are."""

    def image(self, slot: ImageSlot) -> None: ...

    def offer(self, group: SyncedSet, taken: Sequence[Sweep] = ()) -> None: ...

    def calibration_changed(self) -> None: ...


class Inputs:
    """Receives images, CameraInfos, transforms and LiDAR sweeps between `open` and `close`.

    Args:
        announced: CameraInfos are listened to; False: the cameras' calibration is fixed.
        sweeps: where those of the LiDAR go; None: there is none.
    """

    def __init__(
        self,
        node: Node,
        guard: Guard,
        values: Mapping[str, Any],
        cameras: tuple[CameraInput, ...],
        sync: FrameSynchroniser,
        calibration: Calibration,
        receiver: Receiver,
        announced: bool,
        sweeps: Sweeps | None = None,
    ) -> None:
        self._node, self._guard, self._values = node, guard, values
        self.cameras, self.sync, self._calibration, self._receiver = cameras, sync, calibration, receiver
        self._announced, self.sweeps = announced, sweeps
        self._sweep_wait = SweepWait(sweeps, values["deadline_s"], lambda: values["stale_s"]) if sweeps else None
        self.lidar_transport = TransportWatch([LIDAR], 0.0, announced=False)  # nothing announces sweeps: by their gaps
        self.transport = TransportWatch(sync.cameras, values["max_spread_s"], announced)
        self._seen_changes = 0
        self._simulated_time = False
        self._images: dict[str, Any] = {}
        self._others: list[Any] = []
        self._timer: Any = None
        self._latched: set[str] = set()  # cameras and topics that were subscribed to with another QoS

    # --- wiring -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        node, guard = self._node, self._guard
        self._simulated_time = bool(node.get_parameter("use_sim_time").value)
        self._images = {camera.name: self._subscribe_image(camera) for camera in self.cameras}
        if self._announced:
            self._others += self._subscribe_infos()
        self._others += self._subscribe_transforms()
        if self.sweeps:
            self._others.append(self._subscribe_sweeps(self.sweeps))
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a simulated clock may stand still
        period_s = max(0.01, min(0.1, self._values["deadline_s"] / 5))
        self._timer = node.create_timer(period_s, guard("deadline", self._poll), clock=steady)

    def close(self) -> None:
        """Stop listening; open sets are offered, or counted as incomplete."""
        for subscription in [*self._images.values(), *self._others]:
            self._node.destroy_subscription(subscription)
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        self._images, self._others, self._timer = {}, [], None
        self._latched.clear()
        self._offer(self.sync.flush())
        self._offer_now(self._sweep_wait.flush() if self._sweep_wait else [])
        self.transport.finish()

    def _subscribe_image(self, camera: CameraInput) -> Any:
        kind = CompressedImage if camera.compressed else Image
        callback = self._guard("image", lambda message: self._on_image(camera, message))
        return self._node.create_subscription(kind, camera.image_topic, callback, self._sensor_qos())

    def _subscribe_sweeps(self, sweeps: Sweeps) -> Any:
        callback = self._guard("sweep", lambda message: self._on_sweep(sweeps, message))
        return self._node.create_subscription(PointCloud2, sweeps.topic.topic, callback, self._sensor_qos())

    def _sensor_qos(self) -> QoSProfile:
        reliable = self._values["image_reliability"] == "reliable"
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return QoSProfile(depth=self._values["image_depth"], reliability=reliability)

    def _subscribe_infos(self) -> list[Any]:
        many = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        return [self._subscribe_info(camera, many) for camera in self.cameras]

    def _subscribe_info(self, camera: CameraInput, qos: QoSProfile) -> Any:
        callback = self._guard("CameraInfo", lambda message: self._on_info(camera.name, message))
        return self._node.create_subscription(CameraInfo, camera.info_topic, callback, qos)

    def _subscribe_transforms(self) -> list[Any]:
        on_tf = self._guard("TF", lambda message: self._on_transforms(message, False))
        on_static = self._guard("TF", lambda message: self._on_transforms(message, True))
        return [
            self._node.create_subscription(TFMessage, "/tf", on_tf, QoSProfile(depth=100)),
            self._node.create_subscription(TFMessage, "/tf_static", on_static, LATCHED),
        ]

    def follow_type(self, camera: CameraInput, types: frozenset[str]) -> None:
        """With transport auto, subscribe with the type that the publishers of a silent topic have."""
        other = "Image" if camera.compressed else "CompressedImage"
        if self._values["transport"] == "auto" and types == {other} and camera.name in self._images:
            self._node.destroy_subscription(self._images[camera.name])
            camera.compressed = not camera.compressed
            self._images[camera.name] = self._subscribe_image(camera)

    def follow_info(self, camera: CameraInput) -> None:
        """Subscribe again to a silent CameraInfo topic that was sent once, before this node was there."""
        infos = self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(camera.info_topic))
        if camera.name in self._latched or not infos or not all(map(is_latched, infos)):
            return
        self._latched.add(camera.name)
        self._others.append(self._subscribe_info(camera, LATCHED))

    def follow_static(self) -> str:
        """Listen to volatile publishers of /tf_static, too; returns their nodes' names."""
        infos = self._node.get_publishers_info_by_topic(self._node.resolve_topic_name("/tf_static"))
        volatile = sorted({info.node_name for info in infos if not is_latched(info)})
        if volatile and "/tf_static" not in self._latched:
            self._latched.add("/tf_static")
            on_static = self._guard("TF", lambda message: self._on_transforms(message, True))
            self._others.append(
                self._node.create_subscription(TFMessage, "/tf_static", on_static, QoSProfile(depth=100))
            )
        return ", ".join(volatile)

    # --- what comes ---------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The time by which deadlines are measured. With a simulated clock they are measured in it, so that a slowly
        played bag gets longer ones."""
        return self._node.get_clock().now().nanoseconds if self._simulated_time else time.monotonic_ns()

    @property
    def clock_stands_still(self) -> bool:
        """Whether a simulated clock is configured that nobody publishes."""
        return self._simulated_time and self._node.get_clock().now().nanoseconds == 0

    def _on_image(self, camera: CameraInput, message: Image | CompressedImage) -> None:
        now_s, now_ns, stamp_ns = time.monotonic(), self.now_ns(), stamp_ns_of(message.header.stamp)
        camera.came(stamp_ns, self._node.get_clock().now().nanoseconds, now_s)
        self.transport.image(camera.name, stamp_ns, now_ns)
        slot = ImageSlot(camera, message, now_s)
        ready = self.sync.add(camera.name, stamp_ns, slot, now_ns)
        self._receiver.image(slot)
        self._offer(ready)

    def _on_sweep(self, sweeps: Sweeps, message: PointCloud2) -> None:
        now_s, stamp_ns, topic = time.monotonic(), stamp_ns_of(message.header.stamp), sweeps.topic
        topic.came(stamp_ns, self._node.get_clock().now().nanoseconds, now_s)
        self.lidar_transport.image(LIDAR, stamp_ns, self.now_ns())
        rejected = topic.rejected
        sweeps.add(message)
        if topic.rejected > rejected:
            self._node.get_logger().error(f"sweep rejected: {topic.sweep_error}", throttle_duration_sec=5.0)
        self._offer([])

    def _offer(self, groups: list[SyncedSet]) -> None:
        """Offer sets to the worker; with a LiDAR, together with their sweep or after waiting for it."""
        if self._sweep_wait:
            groups = self._sweep_wait.ready(groups, self.now_ns(), time.monotonic())
        self._offer_now(groups)

    def _offer_now(self, groups: list[SyncedSet]) -> None:
        for group in groups:
            self._receiver.offer(group, self.sweeps.taken(group.stamp_ns) if self.sweeps else ())

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        self.transport.info(camera, stamp_ns_of(message.header.stamp), self.now_ns())
        rejected = self._calibration.rejected_infos
        self._calibration.add_info(camera, message)
        if self._calibration.rejected_infos > rejected:
            why = self._calibration.info_problem(camera)
            self._node.get_logger().error(f"CameraInfo rejected: {why}", throttle_duration_sec=5.0)
        self._tell_changes()

    def _on_transforms(self, message: TFMessage, static: bool) -> None:
        for why in self._calibration.add_transforms(message, static):
            self._node.get_logger().error(f"transform refused: {why}", throttle_duration_sec=5.0)
        if static:
            self._calibration.changes += 1
            self._tell_changes()

    def _tell_changes(self) -> None:
        if self._seen_changes != self._calibration.changes:
            self._seen_changes = self._calibration.changes
            self._receiver.calibration_changed()

    def _poll(self) -> None:
        now_ns = self.now_ns()
        self._offer(self.sync.poll(now_ns))
        self.transport.poll(now_ns)
