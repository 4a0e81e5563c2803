"""Everything between the topics of a configured node: created on configure, dropped on cleanup."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rclpy.node import Node

from occ_core.camera import Camera, Rig
from occ_core.errors import InvalidInput
from occ_core.geometry import pose
from occ_core.inference.predictor import Predictor
from occ_core.rig_file import RigFileCamera, load_rig_file
from occ_core.sync import FrameSynchroniser
from occ_ros.calibration import Calibration
from occ_ros.cameras import CameraInput, camera_input, image_topics, offsets_ns
from occ_ros.inference_worker import InferenceWorker
from occ_ros.inputs import Inputs
from occ_ros.lidar import LidarTopic
from occ_ros.map_server import MapServer
from occ_ros.odometry import Odometry
from occ_ros.outputs import Outputs
from occ_ros.runtime import Guard
from occ_ros.sweeps import Sweeps
from occ_ros.timings import StageTimes, write_json


class Pipeline:
    """Inputs, worker and outputs of the node.

    Raises:
        OccError: a parameter, the rig file or the model is not usable.
    """

    def __init__(self, node: Node, guard: Guard, values: Mapping[str, Any]) -> None:
        p = self._values = values
        if not p["model"]:
            raise InvalidInput("parameter 'model' is empty: give the path of a checkpoint (-p model:=PATH)")
        rig_file = load_rig_file(p["rig_file"]) if p["rig_file"] else ()
        cameras = cameras_of(p, rig_file)
        names = tuple(camera.name for camera in cameras)
        sync = FrameSynchroniser(
            names, p["deadline_s"], p["max_spread_s"], offsets_ns(names, p["offsets_s"]), p["min_cameras"] or None
        )
        cv2.setNumThreads(p["threads"])
        predictor = Predictor.load(Path(p["model"]), backend=p["backend"], threads=p["threads"])
        trained = predictor.session.cameras or 0
        if len(names) < trained:
            node.get_logger().warning(
                f"the model was trained on {trained} cameras, this rig has {len(names)} ({', '.join(names)}): what "
                "only others would see is not observed"
            )
        self.calibration = Calibration(
            {camera.name: (camera.info_topic, camera.rectified) for camera in cameras},
            p["base_frame"],
            {entry.camera.name: entry.camera for entry in rig_file},
        )
        self.grid, self.taxonomy = predictor.grid, predictor.taxonomy
        self.backend = type(predictor.session).__name__.removesuffix("Session").lower()
        tree = self.calibration.tree
        odometry = Odometry(tree, p["base_frame"], p["map_frame"])
        sweeps = sweeps_for(p, predictor, odometry)
        self.times = StageTimes()
        with self.times.measure("warm up"):
            known = self.calibration.rig({})
            predictor.prepare(known.rig if known else ring(names))
        fused = None
        if p["fusion"]:
            fused = MapServer(node, predictor.grid, predictor.taxonomy, tree, p["base_frame"], p)
        self.outputs = Outputs(node, p, tree, predictor.taxonomy, fused)
        self.worker = InferenceWorker(
            predictor,
            self.calibration,
            self.outputs,
            names,
            sync.min_cameras,
            p,
            self.times,
            node.get_logger(),
            sweeps,
            odometry if predictor.moving_rig or predictor.memory else None,
        )
        announced = not rig_file
        self.inputs = Inputs(node, guard, p, cameras, sync, self.calibration, self.worker, announced, sweeps)

    @property
    def names(self) -> tuple[str, ...]:
        return self.inputs.sync.cameras

    def start(self) -> None:
        self.worker.start()
        self.inputs.open()

    def stop(self) -> bool:
        """Stop listening and end the thread; returns False if it does not end."""
        self.inputs.close()
        return self.worker.stop()

    def frame_counts(self) -> dict[str, int]:
        """The counts of frames: frames_in = answered + dropped + skipped; dropped = superseded + failed + incomplete +
        lost + stopped.

        `frames_in` are those whose end is known: not the one that waits nor the one that is being answered.
        """
        finished, ended = self.worker.counts()
        incomplete, lost = self.inputs.sync.statistics.incomplete, self.inputs.transport.lost_frames
        dropped = {
            "frames_lost": lost,
            "frames_superseded": ended["superseded"],
            "frames_failed": ended["failed"],
            "frames_incomplete": incomplete,
            "frames_stopped": ended["stopped"],
        }
        return {
            "frames_in": finished + incomplete + lost,
            "frames_answered": ended["answered"],
            "frames_dropped": sum(dropped.values()),
            **dropped,
            "frames_skipped": ended["skipped"],
        }

    def fault_counts(self, exceptions: Mapping[str, int]) -> dict[str, Any]:
        s, (_, ended) = self.inputs.sync.statistics, self.worker.counts()
        return {
            "sets_complete": s.complete,
            "sets_partial": s.partial,
            "clock_resets": s.resets,
            **{f"images_{reason}": count for reason, count in sorted(s.reasons.items())},
            **{reason: count for reason, count in sorted(ended.items()) if reason.startswith("failed: ")},
            "camera_infos_rejected": self.calibration.rejected_infos,
            "transforms_rejected": self.calibration.rejected_transforms,
            **({"answered_without_lidar": ended["without LiDAR"]} if self.inputs.sweeps else {}),
            **({"answered_with_memory": ended["with memory"]} if self.worker.remembers else {}),
            **{f"answered_{how}": count for how, count in sorted(ended.items()) if how.startswith("without memory: ")},
            **{f"exceptions in {name}": count for name, count in sorted(exceptions.items())},
        }

    def summary(self) -> str:
        """One line for the log."""
        counts, total = self.frame_counts(), self.times.table().get("last image to output", {})
        return (
            f"frames in {counts['frames_in']}, answered {counts['frames_answered']}, dropped "
            f"{counts['frames_dropped']}, skipped {counts['frames_skipped']}; last image to output "
            f"p50 {total.get('p50', 'n/a')} ms, p95 {total.get('p95', 'n/a')} ms, p99 {total.get('p99', 'n/a')} ms"
        )

    def write_times(self, path: Path, exceptions: Mapping[str, int]) -> None:
        """Write counts and stage times as JSON.

        Raises:
            OSError: the file cannot be written.
        """
        counts, answered_s = self.frame_counts(), self.worker.answered_s
        span_s = answered_s[-1] - answered_s[0] if len(answered_s) == 2 else 0.0
        record = {
            "model": self._values["model"],
            "backend": self.backend,
            "cameras": list(self.names),
            "answered_hz": round((counts["frames_answered"] - 1) / span_s, 3) if span_s > 0 else None,
            "cpu_s": round(time.process_time(), 3),
            **counts,
            **self.fault_counts(exceptions),
            "stages_ms": self.times.table(),
        }
        write_json(path, record)


def cameras_of(values: Mapping[str, Any], rig_file: tuple[RigFileCamera, ...]) -> tuple[CameraInput, ...]:
    """The node's cameras by its parameters.

    Raises:
        InvalidInput: as of `image_topics`.
    """
    if not rig_file:
        return image_topics(values["cameras"], values["image_topic"], values["info_topic"], values["transport"])
    named = {}
    for entry in rig_file:
        name = entry.camera.name
        topic = entry.image_topic or values["image_topic"].replace("{camera}", name)
        named[name] = camera_input(name, topic, "", values["transport"])
    return tuple(named.values())


def sweeps_for(values: Mapping[str, Any], predictor: Predictor, odometry: Odometry) -> Sweeps | None:
    """Make what keeps the LiDAR's sweeps, if the network takes them.

    Raises:
        InvalidInput: the network takes LiDAR and there is no topic for it, or the other way round.
    """
    asked, topic, model = predictor.lidar, values["lidar_topic"], values["model"]
    if asked is None and not topic:
        return None
    if asked is None:
        raise InvalidInput(f"{model}: takes no LiDAR: leave parameter 'lidar_topic' empty, it is '{topic}'")
    if not topic:
        raise InvalidInput(f"{model}: takes LiDAR: name its PointCloud2 topic (-p lidar_topic:=TOPIC)")
    return Sweeps(
        LidarTopic(topic),
        asked,
        odometry,
        values["lidar_max_age_s"],
        values["max_spread_s"],
        values["lidar_intensity_max"] or asked.intensity_max,
    )


def ring(names: tuple[str, ...]) -> Rig:
    """Level cameras all around, for the first run of a network whose real rig is not known yet."""
    size, focal_px = (640, 360), 400.0
    intrinsics = np.array([[focal_px, 0, (size[0] - 1) / 2], [0, focal_px, (size[1] - 1) / 2], [0, 0, 1]])
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cameras = []
    for i, name in enumerate(names):
        half_turn = math.pi * i / len(names)
        ego_from_cam = pose((0.0, 0.0, 1.5), (math.cos(half_turn), 0.0, 0.0, math.sin(half_turn)))
        ego_from_cam[:3, :3] = ego_from_cam[:3, :3] @ optical
        cameras.append(Camera(name, intrinsics, size, ego_from_cam))
    return Rig(tuple(cameras))
