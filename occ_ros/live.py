"""`occ view --live`: what the running node sees and answers, for a browser."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2

from occ_core.clouds import TRUTH_POINT, VOXEL_POINT, occupancy_of
from occ_core.errors import InvalidInput, MissingInput
from occ_core.occupancy import Occupancy
from occ_core.rig_file import load_rig_file
from occ_core.show.live import LiveServer
from occ_core.show.page_data import IMAGE_PX, pack_view, scene_of
from occ_core.sync import FrameSynchroniser, SyncedSet
from occ_ros.calibration import Calibration
from occ_ros.cameras import ImageSlot, offsets_ns
from occ_ros.grid_status import grid_of
from occ_ros.inputs import Inputs
from occ_ros.messages import points_of, stamp_ns_of
from occ_ros.parameters import OCCUPANCY_PARAMETERS
from occ_ros.pipeline import cameras_of
from occ_ros.runtime import Guard, interruptible, run
from occ_ros.sweeps import Sweep

TRUTH_TOPIC = "/ground_truth/occupancy"
SAME_NS = 100_000_000  # stamps of an answer and its truth differ by less
MOST_BYTES = 128 << 20  # of images that wait for their answer
MOST_TRUTHS = 8
SHOW_S = 0.05  # how often an answer that waits for its images is looked at
PATIENCE_S = 1.0  # for these images
WAIT_S = 30.0  # for the node to answer
LOOK_S = 0.5  # how often browsers and silent topics are looked at


class _Waiting:
    """Images that wait for their answer, in place of the node's worker; the oldest go when they become too many."""

    def __init__(self, spread_ns: int) -> None:
        self._spread_ns = spread_ns
        self._slots: deque[tuple[int, ImageSlot, int]] = deque()  # stamp, image and its bytes, as they came
        self._bytes = 0

    def image(self, slot: ImageSlot) -> None:
        self._slots.append((slot.camera.stamp_ns, slot, slot.bytes))
        self._bytes += slot.bytes
        while self._bytes > MOST_BYTES:
            self._drop()

    def _drop(self) -> ImageSlot:
        _, slot, size = self._slots.popleft()
        self._bytes -= size
        return slot

    def offer(self, group: SyncedSet, taken: Sequence[Sweep] = ()) -> None:
        """Whole sets are not waited for: what the node answered without a camera is shown, too."""

    def calibration_changed(self) -> None:
        """It is asked for when an answer comes."""

    def near(self, stamp_ns: int) -> dict[str, tuple[int, ImageSlot]]:
        """Stamp and image of each camera that an answer of this stamp can be of."""
        found: dict[str, tuple[int, ImageSlot]] = {}
        for at_ns, slot, _ in reversed(self._slots):  # of equal ones the newest: a bag may start over
            off_ns, name = abs(at_ns - stamp_ns), slot.camera.name
            if off_ns <= self._spread_ns and (name not in found or off_ns < abs(found[name][0] - stamp_ns)):
                found[name] = at_ns, slot
        return found

    def forget(self, used: set[ImageSlot]) -> None:
        """Let go of images, and of all that came before the first of them."""
        while used and self._drop() not in used:
            pass
        self._slots = deque(entry for entry in self._slots if entry[1] not in used)
        self._bytes = sum(size for _, _, size in self._slots)


class LiveViewer(Node):
    """Listens to an occupancy node while a browser looks, and gives the server each answer with its images.

    Args:
        asked: the occupancy node's name.
    """

    def __init__(self, asked: str, server: LiveServer) -> None:
        super().__init__("occ_view")
        self.done, self.exit_code = False, 0
        self._asked, self._server = f"/{asked.strip('/')}", server
        self._guard = Guard(self)
        self._values: dict[str, Any] = {}
        self._status: dict[str, str] = {}
        self._inputs: Inputs | None = None
        self._others: list[Any] = []
        self._truths: deque[tuple[int, PointCloud2]] = deque(maxlen=MOST_TRUTHS)
        self._has_truth = False
        self._pending: tuple[int, np.ndarray, float] | None = None  # stamp, voxels, and when they came
        self.answers = self._refused = 0

    # --- the node that is looked at -----------------------------------------------------------------------------

    def find(self) -> None:
        """Ask the node for its parameters, and listen for what its voxels are.

        Raises:
            MissingInput: it does not answer in time. InvalidInput: it is none.
        """
        listens = self.create_subscription(
            DiagnosticArray, "/diagnostics", self._guard("diagnostics", self._on_status), 50
        )
        client = self.create_client(GetParameters, f"{self._asked}/get_parameters")
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        names = [parameter.name for parameter in OCCUPANCY_PARAMETERS]
        until_s = time.monotonic() + WAIT_S
        future: Any = None
        try:
            with interruptible():
                while not (future and future.done() and self._status):
                    executor.spin_once(timeout_sec=0.1)
                    if future is None and client.service_is_ready():
                        future = client.call_async(GetParameters.Request(names=names))
                    if time.monotonic() > until_s:
                        lacks = "no model in /diagnostics" if future and future.done() else "no parameters"
                        raise MissingInput(
                            f"no answer of the node '{self._asked}' in {WAIT_S:g} s ({lacks}): is it running and "
                            "active, with this ROS_DOMAIN_ID? --node names another"
                        )
        finally:
            executor.remove_node(self)
        values = [parameter_value_to_python(value) for value in future.result().values]
        self._values = {name: list(v) if hasattr(v, "tolist") else v for name, v in zip(names, values, strict=False)}
        if len(self._values) < len(names) or None in self._values.values():
            raise InvalidInput(f"the node '{self._asked}' has no parameters of an occupancy node")
        self._grid, self._taxonomy = grid_of(self._status)
        self.destroy_subscription(listens)
        self.destroy_client(client)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(LOOK_S, self._guard("look", self._look), clock=steady)
        self.create_timer(SHOW_S, self._guard("show", self._show), clock=steady)

    def _on_status(self, message: DiagnosticArray) -> None:
        name = self._asked.rpartition("/")[2]
        for status in message.status:
            if status.name == f"{name}: model" and any(pair.key == "taxonomy" for pair in status.values):
                self._status = {pair.key: pair.value for pair in status.values}

    # --- listening ----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Listen while somebody looks: what nobody listens to, the node does not compute."""
        if self._server.viewers and self._inputs is None:
            self._open()
        elif not self._server.viewers and self._inputs is not None:
            self.close()
        elif self._inputs is not None:
            self._follow(self._inputs)

    def _open(self) -> None:
        p = self._values
        rig_file = load_rig_file(p["rig_file"]) if p["rig_file"] else ()
        cameras = cameras_of(p, rig_file)
        names = tuple(camera.name for camera in cameras)
        sync = FrameSynchroniser(names, p["deadline_s"], p["max_spread_s"], offsets_ns(names, p["offsets_s"]))
        self._calibration = Calibration(
            {camera.name: (camera.info_topic, camera.rectified) for camera in cameras},
            p["base_frame"],
            {entry.camera.name: entry.camera for entry in rig_file},
        )
        self._waiting = _Waiting(round(1e9 * (p["max_spread_s"] + max(map(abs, p["offsets_s"])))))
        self._inputs = Inputs(self, self._guard, p, cameras, sync, self._calibration, self._waiting, not rig_file)
        self._inputs.open()
        topics = ((f"{self._asked}/occupancy", "answer", self._on_answer), (TRUTH_TOPIC, "truth", self._on_truth))
        for topic, what, callback in topics:
            self._others.append(
                self.create_subscription(PointCloud2, topic, self._guard(what, callback), QoSProfile(depth=2))
            )

    def _follow(self, inputs: Inputs) -> None:
        """Subscribe anew to what is silent because it is sent in another way, as the node does."""
        now_s = time.monotonic()
        for camera in inputs.cameras:
            if camera.silent_s(now_s) > self._values["stale_s"]:
                topic = self.resolve_topic_name(camera.image_topic)
                types = {info.topic_type for info in self.get_publishers_info_by_topic(topic)}
                inputs.follow_type(camera, frozenset(kind.rpartition("/")[2] for kind in types))
            if camera.info_topic and not self._calibration.has_info(camera.name):
                inputs.follow_info(camera)
        if self._calibration.rig({}) is None:
            inputs.follow_static()

    def close(self) -> None:
        """Listen no longer."""
        if self._inputs is None:
            return
        self._refused += _refused(self._inputs, self._calibration)
        self._inputs.close()
        for subscription in self._others:
            self.destroy_subscription(subscription)
        self._inputs, self._others, self._pending = None, [], None

    @property
    def bad(self) -> int:
        """Messages that could not be used."""
        now = 0 if self._inputs is None else _refused(self._inputs, self._calibration)
        return self._refused + now + sum(self._guard.errors.values())

    # --- what comes ---------------------------------------------------------------------------------------------

    def _on_truth(self, message: PointCloud2) -> None:
        self._truths.append((stamp_ns_of(message.header.stamp), message))

    def _on_answer(self, message: PointCloud2) -> None:
        points = points_of(message, VOXEL_POINT)
        self.answers += 1
        if self._server.came() and self._pending is None:
            self._pending = stamp_ns_of(message.header.stamp), points, time.monotonic()
            self._show()

    def _show(self) -> None:
        """The answer that is to be shown, as soon as its images are here, too: on a busy machine they may lag."""
        if self._pending is None or self._inputs is None:
            return
        (stamp_ns, points, came_s), now_s = self._pending, time.monotonic()
        slots = self._waiting.near(stamp_ns)
        awaited = {camera.name for camera in self._inputs.cameras if camera.silent_s(now_s) < self._values["stale_s"]}
        if awaited - slots.keys() and now_s - came_s < PATIENCE_S:
            return
        self._pending = None
        self._waiting.forget({slot for _, slot in slots.values()})
        known = self._calibration.rig({name: at_ns for name, (at_ns, _) in slots.items()})
        if known is None:
            return
        images = {}
        for name, (_, slot) in slots.items():
            size = self._calibration.size(name)
            if size is not None and name in known.rig.names:
                shrink = min(1.0, IMAGE_PX / max(size))
                pixels = slot.pixels(size, (round(size[0] * shrink), round(size[1] * shrink)))
                images |= {} if pixels is None else {name: pixels}
        answer = occupancy_of(points, self._grid, self._taxonomy)
        volumes = {"predicted": answer, "true": self._truth(stamp_ns)}
        shown = ["predicted", "true"] if self._has_truth else ["predicted"]
        scene = scene_of(answer, shown, known.rig)
        frame = pack_view(f"{self._asked} at {stamp_ns / 1e9:.2f} s", images, volumes, known.rig, scene["cameras"])
        self._server.publish(scene, frame, f"{self.answers} answers came, {self.bad} bad messages")

    def _truth(self, stamp_ns: int) -> Occupancy | None:
        near = min(self._truths, key=lambda truth: abs(truth[0] - stamp_ns), default=None)
        if near is None or abs(near[0] - stamp_ns) > SAME_NS:
            return None
        self._has_truth = True
        return occupancy_of(points_of(near[1], TRUTH_POINT), self._grid, self._taxonomy)


def _refused(inputs: Inputs, calibration: Calibration) -> int:
    images = sum(camera.rejected for camera in inputs.cameras)
    return images + calibration.rejected_infos + calibration.rejected_transforms


def show(name: str, server: LiveServer, tell: Callable[[str], None]) -> int:
    """Show the node of a name until SIGINT or SIGTERM; the exit code.

    Args:
        tell: is given a line when there is something to look at, and one at the end.
    """
    viewers: list[LiveViewer] = []

    def made() -> LiveViewer:
        viewers.append(LiveViewer(name, server))
        return viewers[0]

    def started(viewer: LiveViewer) -> None:
        viewer.find()
        tell(f"'{name}' on {server.url} (Ctrl-C ends)")

    code = run(made, started, [])
    if code == 0:
        tell(f"ended: {viewers[0].answers} answers came while somebody looked, {viewers[0].bad} bad messages")
    return code
