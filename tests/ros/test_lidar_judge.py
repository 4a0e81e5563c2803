"""The evaluator's LiDAR: sweeps and answers as messages, walls and movement by hand; no DDS."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("rosbags")
pytest.importorskip("numba")

import ros_fixtures as fx
from ray_maps import WALL, empty
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, PointCloud2
from tf2_msgs.msg import TFMessage

from occ_core.bags import messages as msg
from occ_core.clouds import LIDAR_POINT, voxel_points
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D
from occ_ros.cameras import image_topics
from occ_ros.lidar_judge import LidarJudge

VALUES = {"lidar_topic": "/lidar", "base_frame": "base_link", "map_frame": "odom", "tolerance_s": 0.1}
BASE_FROM_LIDAR = pose((1.0, 0.0, 1.8))
WALL_M = 12.2  # ahead of the base at START: in the middle of a cell
SPEED_M_S = 10.0


def received(kind: type, message):
    return deserialize_message(bytes(msg.serialize(message)), kind)


def judge(odometry: bool = True, infos: bool = True) -> LidarJudge:
    """It knows the cameras, where the LiDAR is and, if asked to, that the robot drives ahead at SPEED_M_S."""
    cameras = image_topics(list(fx.RIG.names), "/{camera}/camera_info", "/{camera}/camera_info", "auto")
    out = LidarJudge(cameras, OCC3D, OCC3D_GRID, VALUES)
    still = msg.transforms(fx.START, [("base_link", "lidar", BASE_FROM_LIDAR)])
    for message in (fx.static_transforms(), still):
        out.calibration.add_transforms(received(TFMessage, message), static=True)
    for step in range(11 if odometry else 0):
        at_ns, place = fx.START + step * 50_000_000, pose((SPEED_M_S * 0.05 * step, 0, 0))
        out.calibration.add_transforms(
            received(TFMessage, msg.transforms(at_ns, [("odom", "base_link", place)])), static=False
        )
    for camera in fx.RIG if infos else ():
        info = msg.camera_info(fx.START, fx.camera_frame(camera.name), camera)
        out.calibration.add_info(camera.name, received(CameraInfo, info))
    return out


def sweep(stamp_ns: int, ahead_m: float):
    """Returns of a wall so far ahead of the base, at the LiDAR's height."""
    points = np.zeros(9, dtype=LIDAR_POINT)
    points["x"], points["y"] = ahead_m - 1.0, np.linspace(-1, 1, 9)
    return received(PointCloud2, msg.cloud(stamp_ns, "lidar", points))


def answer(ahead_m: float = WALL_M) -> np.ndarray:
    labels = empty()
    labels[int((ahead_m + 40) / 0.4), 90:110, 2:10] = WALL
    return voxel_points(Occupancy(OCC3D_GRID, OCC3D, labels, np.ones(labels.shape, bool)))


def scored(judged: LidarJudge) -> dict:
    judged.settle()
    judged.work_off(None)
    return judged.report()


def test_a_wall_is_met_where_the_laser_hits_it():
    judged = judge()
    judged.add_sweep(sweep(fx.START, WALL_M))
    judged.add_answer(fx.START, answer())
    report = scored(judged)
    assert report["above"]["10-20m"]["within_0.5m"] == 100 and report["above"]["10-20m"]["returns"] == 9
    assert (report["frames"], report["sweeps"], report["sweeps_unmoved"]) == (1, 1, 0)


def test_the_sweep_is_moved_to_the_time_of_the_answer():
    """80 ms after the answer the wall is 0.8 m nearer; of two sweeps the nearer in time is taken."""
    judged = judge()
    judged.add_answer(fx.START, answer())
    judged.add_sweep(sweep(fx.START + 80_000_000, WALL_M - 0.8))
    judged.add_sweep(sweep(fx.START + 400_000_000, 5.0))
    report = scored(judged)
    assert report["above"]["10-20m"]["within_0.5m"] == 100 and report["frames"] == 1
    still = judge(odometry=False)
    still.add_answer(fx.START, answer())
    still.add_sweep(sweep(fx.START + 80_000_000, WALL_M - 0.8))
    report = scored(still)
    assert report["above"]["10-20m"]["within_0.5m"] == 0 and report["sweeps_unmoved"] == 1


def test_what_cannot_be_used_is_counted_and_named():
    judged = judge()
    judged.add_answer(fx.START, answer())
    judged.add_sweep(sweep(0, WALL_M))
    hollow = sweep(fx.START, WALL_M)
    hollow.width, hollow.data = 0, b""
    judged.add_sweep(hollow)
    report = scored(judged)
    assert (report["frames"], report["answers_without_sweep"]) == (0, 1)
    assert ["stamp" in why or "empty" in why for why in report["sweeps_unusable"]] == [True, True]
    blind = judge(infos=False)
    blind.add_answer(fx.START, answer())
    blind.add_sweep(sweep(fx.START, WALL_M))
    assert any("no camera is known" in why for why in scored(blind)["sweeps_unusable"])
