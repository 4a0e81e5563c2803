"""What a node gives Nav2: messages against another reader's CDR, config/nav2_costmap.yaml against a running node."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")
pytest.importorskip("tf2_msgs.msg", reason="needs tf2_msgs (python tools/build_messages.py)")
pytest.importorskip("vision_msgs.msg", reason="needs vision_msgs (python tools/build_messages.py)")
pytest.importorskip("torch")
pytest.importorskip("rosbags")

import rclpy
import ros_fixtures as fx
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import LabelInfo, VisionClass

from occ_core.bags import messages as msg
from occ_core.clouds import COLUMN_POINT
from occ_core.grid import OCC3D_GRID
from occ_core.taxonomy import OCC3D, UNLABELED
from occ_ros.messages import cloud_of, mono8_of, points_of, stamp_ns_of
from occ_ros.parameters import OCCUPANCY_PARAMETERS

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "config/nav2_costmap.yaml").read_text())
LOCAL, GLOBAL = (CONFIG[name][name]["ros__parameters"] for name in ("local_costmap", "global_costmap"))
STAMP = 1_700_000_000_123_456_789
DEFAULTS = {parameter.name: parameter.default for parameter in OCCUPANCY_PARAMETERS}


# --- messages, as another implementation of ROS reads them -------------------------------------------------------


@pytest.fixture(scope="module")
def other():
    """rosbags' types, and vision_msgs as its authors define it (comments left out)."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("uint16 class_id\nstring class_name\n", "vision_msgs/msg/VisionClass"))
    label_info = "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n"
    store.register(get_types_from_msg(label_info, "vision_msgs/msg/LabelInfo"))
    return store


def test_label_info_is_that_of_vision_msgs(other):
    names = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(OCC3D.names)]
    ours = LabelInfo(header=Header(frame_id="x"), class_map=names, threshold=0.25)
    read = other.deserialize_cdr(serialize_message(ours), "vision_msgs/msg/LabelInfo")
    assert [(each.class_id, each.class_name) for each in read.class_map] == list(enumerate(OCC3D.names))
    assert (read.header.frame_id, read.threshold) == ("x", 0.25)
    back = deserialize_message(bytes(other.serialize_cdr(read, "vision_msgs/msg/LabelInfo")), LabelInfo)
    assert back == ours


def test_images_and_organised_clouds_are_read_by_another_reader(other):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 4), dtype=np.uint8)
    read = other.deserialize_cdr(serialize_message(mono8_of(pixels, STAMP, "base_link")), "sensor_msgs/msg/Image")
    assert (read.height, read.width, read.step, read.encoding, read.header.frame_id) == (6, 4, 4, "mono8", "base_link")
    np.testing.assert_array_equal(read.data.reshape(6, 4), pixels)
    points = np.zeros((6, 4), dtype=COLUMN_POINT)
    points["x"], points["label"], points["confidence"] = rng.random((6, 4)), pixels, rng.random((6, 4))
    points["z"][2, 3] = np.nan
    cloud = other.deserialize_cdr(serialize_message(cloud_of(points, STAMP, "b")), "sensor_msgs/msg/PointCloud2")
    assert (cloud.height, cloud.width, cloud.is_dense, cloud.row_step) == (6, 4, False, 4 * cloud.point_step)
    fields = {field.name: (field.offset, field.datatype, field.count) for field in cloud.fields}
    float32, uint8 = 7, 2
    assert fields == {
        "x": (0, float32, 1), "y": (4, float32, 1), "z": (8, float32, 1), "confidence": (12, float32, 1),
        "label": (16, uint8, 1),
    }  # fmt: skip
    rows = cloud.data.reshape(6, 4, cloud.point_step)
    np.testing.assert_array_equal(rows[..., 0:4].copy().view("<f4")[..., 0], points["x"])
    np.testing.assert_array_equal(rows[..., 16], pixels)


# --- config/nav2_costmap.yaml ---------------------------------------------------------------------------------------


def test_the_file_and_the_node_agree_on_numbers():
    occupancy = LOCAL["occupancy"]
    assert occupancy["free_space"]["raytrace_min_range"] == DEFAULTS["free_from_m"]
    assert GLOBAL["global_frame"] == DEFAULTS["map_frame"]
    assert LOCAL["robot_base_frame"] == GLOBAL["robot_base_frame"] == DEFAULTS["base_frame"]
    assert GLOBAL["resolution"] == OCC3D_GRID.voxel_size_m
    node = yaml.safe_load((ROOT / "config/occupancy_node.yaml").read_text())["/**"]["ros__parameters"]
    assert (node["free_from_m"], node["costmap_resolution_m"]) == (DEFAULTS["free_from_m"], 0.0)


def test_each_plugin_is_described_and_sources_are_named():
    for costmap in (LOCAL, GLOBAL):
        assert all("plugin" in costmap[name] for name in costmap["plugins"])
    for name in ("occupancy", "segmentation"):
        layer = LOCAL[name]
        described = {key for key, value in layer.items() if isinstance(value, dict)}
        assert set(layer["observation_sources"].split()) == described
    sources = [LOCAL["occupancy"][name] for name in LOCAL["occupancy"]["observation_sources"].split()]
    assert [source["data_type"] for source in sources] == ["PointCloud2"] * 2
    assert [(source["marking"], source["clearing"]) for source in sources] == [(True, False), (False, True)]


def test_every_class_is_in_one_group_of_the_segmentation_layer():
    source = LOCAL["segmentation"]["occupancy_node"]
    named = [name for group in source["class_types"] for name in source[group]["classes"]]
    assert sorted(named) == sorted(OCC3D.names)
    for group in source["class_types"]:
        costs = {(source[group]["base_cost"], source[group]["max_cost"])}
        assert all(0 <= low <= high <= 254 for low, high in costs)


def asked_of_the_node() -> dict[str, type]:
    """Topic -> type of each topic that the file names, as the layers subscribe."""
    from nav_msgs.msg import OccupancyGrid

    source = LOCAL["segmentation"]["occupancy_node"]
    return {
        **{LOCAL["occupancy"][name]["topic"]: PointCloud2 for name in ("obstacle_points", "free_space")},
        source["segmentation_topic"]: Image,
        source["confidence_topic"]: Image,
        source["pointcloud_topic"]: PointCloud2,
        source["labels_topic"]: LabelInfo,
        GLOBAL["occupancy"]["map_topic"]: OccupancyGrid,
    }


# --- a node, and a costmap's subscriptions over DDS -----------------------------------------------------------------

SENSOR_DATA = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)  # as the layers subscribe
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Costmap:
    """A robot's cameras and odometry, and a subscription for each topic that config/nav2_costmap.yaml names."""

    def __init__(self, context):
        self.node = rclpy.create_node("local_costmap", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.static = self.node.create_publisher(TFMessage, "/tf_static", LATCHED)
        names = fx.RIG.names
        self.images = {n: self.node.create_publisher(CompressedImage, f"/{n}/image_raw/compressed", 10) for n in names}
        self.infos = {n: self.node.create_publisher(CameraInfo, f"/{n}/camera_info", 10) for n in names}
        self.got = {topic: {} for topic in asked_of_the_node()}  # topic -> stamp -> message
        self.index = 0

    def subscribe(self):
        """As a costmap that is started after the node: what is latched has to come, too."""
        latched = (LOCAL["segmentation"]["occupancy_node"]["labels_topic"], GLOBAL["occupancy"]["map_topic"])
        for topic, kind in asked_of_the_node().items():

            def keep(message, topic=topic):
                self.got[topic][stamp_ns_of(message.header.stamp)] = message

            self.node.create_subscription(kind, topic, keep, LATCHED if topic in latched else SENSOR_DATA)

    def send(self):
        transforms = fx.static_transforms()
        self.static.publish(bytes(msg.serialize(transforms)))
        pixels = fx.images(self.index)
        for name, camera in zip(fx.RIG.names, fx.RIG, strict=True):
            stamp_ns, frame = fx.stamps(self.index)[name], fx.camera_frame(name)
            self.infos[name].publish(bytes(msg.serialize(msg.camera_info(stamp_ns, frame, camera))))
            image = msg.compressed_image(stamp_ns, frame, "jpeg", fx.jpeg(pixels[name]))
            self.images[name].publish(bytes(msg.serialize(image)))
        self.index += 1

    def spin(self, seconds):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder, domain = tmp_path_factory.mktemp("nav"), fx.own_domain()
    process = fx.start_node(
        "occupancy_node", domain, folder / "node.log", model=fx.tiny_model(folder), cameras=list(fx.RIG.names),
        backend="torch", threads=1, costmap_resolution_m=LOCAL["resolution"], deadline_s=5.0, fusion=True,
        map_frame="base_link",
    )  # fmt: skip
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    costmap = Costmap(context)
    try:
        while costmap.node.count_publishers("/occupancy_node/occupancy") == 0:
            assert process.poll() is None, (folder / "node.log").read_text()
            costmap.spin(0.2)
        costmap.subscribe()
        for _ in range(400):
            costmap.send()
            costmap.spin(0.3)
            if all(costmap.got.values()) and complete(costmap.got):
                break
        yield costmap
        assert fx.stop(process, signal.SIGINT) == 0
    finally:
        if process.poll() is None:
            process.kill()
        print((folder / "node.log").read_text())
        costmap.executor.shutdown()
        costmap.node.destroy_node()
        context.try_shutdown()
    assert "Traceback" not in (folder / "node.log").read_text()


SOURCE = LOCAL["segmentation"]["occupancy_node"]
TRIPLE = [SOURCE[f"{name}_topic"] for name in ("segmentation", "confidence", "pointcloud")]
PAIR = [LOCAL["occupancy"][name]["topic"] for name in ("obstacle_points", "free_space")]


def complete(got) -> list[int]:
    """Stamps of answers of which all that is not latched has come."""
    return sorted(set.intersection(*(set(got[topic]) for topic in [*TRIPLE, *PAIR])))


def test_every_topic_of_the_file_is_published_with_its_type(running):
    there = dict(running.node.get_topic_names_and_types())
    for topic, kind in asked_of_the_node().items():
        name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        assert there[topic] == [name]
        assert running.node.count_publishers(topic) == 1, topic
        assert running.got[topic], f"nothing came on {topic}"


def test_names_of_classes_come_to_who_starts_later(running):
    (label_info,) = running.got[SOURCE["labels_topic"]].values()
    assert {each.class_id: each.class_name for each in label_info.class_map} == dict(enumerate(OCC3D.names))


def test_mask_confidence_and_places_are_of_one_stamp_and_belong_together(running):
    stamp = complete(running.got)[-1]
    mask, confidence, cloud = (running.got[topic][stamp] for topic in TRIPLE)
    a_side = round(OCC3D_GRID.voxel_size_m / LOCAL["resolution"])
    assert (mask.height, mask.width) == (200 * a_side, 200 * a_side) == (cloud.height, cloud.width)
    assert (mask.encoding, confidence.encoding, cloud.header.frame_id) == ("mono8", "mono8", "base_link")
    classes = np.frombuffer(mask.data, np.uint8)
    sure = np.frombuffer(confidence.data, np.uint8)
    points = points_of(cloud, COLUMN_POINT)
    np.testing.assert_array_equal(points["label"], classes)
    np.testing.assert_array_equal(np.round(255 * points["confidence"]).astype(np.uint8), sure)
    seen = classes != UNLABELED
    assert 0 < seen.sum() < seen.size and (np.isfinite(points["z"]) == seen).all()
    assert set(classes[seen].tolist()) <= set(range(len(OCC3D.names))) and not sure[~seen].any()


def test_obstacles_are_those_of_the_mask_and_lines_lead_through_none_of_them(running):
    stamp = complete(running.got)[-1]
    mask, cloud = running.got[TRIPLE[0]][stamp], running.got[PAIR[0]][stamp]
    points, image = points_of(cloud, COLUMN_POINT), points_of(running.got[TRIPLE[2]][stamp], COLUMN_POINT)
    ground = [OCC3D.id_of(name) for name in ("driveable_surface", "other_flat", "sidewalk", "terrain", "free")]
    low = DEFAULTS["grid_min_z_m"]
    stands = ~np.isin(np.frombuffer(mask.data, np.uint8), [*ground, UNLABELED]) & (image["z"] >= low)
    assert len(points) == stands.sum() > 0
    places = [set(map(tuple, each[["x", "y", "z"]].tolist())) for each in (points, image[stands])]
    assert places[0] == places[1]
    ends = running.got[PAIR[1]][stamp]
    assert [field.name for field in ends.fields] == ["x", "y", "z"]
    blocked = {(round(float(x), 2), round(float(y), 2)) for x, y in zip(points["x"], points["y"], strict=True)}
    half = LOCAL["resolution"] / 2
    for x, y, z in np.frombuffer(ends.data, "<f4").reshape(-1, 3):
        cell = tuple(round(float((v // (2 * half)) * 2 * half + half), 2) for v in (x, y))
        assert cell not in blocked and low <= z <= DEFAULTS["grid_max_z_m"]
