"""numpy <-> messages: against rclpy's own serialisation and plain element-by-element construction."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")

from geometry_msgs.msg import Point, TransformStamped
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from occ_core.clouds import TRUTH_POINT, VOXEL_POINT, occupancy_of, truth_points, voxel_points
from occ_core.errors import InvalidInput
from occ_core.grid import VoxelGrid
from occ_core.occupancy import Occupancy
from occ_core.sensor_messages import add_transforms, camera_from_info
from occ_core.taxonomy import OCC3D
from occ_core.transforms import TransformTree
from occ_ros import messages
from occ_ros.markers import cubes_cdr, occupancy_cdr

STAMP = 1_700_000_000_123_456_789
SMALL = VoxelGrid((-2.0, -1.0, -1.0), 0.5, (8, 6, 4))


def random_occupancy(grid=SMALL, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    observed = rng.random(grid.shape) < 0.8
    labels = np.where((rng.random(grid.shape) < share) & observed, rng.integers(0, 17, grid.shape), 17)
    return Occupancy(grid, OCC3D, labels.astype(np.uint8), observed, rng.random(grid.shape).astype(np.float32))


def through_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def test_stamp_round_trip():
    header = messages.header_of(STAMP, "base_link")
    assert (header.stamp.sec, header.stamp.nanosec) == (1_700_000_000, 123_456_789)
    assert messages.stamp_ns_of(header.stamp) == STAMP


@pytest.mark.parametrize("layout, make", [(VOXEL_POINT, voxel_points), (TRUTH_POINT, truth_points)])
def test_cloud_round_trip(layout, make):
    occupancy = random_occupancy()
    points = make(occupancy)
    cloud = through_the_wire(messages.cloud_of(points, STAMP, "base_link"))
    assert cloud.width == len(points) > 0
    np.testing.assert_array_equal(messages.points_of(cloud, layout), points)
    back = occupancy_of(messages.points_of(cloud, layout), SMALL, OCC3D)
    np.testing.assert_array_equal(back.labels, occupancy.labels)


def test_cloud_with_more_fields_in_another_order_is_read_by_name():
    other = np.dtype([("label", "u1"), ("_", "u1", 3), ("mask", "u1"), ("z", "<f4"), ("y", "<f4"), ("x", "<f4")])
    other = np.dtype({"names": ["label", "mask", "z", "y", "x"], "formats": ["u1", "u1", "<f4", "<f4", "<f4"]})
    points = np.zeros(5, dtype=other)
    points["x"], points["label"] = np.arange(5), 3
    read = messages.points_of(messages.cloud_of(points, STAMP, "a"), TRUTH_POINT)
    assert read["x"].tolist() == [0, 1, 2, 3, 4]
    assert read["label"].tolist() == [3] * 5


def broken_clouds():
    good = messages.cloud_of(truth_points(random_occupancy()), STAMP, "a")
    for change in ({"fields": good.fields[:-1]}, {"data": good.data[:-1]}, {"point_step": 3}):
        cloud = messages.cloud_of(truth_points(random_occupancy()), STAMP, "a")
        for key, value in change.items():
            setattr(cloud, key, value)
        yield pytest.param(cloud, id=next(iter(change)))


@pytest.mark.parametrize("cloud", list(broken_clouds()))
def test_broken_cloud_is_refused(cloud):
    with pytest.raises(InvalidInput, match="point (cloud|field)"):
        messages.points_of(cloud, TRUTH_POINT)


def test_markers_equal_those_of_rclpy():
    """The packed bytes deserialise to the message that plain objects give."""
    occupancy = random_occupancy()
    expected = MarkerArray()
    clear, cubes = Marker(action=Marker.DELETEALL, type=Marker.CUBE_LIST), Marker(type=Marker.CUBE_LIST)
    occupied = occupancy.occupied
    for x, y, z in np.argwhere(occupied):
        around = [(x + 1, y, z), (x - 1, y, z), (x, y + 1, z), (x, y - 1, z), (x, y, z + 1), (x, y, z - 1)]
        inside = [min(i) >= 0 and all(i[k] < SMALL.shape[k] for k in range(3)) and occupied[i] for i in around]
        if not all(inside):
            center = [o + (i + 0.5) * 0.5 for o, i in zip(SMALL.origin_m, (x, y, z), strict=True)]
            r, g, b = (float(np.float32(c) / np.float32(255)) for c in OCC3D.colors[occupancy.labels[x, y, z]])
            cubes.points.append(Point(x=center[0], y=center[1], z=center[2]))
            cubes.colors.append(ColorRGBA(r=r, g=g, b=b, a=1.0))
    for marker in (clear, cubes):
        marker.header = messages.header_of(STAMP, "base_link")
        marker.ns = "occupancy"
        marker.scale.x = marker.scale.y = marker.scale.z = 0.5
        expected.markers.append(marker)
    packed = deserialize_message(occupancy_cdr(occupancy, STAMP, "base_link"), MarkerArray)
    assert packed == through_the_wire(expected)
    assert len(packed.markers[1].points) > 10


@pytest.mark.parametrize("frame", ["", "a", "ab", "abc", "base_link"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_markers_at_every_alignment(frame, count):
    rng = np.random.default_rng(count)
    centers, rgba = rng.random((count, 3)), rng.random((count, 4)).astype(np.float32)
    cubes = deserialize_message(cubes_cdr(centers, rgba, 0.4, STAMP, frame, "n" + frame), MarkerArray).markers[1]
    assert cubes.header.frame_id == frame
    assert cubes.scale.z == 0.4
    assert [[p.x, p.y, p.z] for p in cubes.points] == centers.tolist()
    assert [[c.r, c.g, c.b, c.a] for c in cubes.colors] == rgba.tolist()


def info(**changes):
    message = CameraInfo(width=64, height=48, distortion_model="plumb_bob")
    message.k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    message.d = [0.1, -0.05, 0.001, 0.002, 0.0]
    for key, value in changes.items():
        setattr(message, key, value)
    return message


def test_camera_info():
    camera = camera_from_info("front", info(), np.eye(4), where="/front/camera_info")
    assert (camera.name, camera.size, camera.distortion_model) == ("front", (64, 48), "plumb_bob")
    assert camera.distortion == (0.1, -0.05, 0.001, 0.002, 0.0)
    expected, _ = cv2.projectPoints(
        np.array([[0.1, 0.2, 1.0]]), np.zeros(3), np.zeros(3), camera.intrinsics, np.array(info().d)
    )
    np.testing.assert_allclose(camera.project(np.array([[0.1, 0.2, 1.0]]))[0][0], expected[0, 0], atol=1e-9)
    for undistorted in (info(d=[]), info(d=[0.0] * 5), info(d=[], distortion_model="")):
        assert camera_from_info("front", undistorted, np.eye(4)).distortion_model == "none"


def test_camera_info_of_a_rectified_image():
    p = [40.0, 0.0, 30.0, 0.0, 0.0, 41.0, 20.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    camera = camera_from_info("front", info(p=p), np.eye(4), rectified=True)
    assert camera.distortion_model == "none"
    assert camera.intrinsics.tolist() == [[40.0, 0.0, 30.0], [0.0, 41.0, 20.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"k": [0.0] * 9},
        {"k": [float("nan"), *info().k[1:]]},
        {"width": 0},
        {"d": [0.1, 0.2]},
        {"d": [float("nan")] * 5},
        {"distortion_model": "magic"},
    ],
)
def test_bad_camera_info_is_refused(changes):
    with pytest.raises(InvalidInput, match="'/front/camera_info'"):
        camera_from_info("front", info(**changes), np.eye(4), where="/front/camera_info")


def test_images():
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    raw = Image(width=16, height=12, encoding="bgr8", step=48, data=rgb[..., ::-1].tobytes())
    np.testing.assert_array_equal(messages.image_of(through_the_wire(raw)), rgb)
    png = CompressedImage(format="png", data=cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(messages.image_of(through_the_wire(png)), rgb)
    with pytest.raises(InvalidInput, match="step"):
        messages.image_of(Image(width=16, height=12, encoding="rgb8", step=10, data=bytes(576)))
    with pytest.raises(InvalidInput, match="cut short"):
        messages.image_of(CompressedImage(format="jpeg", data=b"\xff\xd8\xff nothing"))


def test_transforms():
    TFMessage = pytest.importorskip("tf2_msgs.msg", reason="run tools/build_messages.py").TFMessage
    tree = TransformTree()
    good, bad = TransformStamped(child_frame_id="cam"), TransformStamped(child_frame_id="odd")
    for transform in (good, bad):
        transform.header.frame_id = "base_link"
    good.transform.translation.x = 1.5
    bad.transform.rotation.w = 0.0  # a quaternion of norm zero
    refused = add_transforms(tree, through_the_wire(TFMessage(transforms=[good, bad])), True, "/tf_static")
    assert tree.lookup("base_link", "cam", STAMP)[:3, 3].tolist() == [1.5, 0, 0]
    ((child, why),) = refused
    assert child == "odd"
    assert "'base_link' -> 'odd'" in why.found


def test_status():
    status = through_the_wire(messages.status_of(2, "n", "hw", "text", {"a": 1}))
    assert status.level == b"\x02"
    assert [(v.key, v.value) for v in status.values] == [("a", "1")]


def test_empty_cloud():
    cloud = through_the_wire(messages.cloud_of(np.zeros(0, dtype=VOXEL_POINT), STAMP, "a"))
    assert isinstance(cloud, PointCloud2)
    assert len(messages.points_of(cloud, VOXEL_POINT)) == 0
