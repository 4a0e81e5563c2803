"""Judges answers by a LiDAR that the judged network need not have: does the laser hit where the map says it would?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from occ_core.clouds import occupancy_of
from occ_core.errors import InvalidInput, MissingTransform
from occ_core.evaluation.lidar_rays import LidarRayScores, Returns, returns_of
from occ_core.frame import FULL_INTENSITY, Frame
from occ_core.grid import VoxelGrid
from occ_core.sources.clouds import require_sweep
from occ_core.taxonomy import Taxonomy
from occ_ros.calibration import Calibration
from occ_ros.cameras import CameraInput
from occ_ros.inputs import LATCHED
from occ_ros.matcher import Matcher
from occ_ros.messages import stamp_ns_of
from occ_ros.odometry import Odometry
from occ_ros.sweeps import Sweep


class LidarJudge:
    """Pairs each answer with the nearest sweep, and counts its returns by the first occupied cell on their rays.

    What stands on the robot, and how it moved between sweep and answer, the transform tree says. Where that does not
    tell the movement, the sweep is taken as it came, and counted in `unmoved`.

    Args:
        cameras: whose CameraInfos, given to `calibration`, tell which returns they see.
        values: the evaluator's parameters.
    """

    def __init__(
        self, cameras: Sequence[CameraInput], taxonomy: Taxonomy, grid: VoxelGrid, values: dict[str, Any]
    ) -> None:
        self._topic = values["lidar_topic"]
        inputs = {camera.name: (camera.info_topic, camera.rectified) for camera in cameras}
        self.calibration = Calibration(inputs, values["base_frame"])
        self._odometry = Odometry(self.calibration.tree, values["base_frame"], values["map_frame"])
        self._matcher = Matcher(round(values["tolerance_s"] * 1e9))
        self._scores = LidarRayScores(taxonomy, grid)
        self._to_score: deque[tuple[np.ndarray, Returns]] = deque()
        self._sweeps = self._unmoved = 0
        self._unusable: dict[str, int] = {}  # why -> how many sweeps

    def open_topics(self, node: Node, guard: Callable[[str, Callable], Callable]) -> None:
        """Listen to the LiDAR and to transforms."""
        every = QoSProfile(depth=100)
        moving = guard("transforms", lambda message: self.calibration.add_transforms(message, static=False))
        still = guard("transforms", lambda message: self.calibration.add_transforms(message, static=True))
        node.create_subscription(TFMessage, "/tf", moving, every)
        node.create_subscription(TFMessage, "/tf_static", still, LATCHED)
        node.create_subscription(PointCloud2, self._topic, guard("LiDAR", self.add_sweep), every)

    def add_sweep(self, message: PointCloud2) -> None:
        """Take a sweep; one that cannot be used is counted by its reason."""
        self._sweeps += 1
        try:
            require_sweep(message)
            if not (stamp_ns := stamp_ns_of(message.header.stamp)):
                raise InvalidInput("it carries no stamp (header.stamp is zero)")
        except InvalidInput as error:
            self._refuse(str(error))
            return
        self._place(self._matcher.add_answer(stamp_ns, Sweep(message, stamp_ns)))

    def add_answer(self, stamp_ns: int, points: np.ndarray) -> None:
        """Take an answer, VOXEL_POINT (N,)."""
        self._place(self._matcher.add_truth(stamp_ns, points))

    def settle(self) -> None:
        """Pair what is waiting, since nothing more will come."""
        self._place(self._matcher.settle(None))

    def work_off(self, count: int | None) -> None:
        """Score what is waiting, at most `count` answers; None: all."""
        for _ in range(min(count or len(self._to_score), len(self._to_score))):
            points, returns = self._to_score.popleft()
            self._scores.add(occupancy_of(points, self._scores.grid, self._scores.taxonomy).labels, returns)

    def report(self) -> dict[str, Any]:
        """The report of LidarRayScores, with the number of sweeps that came, and how many could not be used and why."""
        return self._scores.report() | {
            "sweeps": self._sweeps,
            "answers_without_sweep": self._matcher.unmatched,
            "sweeps_unmoved": self._unmoved,
            "sweeps_unusable": self._unusable,
        }

    def _refuse(self, why: str) -> None:
        self._unusable[why] = self._unusable.get(why, 0) + 1

    def _place(self, pairs: list[tuple[int, int, Any, Any]]) -> None:
        """The pose at the answer's stamp; it is looked up now, because transforms are not kept for ever."""
        for answer_ns, _, points, sweep in pairs:
            try:
                self._to_score.append((points, returns_of(self._frame(answer_ns, sweep))))
            except (InvalidInput, MissingTransform) as error:
                self._refuse(str(error))

    def _frame(self, stamp_ns: int, sweep: Sweep) -> Frame:
        """The frame of an answer with its sweep; only the size of its images is used."""
        sweep.decode(FULL_INTENSITY)
        ego_from_lidar = self._odometry.ego_from(sweep.frame_id, sweep.stamp_ns)
        try:
            world_from_ego, then = self._odometry.world_from_ego([stamp_ns, sweep.stamp_ns])
        except MissingTransform:
            self._unmoved += 1
            world_from_ego = then = np.eye(4)
        known = self.calibration.rig({})
        if known is None:
            raise InvalidInput("no camera is known yet (CameraInfo and transforms): which returns they see is not, too")
        nothing = np.uint8(0)
        images = {c.name: np.broadcast_to(nothing, (*c.size[::-1], 3)) for c in known.rig if c.name in known.known}
        return Frame(
            stamp_ns=stamp_ns,
            world_from_ego=world_from_ego,
            rig=known.rig,
            images=images,
            camera_stamp_ns=dict.fromkeys(images, stamp_ns),
            camera_world_from_ego=dict.fromkeys(images, world_from_ego),
            lidar=sweep.placed(ego_from_lidar, then),
        )
