"""What layers of Nav2's costmaps take: obstacles and free space, or classes as images with a place for each pixel."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from occ_core.mapping.columns import (
    FINEST_M,
    Columns,
    column_image,
    columns_of,
    free_ends,
    obstacle_points,
    points_a_side,
)
from occ_core.mapping.costs import class_costs
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import Taxonomy
from occ_ros.messages import cloud_of, mono8_of
from occ_ros.output import Output
from occ_ros.runtime import Parameter

LAYER_PARAMETERS = (
    Parameter(
        "costmap_resolution_m", 0.0, "Resolution of the costmap that ~/nav/... and ~/segmentation/... go into, so that "
        f"each of its cells gets a point; at least {FINEST_M}, or 0: the voxels'.", 0.0, 100.0, dynamic=True,
    ),
    Parameter(
        "free_from_m", 3.0, "From here on ~/nav/free_space is judged; nearer the cameras see nothing. As Nav2's "
        "raytrace_min_range.", 0.0, 1000.0, dynamic=True,
    ),
)  # fmt: skip


class NavLayers:
    """The outputs `~/nav/...` and `~/segmentation/...`.

    Args:
        values: the node's parameters, those of `LAYER_PARAMETERS` and of ~/grid; they may change at any time.
        taxonomy: of the answers; sent once and latched on ~/segmentation/label_info, where vision_msgs is installed.
    """

    def __init__(self, node: Node, values: Mapping[str, Any], taxonomy: Taxonomy) -> None:
        self._node, self._values = node, values
        self._obstacles = Output(node, PointCloud2, "~/nav/obstacle_points", 5)
        self._free_space = Output(node, PointCloud2, "~/nav/free_space", 5)
        self._mask = Output(node, Image, "~/segmentation/mask", 5)
        self._confidence = Output(node, Image, "~/segmentation/confidence", 5)
        self._points = Output(node, PointCloud2, "~/segmentation/aligned_points", 5)
        self._label_info = _latched_labels(node, taxonomy)

    @property
    def all(self) -> tuple[Output, ...]:
        return self._obstacles, self._free_space, self._mask, self._confidence, self._points

    def publish(self, occupancy: Occupancy, stamp_ns: int) -> None:
        """One answer, to who listens; what is wrong with one output does not stop the others."""
        p, frame_id = self._values, self._values["base_frame"]
        band_m = p["grid_min_z_m"], p["grid_max_z_m"]

        @functools.cache  # made once, and only if somebody listens
        def columns() -> Columns:
            return columns_of(occupancy, band_m, class_costs(occupancy.taxonomy, p["grid_class_costs"]))

        @functools.cache
        def image() -> np.ndarray:
            return column_image(columns(), a_side())

        def a_side() -> int:
            return points_a_side(occupancy.grid.voxel_size_m, p["costmap_resolution_m"])

        def sure() -> np.ndarray:
            return np.round(255 * np.clip(image()["confidence"], 0, 1)).astype(np.uint8)

        def free_space() -> np.ndarray:
            return free_ends(columns(), a_side(), p["free_from_m"], sum(band_m) / 2)

        for output, make in (
            (self._obstacles, lambda: cloud_of(obstacle_points(columns(), a_side()), stamp_ns, frame_id)),
            (self._free_space, lambda: cloud_of(free_space(), stamp_ns, frame_id)),
            (self._mask, lambda: mono8_of(image()["label"], stamp_ns, frame_id)),
            (self._confidence, lambda: mono8_of(sure(), stamp_ns, frame_id)),
            (self._points, lambda: cloud_of(image(), stamp_ns, frame_id)),
        ):
            if output.subscribers:
                output.send(make)

    def destroy(self) -> None:
        if self._label_info is not None:
            self._node.destroy_publisher(self._label_info)


def _latched_labels(node: Node, taxonomy: Taxonomy) -> Any:
    """Publisher of the names of all class ids, latched; None without vision_msgs."""
    try:
        from vision_msgs.msg import LabelInfo, VisionClass
    except ImportError:
        node.get_logger().info("no ~/segmentation/label_info: vision_msgs is not installed")
        return None
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = node.create_publisher(LabelInfo, "~/segmentation/label_info", latched)
    names = [VisionClass(class_id=index, class_name=name) for index, name in enumerate(taxonomy.names)]
    publisher.publish(LabelInfo(header=Header(stamp=node.get_clock().now().to_msg()), class_map=names))
    return publisher
