"""Judges a running occupancy node: accuracy against ground truth, latency, and whether every frame is accounted for."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, PointCloud2

from occ_core.clouds import TRUTH_POINT, VOXEL_POINT, occupancy_of
from occ_core.evaluation.report import VoxelScores
from occ_core.grid import OCC3D_GRID, SEMANTIC_KITTI_GRID
from occ_core.sync import FrameSynchroniser, SyncedSet
from occ_core.taxonomy import TAXONOMIES
from occ_ros.cameras import image_topics
from occ_ros.matcher import MOST_WAITING, Matcher
from occ_ros.messages import points_of, stamp_ns_of
from occ_ros.parameters import EVALUATOR_PARAMETERS
from occ_ros.runtime import Guard, declare, run
from occ_ros.timings import percentiles, write_json

GRIDS = {"occ3d": OCC3D_GRID, "semantic_kitti": SEMANTIC_KITTI_GRID}
QUIET_S = 0.3  # scoring costs CPU that the judged node may need: it waits for such a pause


class EvaluatorNode(Node):
    """See docs/node.md."""

    def __init__(self) -> None:
        super().__init__("evaluator_node")
        self.done, self.exit_code = False, 0
        p = self._values = declare(self, EVALUATOR_PARAMETERS)
        self._guard = Guard(self)
        self._grid, self._taxonomy = GRIDS[p["taxonomy"]], TAXONOMIES[p["taxonomy"]]
        cameras = image_topics(p["cameras"], p["info_topic"], p["info_topic"], "auto")
        names = [camera.name for camera in cameras]
        self._sync = FrameSynchroniser(names, p["deadline_s"], p["max_spread_s"])
        self._matcher = Matcher(round(p["tolerance_s"] * 1e9))
        self._scores = VoxelScores(self._taxonomy)
        self._lidar = self._lidar_judge(cameras) if p["lidar_topic"] else None
        self._sent: dict[int, float] = {}  # stamp -> arrival of its last CameraInfo
        self._frames_sent = self._frames_answered = self._truths = self._unknown_answers = 0
        self._answered_s: list[tuple[int, float]] = []  # stamp and arrival of answers whose frame is not known yet
        self._latency_ms: list[float] = []
        self._matches: list[tuple[int, int]] = []
        self._to_score: deque[tuple[Any, Any]] = deque()
        self._to_save: deque[tuple[int, Any]] = deque()
        self._reported: dict[str, str] = {}
        self._start_s = time.monotonic()
        self._active_s: float | None = None
        self._open_topics(cameras)

    def _lidar_judge(self, cameras: Any) -> Any:
        from occ_ros.lidar_judge import LidarJudge  # needs tf2_msgs and numba, which the rest does not

        return LidarJudge(cameras, self._taxonomy, self._grid, self._values)

    def _open_topics(self, cameras: Any) -> None:
        p = self._values
        every = QoSProfile(depth=100)
        for camera in cameras:
            on_info = self._guard("CameraInfo", lambda message, name=camera.name: self._on_info(name, message))
            self.create_subscription(CameraInfo, camera.info_topic, on_info, every)
        self.create_subscription(PointCloud2, p["truth_topic"], self._guard("truth", self._on_truth), every)
        self.create_subscription(PointCloud2, p["occupancy_topic"], self._guard("answer", self._on_answer), every)
        if self._lidar is not None:
            self._lidar.open_topics(self, self._guard)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._guard("diagnostics", self._on_status), every)
        self.create_timer(0.1, self._guard("timer", self._on_timer), clock=Clock(clock_type=ClockType.STEADY_TIME))

    # --- what comes in ------------------------------------------------------------------------------------------

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        stamp_ns = stamp_ns_of(message.header.stamp)
        if self._lidar is not None:
            self._lidar.calibration.add_info(camera, message)
        if not stamp_ns:  # the player's announcement of the calibration belongs to no image
            return
        now_s = self._active_s = time.monotonic()
        resets = self._sync.statistics.resets
        self._count_sent(self._sync.add(camera, stamp_ns, now_s, time.monotonic_ns()))
        if self._sync.statistics.resets > resets:  # the bag starts over: its stamps come again
            self._queue(self._matcher.settle(None))
            self._settle_latency(final=True)
            self._sent.clear()

    def _count_sent(self, frames: list[SyncedSet]) -> None:
        for frame in frames:
            self._frames_sent += 1
            self._sent[frame.stamp_ns] = max(frame.items.values())

    def _on_truth(self, message: PointCloud2) -> None:
        self._active_s = time.monotonic()
        self._truths += 1
        stamp_ns = stamp_ns_of(message.header.stamp)
        self._queue(self._matcher.add_truth(stamp_ns, points_of(message, TRUTH_POINT)))

    def _on_answer(self, message: PointCloud2) -> None:
        now_s = self._active_s = time.monotonic()
        stamp_ns = stamp_ns_of(message.header.stamp)
        self._frames_answered += 1
        self._answered_s.append((stamp_ns, now_s))
        points = points_of(message, VOXEL_POINT)
        if self._values["predictions_dir"]:
            self._to_save.append((stamp_ns, points))
        self._queue(self._matcher.add_answer(stamp_ns, points))
        if self._lidar is not None:
            self._lidar.add_answer(stamp_ns, points)

    def _settle_latency(self, final: bool) -> None:
        """Record the latency of answers whose frame is known; CameraInfos may be handled after the answer to their
        images.

        `final`: no more will come; an answer then belongs to the nearest frame (an image was lost on its way) or none.
        """
        waiting, limit_ns = [], self._values["max_spread_s"] * 1e9
        for stamp_ns, now_s in self._answered_s:
            frame_ns = stamp_ns if stamp_ns in self._sent else None
            if frame_ns is None and final:
                frame_ns = min(self._sent, key=lambda other: abs(other - stamp_ns), default=None)
                if frame_ns is None or abs(frame_ns - stamp_ns) > limit_ns:
                    self._unknown_answers += 1
                    continue
            if frame_ns is None:
                waiting.append((stamp_ns, now_s))
            else:
                self._latency_ms.append(1e3 * (now_s - self._sent[frame_ns]))
        self._answered_s = waiting

    def _on_status(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": model"):
                self._reported = {pair.key: pair.value for pair in status.values}

    def _queue(self, pairs: list[tuple[int, int, Any, Any]]) -> None:
        for truth_ns, answer_ns, truth, answer in pairs:
            self._matches.append((truth_ns, answer_ns))
            self._to_score.append((truth, answer))

    # --- what is done with it -----------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        p, now_s = self._values, time.monotonic()
        self._count_sent(self._sync.poll(time.monotonic_ns()))
        self._settle_latency(final=False)
        if self._active_s is None:
            if p["start_timeout_s"] and now_s - self._start_s > p["start_timeout_s"]:
                self.get_logger().error(f"nothing came within {p['start_timeout_s']} s: no frame, truth or answer")
                self.exit_code, self.done = 1, True
            return
        quiet_s = now_s - self._active_s
        if quiet_s > QUIET_S or len(self._to_score) + len(self._to_save) > MOST_WAITING:
            self._work_off(1)
        if p["idle_s"] and quiet_s > p["idle_s"]:
            self.done = True

    def _work_off(self, count: int | None) -> None:
        """Score and save what is waiting, at most `count` of each."""
        for _ in range(min(count or len(self._to_score), len(self._to_score))):
            truth, answer = self._to_score.popleft()
            predicted = occupancy_of(answer, self._grid, self._taxonomy)
            self._scores.add(occupancy_of(truth, self._grid, self._taxonomy), predicted.labels)
        if self._lidar is not None:
            self._lidar.work_off(count)
        for _ in range(min(count or len(self._to_save), len(self._to_save))):
            self._save(*self._to_save.popleft())

    def _save(self, stamp_ns: int, points: np.ndarray) -> None:
        from occ_core.inference.predictions import save_prediction

        folder = Path(self._values["predictions_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        save_prediction(folder / f"{stamp_ns}.npz", occupancy_of(points, self._grid, self._taxonomy).labels)

    def close(self) -> None:
        self._count_sent(self._sync.flush())
        self._settle_latency(final=True)
        self._queue(self._matcher.settle(None))
        if self._lidar is not None:
            self._lidar.settle()
        self._work_off(None)
        report = self._report()
        write_json(Path(self._values["report_file"]), report)
        print_table(report)

    def _report(self) -> dict[str, Any]:
        protocols = _finite(self._scores.report()) if self._scores.samples else {}
        camera = protocols.get("camera", {})
        dropped = int(self._reported.get("frames_dropped", 0))
        return {
            "frames_sent": self._frames_sent,
            "frames_answered": self._frames_answered,
            "frames_dropped": dropped,
            # On a busy machine the images of a frame can reach the node as two sets, of which it then reports two.
            "frames_unreported": max(0, self._frames_sent - self._frames_answered - dropped),
            "protocol": "camera",
            "iou": camera.get("iou"),
            "miou_15": camera.get("miou_15"),
            "miou_17": camera.get("miou_17"),
            "latency_ms": percentiles(np.array(self._latency_ms)),
            "truths_received": self._truths,
            "truths_scored": self._scores.samples,
            "truths_without_answer": self._matcher.unmatched,
            "answers_without_frame": self._unknown_answers,
            "protocols": protocols,
            "lidar": None if self._lidar is None else _finite(self._lidar.report()),
            "node": self._reported,
            "exceptions": dict(self._guard.errors),
            "matches_truth_answer_ns": self._matches,
        }


def _finite(value: Any) -> Any:
    """Replace values that are not numbers by null, because JSON cannot hold them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(report: dict[str, Any]) -> None:
    """Print the report on the terminal."""
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.2f}"

    table = Table(title=f"{report['truths_scored']} of {report['truths_received']} ground truths scored")
    for column in ("protocol", "IoU %", "mIoU 15 %", "mIoU 17 %"):
        table.add_column(column, justify="left" if column == "protocol" else "right")
    for name, row in report["protocols"].items():
        table.add_row(name, percent(row["iou"]), percent(row["miou_15"]), percent(row["miou_17"]))
    console = Console()
    console.print(table)
    if report["lidar"]:
        from occ_core.evaluation.lidar_table import lidar_table

        console.print(lidar_table(report["lidar"]))
    latency = report["latency_ms"]
    console.print(
        f"frames sent {report['frames_sent']}, answered {report['frames_answered']}, reported dropped "
        f"{report['frames_dropped']}, unreported {report['frames_unreported']}; latency p50 "
        f"{latency.get('p50', 'n/a')} ms, p95 {latency.get('p95', 'n/a')} ms, p99 {latency.get('p99', 'n/a')} ms",
        soft_wrap=True,
    )


def main() -> None:
    sys.exit(run(EvaluatorNode))


if __name__ == "__main__":
    main()
