"""Publishes /diagnostics: why nothing comes out, in one sentence for each camera, the model and the outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from occ_core.sensor_messages import lens_words, view_deg
from occ_ros.calibration import Calibration
from occ_ros.cameras import CameraInput, lags_s, problems
from occ_ros.grid_status import grid_values
from occ_ros.inference_worker import InferenceWorker
from occ_ros.inputs import LIDAR, Inputs
from occ_ros.lidar import lidar_problems
from occ_ros.messages import header_of, status_of
from occ_ros.outputs import Outputs
from occ_ros.pipeline import Pipeline
from occ_ros.runtime import Guard
from occ_ros.sensors import ERROR, OK, WARN, Found, Surroundings
from occ_ros.sweeps import Sweeps

CHECK_S = 0.25
CALM_CHECKS = 4  # while all is well, only each of so many checks is published
UNUSED_S = 0.5


class Diagnostics:
    """Checks the node four times a second; it publishes at once while something is wrong, else once a second.

    Attributes:
        pipeline: what is looked at; None while the node is not configured.
        state: of the node's life cycle.
        failure: why it could not get further; empty if nothing stopped it.
    """

    def __init__(self, node: Node, guard: Guard, values: Mapping[str, Any]) -> None:
        self._node, self._guard, self._values = node, guard, values
        self.pipeline: Pipeline | None = None
        self.state, self.failure = "unconfigured", ""
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._calm = 0
        self._logged: dict[str, tuple[int, str]] = {}  # by camera: level and kind that were logged
        self._unsure: dict[str, tuple[int, str]] = {}  # that the last check found
        self._used: dict[str, tuple[int, float]] = {}  # by camera: images in sets, and when that number last rose
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(CHECK_S, guard("diagnostics", self._check), clock=steady)

    def _check(self) -> None:
        statuses = self.statuses()
        wrong = any(status.level[0] != OK for status in statuses)
        self._calm = 0 if wrong else self._calm + 1
        if wrong or self._calm % CALM_CHECKS == 1:
            self.publish(statuses)

    def publish(self, statuses: list[DiagnosticStatus] | None = None) -> None:
        header = header_of(self._node.get_clock().now().nanoseconds, self._values["base_frame"])
        self._publisher.publish(DiagnosticArray(header=header, status=statuses or self.statuses()))

    def statuses(self) -> list[DiagnosticStatus]:
        pipeline = self.pipeline
        if pipeline is None or self.state != "active":
            text = self.state + (f": {self.failure}" if self.failure else "")
            return [self._status(ERROR if self.failure else WARN, "model", self._values["model"], text, {})]
        now_s = time.monotonic()
        lags = lags_s(pipeline.inputs.cameras, now_s, self._values["stale_s"])
        cameras = [self._camera(pipeline, c, now_s, lags.get(c.name, 0.0)) for c in pipeline.inputs.cameras]
        sweeps = pipeline.inputs.sweeps
        sensors = cameras + ([self._lidar(pipeline.inputs, sweeps, now_s)] if sweeps else [])
        statuses = [*sensors, self._model(pipeline, sensors, now_s), self._outputs(pipeline.outputs, now_s)]
        if pipeline.outputs.fused is not None:
            level, text, values = pipeline.outputs.fused.status()
            statuses.append(self._status(level, "map", "", text, values))
        return statuses

    def _status(self, level: int, what: str, hardware: str, text: str, values: Mapping[str, Any]) -> DiagnosticStatus:
        return status_of(level, f"{self._node.get_name()}: {what}", hardware, text, values)

    # --- cameras ------------------------------------------------------------------------------------------------

    def _camera(self, pipeline: Pipeline, camera: CameraInput, now_s: float, lag_s: float) -> DiagnosticStatus:
        inputs = pipeline.inputs
        around = self._surroundings(pipeline, camera, now_s, lag_s)
        found = problems(camera, pipeline.calibration, around)
        if found and found[0].kind == "place" and (volatile := inputs.follow_static()):
            text = f"/tf_static is published volatile by {volatile}, so what was sent before does not arrive"
            found[0] = Found(ERROR, f"{found[0].text}; {text}", "qos")
        level, text = found[0][:2] if found else (OK, "ok")
        self._tell(camera.name, found[0] if found else Found(OK, "ok"))
        s = inputs.sync.statistics
        values = {
            "image_topic": camera.image_topic,
            "publishers": self._node.count_publishers(camera.image_topic),
            "received": camera.received,
            "used": s.used[camera.name],
            "dropped_by_synchroniser": s.dropped[camera.name],
            "lost_on_the_way": inputs.transport.lost_images[camera.name],
            "rejected": camera.rejected,
            "also": "; ".join(other.text for other in found[1:]),
            **(found[0].help if found else {}),
            **_lens_values(pipeline.calibration, camera, lag_s),
        }
        return self._status(level, f"camera {camera.name}", camera.name, text, values)

    def _tell(self, camera: str, first: Found) -> None:
        """Log one line for each change of a camera's state that two checks in a row find."""
        state = first.level, first.kind or first.text
        before, self._unsure[camera] = self._unsure.get(camera), state
        if before != state or self._logged.get(camera, (OK, "ok")) == state:
            return
        self._logged[camera] = state
        help = "".join(f"; {word}: {text}" for word, text in first.help.items())
        self._node.get_logger().warning(f"camera {camera}: {first.text}{help}")

    def _surroundings(self, pipeline: Pipeline, camera: CameraInput, now_s: float, lag_s: float) -> Surroundings:
        inputs, stale_s = pipeline.inputs, self._values["stale_s"]
        types, reliable_only = frozenset[str](), False
        if camera.silent_s(now_s) > stale_s:
            types, reliable_only = self._publishers(camera.image_topic)
            inputs.follow_type(camera, types)
        if camera.info_topic and not pipeline.calibration.has_info(camera.name):
            inputs.follow_info(camera)
        used = inputs.sync.statistics.used[camera.name]
        if used != self._used.get(camera.name, (-1, 0.0))[0]:
            self._used[camera.name] = used, now_s
        return Surroundings(
            now_s,
            stale_s,
            self._values["max_age_s"],
            types,
            reliable_only,
            self._node.count_publishers(camera.info_topic) if camera.info_topic else 0,
            lag_s,
            unused=now_s - self._used[camera.name][1] > UNUSED_S and camera.silent_s(now_s) < UNUSED_S,
            lost=inputs.transport.recently_lost(camera.name, inputs.now_ns()),
            rivals=self._rivals(camera.image_topic, camera.info_topic),
        )

    def _publishers(self, topic: str) -> tuple[frozenset[str], bool]:
        """The types of a topic's publishers, and whether none offers the requested reliability. This takes time."""
        infos = self._infos(topic)
        offered = [info.qos_profile.reliability for info in infos]
        asked = self._values["image_reliability"] == "reliable"
        reliable_only = asked and bool(offered) and ReliabilityPolicy.RELIABLE not in offered
        return frozenset(info.topic_type.rpartition("/")[2] for info in infos), reliable_only

    def _rivals(self, *topics: str) -> dict[str, list[str]]:
        """The nodes that publish on those of the topics that have several publishers."""
        shared = [topic for topic in topics if topic and self._node.count_publishers(topic) > 1]
        return {topic: sorted(info.node_name for info in self._infos(topic)) for topic in shared}

    def _infos(self, topic: str) -> list[TopicEndpointInfo]:
        return self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(topic))

    # --- LiDAR --------------------------------------------------------------------------------------------------

    def _lidar(self, inputs: Inputs, sweeps: Sweeps, now_s: float) -> DiagnosticStatus:
        lidar, stale_s = sweeps.topic, self._values["stale_s"]
        silent = lidar.silent_s(now_s) > stale_s
        types, reliable_only = self._publishers(lidar.topic) if silent else (frozenset[str](), False)
        lost = inputs.lidar_transport.recently_lost(LIDAR, inputs.now_ns())
        rivals = self._rivals(lidar.topic)
        around = Surroundings(now_s, stale_s, self._values["max_age_s"], types, reliable_only, lost=lost, rivals=rivals)
        found = lidar_problems(lidar, around)
        level, text = found[0][:2] if found else (OK, "ok")
        values = {
            "topic": lidar.topic,
            "publishers": self._node.count_publishers(lidar.topic),
            "received": lidar.received,
            "used": lidar.joined,
            "lost_on_the_way": inputs.lidar_transport.lost_images[LIDAR],
            "rejected": lidar.rejected,
            "repeated": lidar.repeated,
            "also": "; ".join(other for _, other, *_ in found[1:]),
        }
        return self._status(level, LIDAR, lidar.topic, text, values)

    # --- model and outputs --------------------------------------------------------------------------------------

    def _model(self, pipeline: Pipeline, sensors: list[DiagnosticStatus], now_s: float) -> DiagnosticStatus:
        level, text = self._model_problem(pipeline, sensors, now_s)
        stages = pipeline.times.table(last=256)
        quantiles = {f"{stage} ms {q}": t.get(q, "n/a") for stage, t in stages.items() for q in ("p50", "p95", "p99")}
        values = {
            "backend": pipeline.backend,
            **grid_values(pipeline.grid, pipeline.taxonomy),
            "without_cameras": ", ".join(sorted(pipeline.worker.without)),
            **({"without_lidar": pipeline.worker.without_lidar} if pipeline.inputs.sweeps else {}),
            **({"memory": _memory(pipeline.worker)} if pipeline.worker.remembers else {}),
            **pipeline.frame_counts(),
            **pipeline.fault_counts(self._guard.errors),
            **quantiles,
        }
        return self._status(level, "model", self._values["model"], text, values)

    def _model_problem(self, pipeline: Pipeline, sensors: list[DiagnosticStatus], now_s: float) -> tuple[int, str]:
        worker = pipeline.worker
        if pipeline.inputs.clock_stands_still:
            return ERROR, "use_sim_time is set but nobody publishes /clock"
        if not worker.alive:
            return ERROR, "the inference thread has ended: deactivate and activate the node"
        if not pipeline.outputs.wanted():
            return OK, "idle: nobody subscribes to an output"
        if worker.failure:
            return ERROR, f"frame not answered: {worker.failure}"
        worst = max(status.level[0] for status in sensors)
        if not worker.answered_s:
            return (
                (ERROR, "no frame answered yet: see the cameras") if worst == ERROR else (OK, "ok: waiting for images")
            )
        since_s = now_s - worker.answered_s[-1]
        if worst != OK and since_s > self._values["stale_s"] + worker.last_ms / 1e3:
            return ERROR, f"no frame answered for {since_s:.1f} s: see the cameras"
        if worker.without or worker.without_lidar:
            return self._without(worker)
        if worker.over_since_s is not None and now_s - worker.over_since_s > self._values["budget_s"]:
            return WARN, (
                f"over budget for {now_s - worker.over_since_s:.1f} s: {worker.last_ms:.0f} ms from last image to "
                f"output, budget_ms {self._values['budget_ms']:.0f}"
            )
        if worker.odometry_late:
            what = "answers without memory" if worker.remembers else "cameras are placed as if the robot stood still"
            return WARN, f"{what}: {worker.odometry_late}"
        return OK, "ok"

    def _without(self, worker: InferenceWorker) -> tuple[int, str]:
        names, why = ", ".join(sorted(worker.without)), worker.without_lidar
        if self._values["missing_camera"] == "mask":
            parts = [f"without camera {names}, which is masked"] if names else []
            return WARN, "answers " + " and ".join([*parts, *([f"without LiDAR: {why}"] if why else [])])
        what = " and ".join([*([f"camera {names}"] if names else []), *(["LiDAR"] if why else [])])
        return WARN, f"not current: answers without {what} are withheld from ~/grid" + (f": {why}" if why else "")

    def _outputs(self, outputs: Outputs, now_s: float) -> DiagnosticStatus:
        broken = [f"{output.topic}: {output.error}" for output in outputs.all if output.error]
        text = "ok" if outputs.wanted() else "idle: no subscribers"
        return self._status(ERROR if broken else OK, "outputs", "", "; ".join(broken) or text, outputs.table(now_s))


def _lens_values(calibration: Calibration, camera: CameraInput, lag_s: float) -> dict[str, Any]:
    """The values that `occ doctor` shows beside the state."""
    lens, placed = calibration.lens(camera.name), calibration.placed(camera.name)
    values: dict[str, Any] = {"stamps_behind_s": round(lag_s, 3), "encoding": camera.encoding or "?"}
    if lens is not None:
        values |= {"size": f"{lens.size[0]} x {lens.size[1]}", "lens": lens_words(lens)}
    if placed is not None:
        azimuth_deg, elevation_deg = view_deg(placed)
        values |= {"azimuth_deg": round(azimuth_deg), "elevation_deg": round(elevation_deg)}
        values["tf"] = calibration.frame(camera.name) or "rig file"
    return values


def _memory(worker: InferenceWorker) -> str:
    if not worker.answered_s:
        return "no answer yet"
    return f"not in use: {worker.without_memory}" if worker.without_memory else "in use"
