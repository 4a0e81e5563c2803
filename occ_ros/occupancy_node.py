"""Cameras in, semantic occupancy out.

One thread receives: callbacks only store what came and group it into sets. Another answers the newest set: decode,
preprocess, network, messages. A set that waits while a newer one comes is dropped and counted, never queued.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from occ_core.camera import Rig
from occ_core.clouds import voxel_points
from occ_core.errors import InvalidInput
from occ_core.occupancy import Occupancy
from occ_core.sync import FrameSynchroniser, SyncedSet
from occ_ros.calibration import Calibration
from occ_ros.cameras import ERROR, OK, WARN, CameraInput, ImageSlot, image_topics, offsets_ns
from occ_ros.markers import occupancy_cdr
from occ_ros.messages import cloud_of, header_of, occupancy_grid_of, stamp_ns_of, status_of
from occ_ros.parameters import OCCUPANCY_PARAMETERS
from occ_ros.runtime import Guard, declare, run
from occ_ros.timings import StageTimes, write_json

ANNOUNCED_WAIT_S = 1.0  # the CameraInfos of a frame count as lost after this time
CALIBRATION_WAIT_S = 2.0  # the first set waits this long for CameraInfo and TF, which come on other topics


class OccupancyNode(Node):
    """See docs/node.md for topics, parameters and diagnostics."""

    exit_code = 0
    done = False

    def __init__(self) -> None:
        super().__init__("occupancy_node")
        self._guard = Guard(self)
        p = self._values = declare(self, OCCUPANCY_PARAMETERS)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._simulated_time = bool(self.get_parameter("use_sim_time").value)
        self._cameras = image_topics(p["cameras"], p["image_topic"], p["info_topic"], p["transport"])
        names = tuple(camera.name for camera in self._cameras)
        self._sync = FrameSynchroniser(
            names, p["deadline_s"], p["max_spread_s"], offsets_ns(names, p["offsets_s"]), p["min_cameras"] or None
        )
        # CameraInfo is small and gets through where images are lost: it tells how many frames there were.
        self._announced = FrameSynchroniser(names, ANNOUNCED_WAIT_S, p["max_spread_s"])
        self._calibration = Calibration({c.name: (c.info_topic, c.rectified) for c in self._cameras}, p["base_frame"])
        self._predictor = _load_predictor(p["model"], p["backend"], p["threads"])
        self._backend = type(self._predictor.session).__name__.removesuffix("Session").lower()
        self._times = StageTimes()
        self._frames: Counter[str] = Counter()
        self._answered_s: list[float] = []  # first and last
        self._markers_s = 0.0
        self._first_set_s: float | None = None
        self._rig: Rig | None = None
        self._prepared = ""  # fingerprint of the rig whose table is there
        self._wake = threading.Condition()
        self._waiting: SyncedSet | None = None
        self._early: dict[str, ImageSlot] = {}
        self._closing = self._new_calibration = False
        self._seen_changes = 0
        self._open_topics()
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()
        self.get_logger().info(f"ready: {p['model']}, backend {self._backend}, cameras {', '.join(names)}")

    # --- wiring -------------------------------------------------------------------------------------------------

    def _open_topics(self) -> None:
        many = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._images = {camera.name: self._subscribe_image(camera) for camera in self._cameras}
        for camera in self._cameras:
            on_info = self._guard("CameraInfo", lambda message, name=camera.name: self._on_info(name, message))
            self.create_subscription(CameraInfo, camera.info_topic, on_info, many)
        on_tf = self._guard("TF", lambda message: self._on_transforms(message, False))
        on_static = self._guard("TF", lambda message: self._on_transforms(message, True))
        self.create_subscription(TFMessage, "/tf", on_tf, QoSProfile(depth=100))
        self.create_subscription(TFMessage, "/tf_static", on_static, latched)
        self._cloud = self.create_publisher(PointCloud2, "~/occupancy", 5)
        self._markers = self.create_publisher(MarkerArray, "~/markers", 1)
        self._grid = self.create_publisher(OccupancyGrid, "~/grid", 1)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a simulated clock may stand still
        self.create_timer(max(0.01, self._values["deadline_s"] / 5), self._guard("deadline", self._poll), clock=steady)
        self.create_timer(1.0, self._guard("diagnostics", self._publish_diagnostics), clock=steady)

    def _subscribe_image(self, camera: CameraInput) -> Any:
        reliable = self._values["image_reliability"] == "reliable"
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        callback = self._guard("image", lambda message: self._on_image(camera, message))
        kind = CompressedImage if camera.compressed else Image
        return self.create_subscription(
            kind, camera.image_topic, callback, QoSProfile(depth=1, reliability=reliability)
        )

    def _check_types(self) -> None:
        """With transport auto, follow the type that a topic turns out to have."""
        types = dict(self.get_topic_names_and_types())
        for camera in self._cameras:
            there = {name.rsplit("/")[-1] for name in types.get(self.resolve_topic_name(camera.image_topic), [])}
            other = "Image" if camera.compressed else "CompressedImage"
            if camera.received or other not in there:
                continue
            if self._values["transport"] == "auto":
                self.destroy_subscription(self._images[camera.name])
                camera.compressed = not camera.compressed
                self._images[camera.name] = self._subscribe_image(camera)
            else:
                camera.wrong_type = other

    def _on_parameters(self, parameters: list[Any]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name in self._values:
                self._values[parameter.name] = parameter.value
        return SetParametersResult(successful=True)

    # --- receiving thread ---------------------------------------------------------------------------------------

    def _now_ns(self) -> int:
        """With a simulated clock waiting is measured in it, so that a bag played slowly gets longer deadlines."""
        return self.get_clock().now().nanoseconds if self._simulated_time else time.monotonic_ns()

    def _on_image(self, camera: CameraInput, message: Image | CompressedImage) -> None:
        now_s = time.monotonic()
        camera.received += 1
        camera.arrival_s = now_s
        slot = ImageSlot(camera, message, now_s)
        ready = self._sync.add(camera.name, stamp_ns_of(message.header.stamp), slot, self._now_ns())
        with self._wake:
            self._early[camera.name] = slot
            self._wake.notify()
        self._offer(ready)

    def _poll(self) -> None:
        self._offer(self._sync.poll(self._now_ns()))
        self._announced.poll(self._now_ns())

    def _offer(self, ready: list[SyncedSet]) -> None:
        """Newest wins: a set that is still waiting is replaced."""
        for group in ready:
            with self._wake:
                self._frames["in"] += 1
                self._frames["dropped"] += self._waiting is not None
                self._waiting = group
                self._wake.notify()

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        stamp_ns = stamp_ns_of(message.header.stamp)
        if stamp_ns:  # zero: calibration that belongs to no image
            self._announced.add(camera, stamp_ns, None, self._now_ns())
        rejected = self._calibration.rejected_infos
        self._calibration.add_info(camera, message)
        if self._calibration.rejected_infos > rejected:
            why = self._calibration.info_error(camera)
            self.get_logger().error(f"CameraInfo rejected: {why}", throttle_duration_sec=5.0)
        self._recalibrate()

    def _recalibrate(self) -> None:
        """Let the worker look at a changed calibration before the next set needs it."""
        if self._seen_changes != self._calibration.changes:
            with self._wake:
                self._seen_changes = self._calibration.changes
                self._new_calibration = True
                self._wake.notify()

    def _on_transforms(self, message: TFMessage, static: bool) -> None:
        for why in self._calibration.add_transforms(message, static):
            self.get_logger().error(f"transform refused: {why}", throttle_duration_sec=5.0)
        if static:
            self._calibration.changes += 1
            self._recalibrate()

    # --- inference thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        answer, prepare = self._guard("inference", self._answer), self._guard("decode", self._prepare_early)
        calibrate = self._guard("calibration", self._calibrate_early)
        while True:
            with self._wake:
                while not (self._waiting or self._early or self._new_calibration or self._closing):
                    self._wake.wait()
                if self._closing:
                    return
                group, self._waiting = self._waiting, None
                slot = self._early.pop(next(iter(self._early))) if self._early and not group else None
                new_calibration, self._new_calibration = self._new_calibration, False
            if new_calibration:
                calibrate()
            if slot is not None:
                prepare(slot)
            if group is not None:
                outcome = answer(group) or "failed"
                with self._wake:
                    self._frames[outcome] += 1

    def _prepare_early(self, slot: ImageSlot) -> None:
        """While nothing else waits, decode what came: it is then done before its set is complete."""
        if self._wanted():
            self._update_rig(None)
            self._input(slot)

    def _input(self, slot: ImageSlot) -> np.ndarray | None:
        """The network's input from one image; None if it cannot be used."""
        image = None if slot.array is not None else slot.pixels(self._calibration, self._times)
        camera = slot.camera.name
        if image is not None and self._rig is not None and camera in self._rig.names:
            with self._times.measure("preprocess"):
                slot.finish(self._predictor.preprocess_one(image, self._rig[camera]))
        return slot.array

    def _answer(self, group: SyncedSet) -> str:
        """One set: decode, preprocess, network, publish. Returns what became of it."""
        if not self._wanted():
            return "skipped"
        start_s = time.monotonic()
        slots: list[ImageSlot] = list(group.items.values())
        arrived_s = [slot.arrival_s for slot in slots]
        self._times.add("sync wait", 1e3 * (max(arrived_s) - min(arrived_s)))
        self._times.add("queue", 1e3 * (start_s - max(arrived_s)))
        rig = self._rig_for(group)
        inputs = {slot.camera.name: self._input(slot) for slot in slots}
        usable = {name: array for name, array in inputs.items() if array is not None}
        if rig is None or len(usable) < self._sync.min_cameras:
            why = f"{len(usable)} of {len(self._cameras)} cameras are usable, at least {self._sync.min_cameras} needed"
            self.get_logger().warning(f"frame not answered: {why}; see /diagnostics", throttle_duration_sec=5.0)
            return "failed"
        self._prepare_rig(rig)
        with self._times.measure("network"):
            occupancy = self._predictor.predict_preprocessed(usable, rig)
        with self._times.measure("messages"):
            self._publish(occupancy, group.stamp_ns)
        self._times.add("last image to output", 1e3 * (time.monotonic() - max(arrived_s)))
        self._answered_s = [*self._answered_s[:1], time.monotonic()]
        return "answered"

    def _rig_for(self, group: SyncedSet) -> Rig | None:
        """The rig at this set; at the very start the calibration gets a moment to come in."""
        self._first_set_s = self._first_set_s or time.monotonic()
        self._update_rig(group.stamps_ns)
        while not self._closing and time.monotonic() - self._first_set_s < CALIBRATION_WAIT_S:
            if self._rig is not None and set(group.items) <= set(self._rig.names):
                break
            time.sleep(0.005)
            self._update_rig(group.stamps_ns)
        return self._rig

    def _update_rig(self, stamps_ns: dict[str, int] | None) -> None:
        """Take over the current calibration; without stamps at those of the last CameraInfos."""
        self._rig = self._calibration.rig(stamps_ns or {})

    def _calibrate_early(self) -> None:
        self._update_rig(None)
        if self._rig is not None and len(self._rig) == len(self._cameras):
            self._prepare_rig(self._rig)

    def _prepare_rig(self, rig: Rig) -> None:
        """A changed calibration rebuilds the predictor's table."""
        if rig.fingerprint != self._prepared:
            self._prepared = rig.fingerprint
            with self._times.measure("calibration change"):
                self._predictor.prepare(rig)
            self.get_logger().info(f"calibration {rig.fingerprint}: {', '.join(rig.names)}", throttle_duration_sec=5.0)

    def _wanted(self) -> bool:
        return any(output.get_subscription_count() for output in (self._cloud, self._markers, self._grid))

    def _publish(self, occupancy: Occupancy, stamp_ns: int) -> None:
        """Only what somebody listens to."""
        p = self._values
        if self._cloud.get_subscription_count():
            self._cloud.publish(cloud_of(voxel_points(occupancy), stamp_ns, p["base_frame"]))
        if self._grid.get_subscription_count():
            ground = [i for i, name in enumerate(occupancy.taxonomy.names) if name in p["grid_ground_classes"]]
            band_m = p["grid_min_z_m"], p["grid_max_z_m"]
            self._grid.publish(occupancy_grid_of(occupancy, band_m, ground, stamp_ns, p["base_frame"]))
        now_s = time.monotonic()
        if self._markers.get_subscription_count() and now_s - self._markers_s >= 1 / p["marker_rate_hz"]:
            self._markers_s = now_s
            self._markers.publish(occupancy_cdr(occupancy, stamp_ns, p["base_frame"]))

    # --- diagnostics --------------------------------------------------------------------------------------------

    def _publish_diagnostics(self) -> None:
        self._check_types()
        statuses = [self._camera_status(camera) for camera in self._cameras]
        statuses.append(self._model_status(worst=max(status.level[0] for status in statuses)))
        header = header_of(self.get_clock().now().nanoseconds, self._values["base_frame"])
        self._diagnostics.publish(DiagnosticArray(header=header, status=statuses))

    def _camera_status(self, camera: CameraInput) -> Any:
        publishers, infos = self.count_publishers(camera.image_topic), self.count_publishers(camera.info_topic)
        stale_s = self._values["stale_s"]
        level, text = camera.problem(self._calibration, publishers, infos, time.monotonic(), stale_s)
        s = self._sync.statistics
        values = {
            "image_topic": camera.image_topic,
            "publishers": publishers,
            "received": s.received[camera.name],
            "used": s.used[camera.name],
            "dropped_by_synchroniser": s.dropped[camera.name],
            "rejected": camera.rejected,
        }
        return status_of(level, f"{self.get_name()}: camera {camera.name}", camera.name, text, values)

    def _model_status(self, worst: int) -> Any:
        """Frames and times; `frames_dropped` holds the sets that lacked cameras, too."""
        level, text = OK, "ok"
        if self._guard.errors["inference"]:
            level, text = WARN, f"{self._guard.errors['inference']} frames failed with an exception"
        if not self._wanted():
            text = "idle: nobody subscribes to an output"
        elif worst == ERROR and not self._frames["answered"]:
            level, text = ERROR, "no frame answered yet: see the cameras"
        stages = self._times.table()
        quantiles = {f"{stage} ms {q}": t.get(q, "n/a") for stage, t in stages.items() for q in ("p50", "p95", "p99")}
        values = {"backend": self._backend, **self._frame_counts(), **self._fault_counts(), **quantiles}
        return status_of(level, f"{self.get_name()}: model", self._values["model"], text, values)

    def _frame_counts(self) -> dict[str, int]:
        """frames_in = answered + dropped + skipped (+ waiting); dropped = superseded + failed + incomplete + lost."""
        f, incomplete, announced = self._frames, self._sync.statistics.incomplete, self._announced.statistics
        arrived = f["in"] + incomplete
        lost = max(0, announced.complete + announced.partial - arrived)  # no image of them came
        return {
            "frames_in": arrived + lost,
            "frames_answered": f["answered"],
            "frames_dropped": f["dropped"] + f["failed"] + incomplete + lost,
            "frames_lost": lost,
            "frames_superseded": f["dropped"],
            "frames_failed": f["failed"],
            "frames_incomplete": incomplete,
            "frames_skipped": f["skipped"],
        }

    def _fault_counts(self) -> dict[str, Any]:
        s = self._sync.statistics
        return {
            "sets_complete": s.complete,
            "sets_partial": s.partial,
            "clock_resets": s.resets,
            **{f"images_{reason}": count for reason, count in sorted(s.reasons.items())},
            "camera_infos_rejected": self._calibration.rejected_infos,
            "transforms_rejected": self._calibration.rejected_transforms,
            **{f"exceptions in {name}": count for name, count in sorted(self._guard.errors.items())},
        }

    def close(self) -> None:
        """Stop the worker, publish the last counts, say one line, write the times."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._worker.join(timeout=10.0)
        self._offer(self._sync.flush())
        if self._waiting is not None:
            self._frames["dropped"] += 1
        self._guard("diagnostics", self._publish_diagnostics)()
        counts, stages = self._frame_counts(), self._times.table()
        total = stages.get("last image to output", {})
        self.get_logger().info(
            f"frames in {counts['frames_in']}, answered {counts['frames_answered']}, dropped "
            f"{counts['frames_dropped']}, skipped {counts['frames_skipped']}; last image to output "
            f"p50 {total.get('p50', 'n/a')} ms, p95 {total.get('p95', 'n/a')} ms, p99 {total.get('p99', 'n/a')} ms"
        )
        if path := self._values["timings_file"]:
            write_json(Path(path), self._record(counts, stages))

    def _record(self, counts: dict[str, int], stages: dict[str, Any]) -> dict[str, Any]:
        span_s = self._answered_s[-1] - self._answered_s[0] if len(self._answered_s) == 2 else 0.0
        return {
            "model": self._values["model"],
            "backend": self._backend,
            "cameras": [camera.name for camera in self._cameras],
            "answered_hz": round((counts["frames_answered"] - 1) / span_s, 3) if span_s > 0 else None,
            "cpu_s": round(time.process_time(), 3),
            **counts,
            **self._fault_counts(),
            "stages_ms": stages,
        }


def _load_predictor(model: str, backend: str, threads: int) -> Any:
    if not model:
        raise InvalidInput("parameter 'model' is empty: give the path of a checkpoint (-p model:=PATH)")
    cv2.setNumThreads(threads)
    from occ_core.inference.predictor import Predictor  # heavy: only once the parameters are known to be good

    return Predictor.load(Path(model), backend=backend, threads=threads)


def main() -> None:
    sys.exit(run(OccupancyNode))


if __name__ == "__main__":
    main()
