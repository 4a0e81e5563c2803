"""The rig of `fault_rig` with a LiDAR, whose sweeps can be spoiled, on a robot that drives 2 m a frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ros_fixtures as fx
from fault_rig import CAMERAS, STAGGER_NS, Fault, FaultRig
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import PointCloud2

from occ_core.bags import messages as msg
from occ_core.clouds import LIDAR_POINT
from occ_core.geometry import pose

TOPIC, FRAME = "/lidar/points", "lidar"
STEP_M = 2.0
BASE_FROM_LIDAR = pose((1.0, -2.0, 1.5), (np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)))  # turned to the left
POINTS_M = np.array([[3.5, 0.5, 0.0], [-4.5, 2.5, 1.0], [0.5, -6.5, 2.0], [2.5, 9.5, -1.0]], dtype=np.float32)


@dataclass(frozen=True)
class SweepFault:
    """What is done to the LiDAR alone; as made, nothing.

    Attributes:
        points: LIDAR_POINT (N,) -> what is sent in their place.
        message: what is done to the message.
        older_s: how much older than the images its stamp is.
        delay_s: how late it goes out.
        silent: nothing goes out.
    """

    points: Callable[[np.ndarray], np.ndarray] = lambda points: points
    message: Callable[[Any], None] = lambda message: None
    older_s: float = 0.0
    delay_s: float = 0.0
    silent: bool = False


WELL = SweepFault()


class LidarRig(FaultRig):
    """Sends a sweep with each frame, at the stamp of its newest image.

    Attributes:
        sweep_fault: of the sweeps to come.
        odometry: the robot's place goes out.
        clouds: answers, as they came.
        grids_s: arrivals of ~/grid.
    """

    def __init__(self, domain: int) -> None:
        self.sweep_fault, self.odometry = WELL, True
        self.clouds: list[PointCloud2] = []
        self.grids_s: list[float] = []
        super().__init__(domain)
        self.sweeps: Any = self.node.create_publisher(PointCloud2, TOPIC, 10)
        self.node.create_subscription(
            OccupancyGrid, "/occupancy_node/grid", lambda _: self.grids_s.append(time.monotonic()), 10
        )

    def start(self) -> None:
        static = msg.transforms(time.time_ns(), [("base_link", FRAME, BASE_FROM_LIDAR)])
        self._static.publish(bytes(msg.serialize(static)))
        super().start()

    def _send_transform(self, fault: Fault, stamp_ns: int) -> None:
        super()._send_transform(fault, stamp_ns)
        sweep_ns = stamp_ns - STAGGER_NS  # of the newest image
        if self.odometry:
            world_from_base = pose((STEP_M * self._number, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
            self._send(self._tf, msg.transforms(sweep_ns, [("odom", "base_link", world_from_base)]), 0.0)
        self._send_sweep(self.sweep_fault, sweep_ns)

    def _send_sweep(self, fault: SweepFault, stamp_ns: int) -> None:
        if fault.silent:
            return
        points = np.zeros(len(POINTS_M), dtype=LIDAR_POINT)
        points["x"], points["y"], points["z"] = POINTS_M.T
        message = msg.cloud(stamp_ns - round(fault.older_s * 1e9), FRAME, fault.points(points))
        fault.message(message)
        self._send(self.sweeps, message, fault.delay_s)

    def _on_answer(self, cloud: PointCloud2) -> None:
        self.clouds.append(cloud)
        super()._on_answer(cloud)


def sweep_cells(grid: Any, steps_ago: int) -> np.ndarray:
    """Cells [N, 3] that the returns of the sweep so many frames ago lie in, by plain arithmetic."""
    turned = np.stack([-POINTS_M[:, 1], POINTS_M[:, 0], POINTS_M[:, 2]], axis=1)
    ego_m = turned + (1.0, -2.0, 1.5) - (STEP_M * steps_ago, 0.0, 0.0)
    return np.floor((ego_m - grid.origin_m) / grid.voxel_size_m).astype(int)


assert tuple(fx.RIG.names) == CAMERAS  # the last of them has the newest stamp
