"""One node, no CameraInfo and no TF: a rig from a file, topics of all kinds, a camera that fails, images lost."""

from __future__ import annotations

import os
import signal
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import rclpy
import ros_fixtures as fx
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from occ_core.clouds import VOXEL_POINT, occupancy_of
from occ_core.geometry import quaternion_from_rotation
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictor import Predictor
from occ_core.taxonomy import OCC3D
from occ_ros.messages import header_of, points_of, stamp_ns_of

pytestmark = pytest.mark.ros
DOMAIN = fx.own_domain()
# f is what its name says; r is compressed in PNG under a name that does not tell.
KINDS = {"f": Image, "l": CompressedImage, "b": Image, "r": CompressedImage}
TOPICS = {"f": "/f/image_raw", "l": "/l/compressed", "b": "/b/image", "r": "/r/image"}


def rig_yaml():
    cameras = {}
    for camera in fx.RIG:
        w, x, y, z = quaternion_from_rotation(camera.ego_from_cam[:3, :3])
        k = camera.intrinsics
        cameras[camera.name] = {
            "image_topic": TOPICS[camera.name],
            "size_px": list(camera.size),
            "focal_px": [float(k[0, 0]), float(k[1, 1])],
            "center_px": [float(k[0, 2]), float(k[1, 2])],
            "position_m": camera.ego_from_cam[:3, 3].tolist(),
            "quaternion_xyzw": [float(v) for v in (x, y, z, w)],
        }
    return yaml.safe_dump({"cameras": cameras})


def message_of(name, index, rgb):
    header = header_of(fx.stamps(index)[name], "")
    if name == "f":
        return Image(header=header, encoding="rgb8", width=160, height=90, step=480, data=rgb.tobytes())
    if name == "b":
        rows = np.zeros((90, 500), dtype=np.uint8)  # rows with padding
        rows[:, :480] = rgb[..., ::-1].reshape(90, 480)
        return Image(header=header, encoding="bgr8", width=160, height=90, step=500, data=rows.tobytes())
    return CompressedImage(header=header, format="png", data=cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())


class Robot:
    def __init__(self, context):
        self.node = rclpy.create_node("robot", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.images = {name: self.node.create_publisher(KINDS[name], TOPICS[name], 10) for name in KINDS}
        self.clouds, self.grids, self.status = [], [], {}
        self.node.create_subscription(PointCloud2, "/occupancy_node/occupancy", self.clouds.append, 10)
        self.node.create_subscription(OccupancyGrid, "/occupancy_node/grid", self.grids.append, 10)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_status, 10)
        self.parameters = self.node.create_client(SetParameters, "/occupancy_node/set_parameters")
        self.index = 0

    def _on_status(self, message):
        for status in message.status:
            name = status.name.rpartition(" ")[2]
            self.status[name] = (status.level[0], status.message, {v.key: v.value for v in status.values})

    def set(self, name, value):
        assert self.parameters.wait_for_service(timeout_sec=30.0)
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        future = self.parameters.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_sec=30.0)
        assert future.result().results[0].successful, future.result().results[0].reason

    def send_until(self, condition, skip=(), timeout_s=90.0):
        """Send set after set; `skip` names cameras, or tells for (index, camera) whether its image is lost."""
        lost = skip if callable(skip) else lambda index, name: name in skip
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s; last status: {self.status}"
            for name, rgb in fx.images(self.index).items():
                if not lost(self.index, name):
                    self.images[name].publish(message_of(name, self.index, rgb))
            self.index += 1
            until = time.monotonic() + 0.25
            while (left := until - time.monotonic()) > 0:
                self.executor.spin_once(timeout_sec=left)

    def says(self, camera, words):
        return lambda: words in self.status.get(camera, (0, ""))[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fx.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def robot(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("robot")
    (folder / "rig.yaml").write_text(rig_yaml())
    process = fx.start_node(
        "occupancy_node", DOMAIN, folder / "log", model=model, backend="torch", threads=1, rig_file=folder / "rig.yaml",
        deadline_s=1.0, budget_ms=60000.0,  # a starved machine is no fault
    )  # fmt: skip
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    made = Robot(context)
    try:
        yield made
        assert fx.stop(process, signal.SIGTERM) == 0
    finally:
        if process.poll() is None:
            process.kill()
        print((folder / "log").read_text())
        made.executor.shutdown()
        made.node.destroy_node()
        context.try_shutdown()
    assert "Traceback" not in (folder / "log").read_text()


def test_01_all_topics_are_taken_as_what_they_are(robot, model):
    """The steps build on each other."""
    names = (*KINDS, "model", "outputs")
    robot.send_until(lambda: robot.clouds and all(robot.status.get(name, (2, ""))[1] == "ok" for name in names))
    robot.clouds.clear()
    robot.send_until(lambda: robot.clouds)
    index = (stamp_ns_of(robot.clouds[0].header.stamp) - fx.START) // fx.PERIOD_NS
    said = occupancy_of(points_of(robot.clouds[0], VOXEL_POINT), OCC3D_GRID, OCC3D)
    expected = Predictor.load(model, "torch", 1).predict(fx.images(index), fx.rig_over_tf())
    np.testing.assert_array_equal(said.labels, expected.labels)
    assert robot.status["outputs"][2]["~/occupancy subscribers"] == "1"
    assert int(robot.status["outputs"][2]["~/occupancy published"]) > 0


def test_02_without_a_camera_answers_go_out_masked_or_marked(robot):
    robot.send_until(robot.says("model", "answers without camera l, which is masked"), skip="l")
    robot.grids.clear()
    robot.send_until(lambda: robot.grids, skip="l")
    robot.set("missing_camera", "not_current")
    robot.send_until(robot.says("model", "not current: answers without camera l are withheld from ~/grid"), skip="l")
    robot.grids.clear()
    robot.clouds.clear()
    robot.send_until(lambda: len(robot.clouds) >= 3, skip="l")
    assert not robot.grids
    assert robot.status["l"][:1] == (1,)
    robot.send_until(lambda: robot.grids and robot.says("model", "ok")())


def test_03_images_lost_on_their_way_name_the_profile(robot):
    robot.send_until(robot.says("b", "FASTDDS_DEFAULT_PROFILES_FILE"), skip=lambda i, name: name == "b" and i % 4 == 0)
    assert int(robot.status["b"][2]["lost_on_the_way"]) > 0
    assert robot.status["f"][1] == "ok"


def test_04_a_grid_band_without_a_cell_stops_only_the_grid(robot):
    robot.set("grid_max_z_m", 0.31)  # from 0.3: between two layers of cells
    robot.send_until(robot.says("outputs", "~/grid: grid band 0.30..0.31 m holds no voxel centre"))
    robot.clouds.clear()
    robot.send_until(lambda: robot.clouds)
    assert robot.status["outputs"][0] == 2
    robot.set("grid_max_z_m", 2.0)
    robot.grids.clear()
    robot.send_until(lambda: robot.grids)


def test_05_frames_are_accounted_for(robot):
    counts = {k: int(v) for k, v in robot.status["model"][2].items() if k.startswith("frames_")}
    assert counts["frames_in"] == counts["frames_answered"] + counts["frames_dropped"] + counts["frames_skipped"]
    assert counts["frames_answered"] > 0
