"""The topics that the node publishes, and how many listen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from occ_core.clouds import voxel_points
from occ_core.mapping.costs import class_costs
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import Taxonomy
from occ_core.transforms import TransformTree
from occ_ros.map_server import MapServer
from occ_ros.markers import occupancy_cdr
from occ_ros.messages import cloud_of
from occ_ros.nav_grid import answer_grid
from occ_ros.nav_layers import NavLayers
from occ_ros.output import Output


class Outputs:
    """Publishes the answers. Only what somebody listens to is computed.

    Args:
        values: the node's parameters; those of outputs may change at any time.
        tree: with `grid_frame` above `base_frame`.
        taxonomy: of the answers.
        fused: the map that answers go into; None: there is none.
    """

    def __init__(
        self, node: Node, values: Mapping[str, Any], tree: TransformTree, taxonomy: Taxonomy, fused: MapServer | None
    ) -> None:
        self._values, self._tree, self.fused = values, tree, fused
        self._cloud = Output(node, PointCloud2, "~/occupancy", 5)
        self._markers = Output(node, MarkerArray, "~/markers", 1)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # as Nav2's static layer asks for
        self._grid = Output(node, OccupancyGrid, "~/grid", latched)
        self._layers = NavLayers(node, values, taxonomy)
        self.withheld = 0  # answers that were not current

    @property
    def all(self) -> tuple[Output, ...]:
        return self._cloud, self._markers, self._grid, *self._layers.all

    def wanted(self) -> bool:
        """Whether somebody listens, or a map is to be kept."""
        return self.fused is not None or any(output.subscribers for output in self.all)

    def publish(self, occupancy: Occupancy, stamp_ns: int, current: bool = True) -> None:
        """Publish one answer. An answer that is not current goes neither to ~/grid and the other topics that robots
        drive by, nor into the map."""
        frame_id = self._values["base_frame"]
        self.withheld += not current
        if self._cloud.subscribers:
            self._cloud.send(lambda: cloud_of(voxel_points(occupancy), stamp_ns, frame_id))
        if self._grid.subscribers and current:
            self._grid.send(lambda: self._seen_from_above(occupancy, stamp_ns))
        due_s = self._markers.last_s + 1 / self._values["marker_rate_hz"]
        if self._markers.subscribers and time.monotonic() >= due_s:
            self._markers.send(lambda: occupancy_cdr(occupancy, stamp_ns, frame_id))
        if current:
            self._layers.publish(occupancy, stamp_ns)
        if self.fused is not None and current:
            self.fused.add(occupancy, stamp_ns)

    def _seen_from_above(self, occupancy: Occupancy, stamp_ns: int) -> OccupancyGrid:
        p = self._values
        band_m, costs = (p["grid_min_z_m"], p["grid_max_z_m"]), class_costs(occupancy.taxonomy, p["grid_class_costs"])
        return answer_grid(occupancy, stamp_ns, p["base_frame"], p["grid_frame"], self._tree, band_m, costs)

    def table(self, now_s: float) -> dict[str, Any]:
        """Subscribers, rate and number of messages of each output."""
        values: dict[str, Any] = {}
        for output in self.all:
            values[f"{output.topic} subscribers"] = output.subscribers
            values[f"{output.topic} hz"] = round(output.rate_hz(now_s), 2)
            values[f"{output.topic} published"] = output.published
        return {**values, "not_current": self.withheld}

    def destroy(self) -> None:
        for output in self.all:
            output.destroy()
        self._layers.destroy()
        if self.fused is not None:
            self.fused.close()
