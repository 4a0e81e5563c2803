"""ROS 2 messages for bags, built with rosbags' own types: needs no ROS installation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from occ_core.camera import Camera
from occ_core.clouds import fields_of
from occ_core.geometry import quaternion_from_rotation
from occ_core.sources.nuscenes_tables import Annotation
from occ_core.taxonomy import OCC3D

# Colour of an annotated box by the first matching part of its nuScenes category.
BOX_CLASSES = (
    ("human", "pedestrian"), ("bicycle", "bicycle"), ("motorcycle", "motorcycle"), ("bus", "bus"),
    ("construction", "construction_vehicle"), ("trailer", "trailer"), ("truck", "truck"), ("car", "car"),
    ("barrier", "barrier"), ("cone", "traffic_cone"),
)  # fmt: skip
DISTORTION_NAMES = {"none": "plumb_bob"}  # a pinhole is plumb_bob with zero coefficients


@functools.cache
def store() -> Typestore:
    """Types of ROS 2 Jazzy. The messages used here are the same in Humble, Kilted and Lyrical."""
    return get_typestore(Stores.ROS2_JAZZY)


def serialize(message: Any) -> memoryview:
    """CDR bytes of a message."""
    return store().serialize_cdr(message, message.__msgtype__)


def new(kind: str, *values: Any, **fields: Any) -> Any:
    """Make a message, such as `new("std_msgs/msg/String", data="x")`."""
    return store().types[kind](*values, **fields)


def header(stamp_ns: int, frame: str) -> Any:
    """std_msgs/Header."""
    stamp = new("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return new("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def compressed_image(stamp_ns: int, frame: str, kind: str, data: bytes) -> Any:
    """sensor_msgs/CompressedImage of a whole JPEG or PNG file, bytes unchanged."""
    pixels = np.frombuffer(data, dtype=np.uint8)
    return new("sensor_msgs/msg/CompressedImage", header=header(stamp_ns, frame), format=kind, data=pixels)


def image(stamp_ns: int, frame: str, rgb: np.ndarray) -> Any:
    """sensor_msgs/Image, rgb8, of uint8 (height, width, 3)."""
    height, width, _ = rgb.shape
    return new(
        "sensor_msgs/msg/Image",
        header=header(stamp_ns, frame),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=rgb.reshape(-1),
    )


def camera_info(stamp_ns: int, frame: str, camera: Camera) -> Any:
    """sensor_msgs/CameraInfo: K and D of the image as it is, R identity, P without rectification."""
    k = camera.intrinsics
    projection = np.hstack([k, np.zeros((3, 1))])
    return new(
        "sensor_msgs/msg/CameraInfo",
        header=header(stamp_ns, frame),
        height=camera.size[1],
        width=camera.size[0],
        distortion_model=DISTORTION_NAMES.get(camera.distortion_model, camera.distortion_model),
        d=np.array(camera.distortion or [0.0] * 5),
        k=k.reshape(9),
        r=np.eye(3).reshape(9),
        p=projection.reshape(12),
        binning_x=0,
        binning_y=0,
        roi=new("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )


def cloud(stamp_ns: int, frame: str, points: np.ndarray) -> Any:
    """sensor_msgs/PointCloud2 of a structured array (N,), memory layout unchanged."""
    fields = [
        new("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=kind, count=1)
        for name, offset, kind in fields_of(points.dtype)
    ]
    return new(
        "sensor_msgs/msg/PointCloud2",
        header=header(stamp_ns, frame),
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=points.dtype.itemsize,
        row_step=points.dtype.itemsize * len(points),
        data=np.ascontiguousarray(points).view(np.uint8).reshape(-1),
        is_dense=True,
    )


def transforms(stamp_ns: int, links: list[tuple[str, str, np.ndarray]]) -> Any:
    """tf2_msgs/TFMessage of links (parent, child, parent_from_child)."""
    return new(
        "tf2_msgs/msg/TFMessage",
        transforms=[
            new(
                "geometry_msgs/msg/TransformStamped",
                header=header(stamp_ns, parent),
                child_frame_id=child,
                transform=new(
                    "geometry_msgs/msg/Transform",
                    translation=_vector(matrix[:3, 3]),
                    rotation=_quaternion(matrix[:3, :3]),
                ),
            )
            for parent, child, matrix in links
        ],
    )


def odometry(stamp_ns: int, odom_from_base: np.ndarray, linear: np.ndarray, angular: np.ndarray) -> Any:
    """nav_msgs/Odometry odom -> base_link; linear m/s and angular rad/s in base_link."""
    twist = new("geometry_msgs/msg/Twist", linear=_vector(linear), angular=_vector(angular))
    return new(
        "nav_msgs/msg/Odometry",
        header=header(stamp_ns, "odom"),
        child_frame_id="base_link",
        pose=new("geometry_msgs/msg/PoseWithCovariance", pose=_pose(odom_from_base), covariance=np.zeros(36)),
        twist=new("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)),
    )


def box_markers(stamp_ns: int, boxes: list[Annotation]) -> Any:
    """visualization_msgs/MarkerArray of annotated boxes in `map`; its first marker deletes those before.

    Marker text is `<category> <annotation token>`; ids count from 0 within a message.
    """
    markers = [_marker(stamp_ns, 0, "", np.eye(4), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), delete_all=True)]
    for number, box in enumerate(boxes):
        width, length, height = box.size_wlh_m  # nuScenes: length along the box's x
        name = next((known for part, known in BOX_CLASSES if part in box.category), "others")
        red, green, blue = OCC3D.colors[OCC3D.id_of(name)]
        color = (red / 255, green / 255, blue / 255, 0.4)
        text = f"{box.category} {box.token}"
        markers.append(_marker(stamp_ns, number, text, box.world_from_box, (length, width, height), color))
    return new("visualization_msgs/msg/MarkerArray", markers=markers)


def _marker(
    stamp_ns: int,
    number: int,
    text: str,
    map_from_box: np.ndarray,
    scale_m: tuple[float, float, float],
    rgba: tuple[float, float, float, float],
    delete_all: bool = False,
) -> Any:
    kind: Any = store().types["visualization_msgs/msg/Marker"]
    nothing = new("sensor_msgs/msg/CompressedImage", header=header(0, ""), format="", data=np.zeros(0, dtype=np.uint8))
    return kind(
        header=header(stamp_ns, "map"),
        ns="annotations",
        id=number,
        type=kind.CUBE,
        action=kind.DELETEALL if delete_all else kind.ADD,
        pose=_pose(map_from_box),
        scale=_vector(np.array(scale_m)),
        color=new("std_msgs/msg/ColorRGBA", r=rgba[0], g=rgba[1], b=rgba[2], a=rgba[3]),
        lifetime=new("builtin_interfaces/msg/Duration", sec=0, nanosec=0),
        frame_locked=False,
        points=[],
        colors=[],
        texture_resource="",
        texture=nothing,
        uv_coordinates=[],
        text=text,
        mesh_resource="",
        mesh_file=new("visualization_msgs/msg/MeshFile", filename="", data=np.zeros(0, dtype=np.uint8)),
        mesh_use_embedded_materials=False,
    )


def _vector(xyz: np.ndarray) -> Any:
    return new("geometry_msgs/msg/Vector3", x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def _quaternion(rotation: np.ndarray) -> Any:
    w, x, y, z = (float(v) for v in quaternion_from_rotation(rotation))
    return new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def _pose(a_from_b: np.ndarray) -> Any:
    x, y, z = (float(v) for v in a_from_b[:3, 3])
    position = new("geometry_msgs/msg/Point", x=x, y=y, z=z)
    return new("geometry_msgs/msg/Pose", position=position, orientation=_quaternion(a_from_b[:3, :3]))
