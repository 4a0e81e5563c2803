"""The fused map of a node: takes answers, publishes the map, and saves, loads or resets it on request.

All work is done by one thread of its own, so that neither callbacks nor answers wait for the map. Answers that come
faster than they can be fused are dropped and counted.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from occ_core.clouds import voxel_points
from occ_core.errors import InvalidInput, MissingTransform, OccError
from occ_core.grid import VoxelGrid
from occ_core.mapping.costs import class_costs, column_costs
from occ_core.mapping.map_file import load_map, save_map
from occ_core.mapping.rolling_map import RollingMap
from occ_core.mapping.settings import MapSettings, settings_of
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import Taxonomy
from occ_core.transforms import TransformTree
from occ_ros.markers import occupancy_cdr
from occ_ros.messages import cloud_of
from occ_ros.nav_grid import grid_message
from occ_ros.runtime import Parameter

MAP_PARAMETERS = (
    Parameter("fusion", False, "Fuse the answers over time into a map: ~/map/occupancy, ~/map/markers, ~/map/grid."),
    Parameter("map_frame", "odom", "Frame in which the map stands still: odom, or map where there is localisation."),
    Parameter("map_size_m", [0.0, 0.0, 0.0], "Size of the map around the robot (x, y, z); zeros: what holds the grid."),
    Parameter("map_half_life_s", 30.0, "What nobody sees any more is half forgotten in this time.", 0.01, 1e9),
    Parameter("map_dynamic_half_life_s", 0.5, "The same for classes that can move.", 0.01, 1e9),
    Parameter("map_rate_hz", 1.0, "How often the map is published at most.", 0.01, 100.0, dynamic=True),
    Parameter("map_file", "", "File (.npz) of the services ~/map/save and ~/map/load; empty: they refuse."),
)

MAX_WAITING = 2  # answers, one of them being fused
TF_WAIT_S = 0.1  # odometry of a stamp mostly comes a little later than its images
OK, WARN = 0, 1  # levels of diagnostic_msgs/DiagnosticStatus
COUNTS = ("offered", "fused", "not fused: no transform", "not fused: busy", "not fused: failed")
"""Of answers: offered = the sum of the others, once nothing waits."""


class MapServer:
    """Publishers and services of one map.

    Args:
        node: the topics and services are its own (`~/map/...`).
        grid, taxonomy: of the answers.
        tree: with `map_frame` above `base_frame`.
        values: the node's parameters, those of `MAP_PARAMETERS` and of ~/grid; they may change at any time.

    Raises:
        InvalidInput: a parameter that makes no map, named.
    """

    def __init__(
        self,
        node: Node,
        grid: VoxelGrid,
        taxonomy: Taxonomy,
        tree: TransformTree,
        base_frame: str,
        values: Mapping[str, Any],
    ) -> None:
        self._node, self._tree, self._values = node, tree, values
        self._base_frame, self._map_frame = base_frame, values["map_frame"]
        self._map = RollingMap(grid, taxonomy, _settings(values))
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # as Nav2's static layer asks for
        self._cloud = node.create_publisher(PointCloud2, "~/map/occupancy", latched)
        self._markers = node.create_publisher(MarkerArray, "~/map/markers", latched)
        self._grid = node.create_publisher(OccupancyGrid, "~/map/grid", latched)
        self._services = self._offer_services()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="map")
        self._lock = threading.Lock()
        self._waiting = 0
        self._counts: Counter[str] = Counter()
        self._problem = self._publish_problem = ""
        self._published_s = 0.0
        self._fuse_ms = 0.0
        self._newest = np.eye(4), 0  # world_from_base and stamp of the newest answer in the map

    # --- answers ------------------------------------------------------------------------------------------------

    def add(self, occupancy: Occupancy, stamp_ns: int) -> None:
        """Fuse an answer later, in another thread."""
        with self._lock:
            self._counts["offered"] += 1
            if self._waiting >= MAX_WAITING:
                self._counts["not fused: busy"] += 1
                return
            self._waiting += 1
        self._pool.submit(self._add, occupancy, stamp_ns)

    def _add(self, occupancy: Occupancy, stamp_ns: int) -> None:
        try:
            self._fuse(occupancy, stamp_ns)
        except MissingTransform as error:
            outcome, problem = "not fused: no transform", f"last answer not fused: {error}"
        except Exception as error:  # whatever it is, the next answer gets its chance
            outcome, problem = "not fused: failed", f"last answer not fused: {type(error).__name__}: {error}"
        else:
            outcome, problem = "fused", self._publish_if_due()
        with self._lock:
            self._waiting -= 1
            self._counts[outcome] += 1
            self._problem = problem

    def _fuse(self, occupancy: Occupancy, stamp_ns: int) -> None:
        world_from_base = self._lookup(stamp_ns)
        start_s = time.thread_time()
        self._map.fuse(occupancy, world_from_base, stamp_ns)
        self._fuse_ms = 1e3 * (time.thread_time() - start_s)
        self._newest = world_from_base, stamp_ns

    def _lookup(self, stamp_ns: int) -> np.ndarray:
        """world_from_base at the stamp, which may still have to come; no other transform is used in its place.

        Raises:
            MissingTransform: naming the link.
        """
        deadline_s = time.monotonic() + TF_WAIT_S
        while True:
            try:
                return self._tree.lookup(self._map_frame, self._base_frame, stamp_ns)
            except MissingTransform:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(0.01)

    # --- outputs ------------------------------------------------------------------------------------------------

    def _publish_if_due(self) -> str:
        """Publish the outputs that somebody listens to. Returns what is wrong, empty if nothing is."""
        now_s = time.monotonic()
        listened = any(each.get_subscription_count() for each in (self._cloud, self._markers, self._grid))
        if not listened or now_s - self._published_s < 1 / self._values["map_rate_hz"]:
            return self._publish_problem
        self._published_s, self._publish_problem = now_s, ""
        try:
            self._publish()
        except Exception as error:
            self._publish_problem = f"map not published: {type(error).__name__}: {error}"
        return self._publish_problem

    def _publish(self) -> None:
        world_from_base, stamp_ns = self._newest
        occupancy, frame_id = self._map.occupancy(), self._map_frame
        if self._cloud.get_subscription_count():
            seen = voxel_points(occupancy, occupancy.surface)
            self._cloud.publish(cloud_of(seen, stamp_ns, frame_id))
        if self._markers.get_subscription_count():
            self._markers.publish(occupancy_cdr(occupancy, stamp_ns, frame_id))
        if self._grid.get_subscription_count():
            p, base_z_m = self._values, float(world_from_base[2, 3])
            band_m = p["grid_min_z_m"] + base_z_m, p["grid_max_z_m"] + base_z_m
            cells = column_costs(occupancy, band_m, class_costs(occupancy.taxonomy, p["grid_class_costs"]))
            self._grid.publish(grid_message(cells, occupancy.grid, base_z_m, stamp_ns, frame_id))

    def status(self) -> tuple[int, str, dict[str, Any]]:
        """The (level, text, values) for /diagnostics."""
        with self._lock:
            counts, problem = dict(self._counts), self._problem
        values = {
            "frame": self._map_frame,
            "cells": " x ".join(str(n) for n in self._map.shape),
            "fuse ms": round(self._fuse_ms, 2),
            **{name: counts.get(name, 0) for name in COUNTS},
        }
        return (WARN, problem, values) if problem else (OK, "ok", values)

    # --- services -----------------------------------------------------------------------------------------------

    def _offer_services(self) -> list[Any]:
        """Offer ~/map/reset, ~/map/save and ~/map/load, if std_srvs is installed."""
        try:
            from std_srvs.srv import Trigger
        except ImportError:
            self._node.get_logger().warning("no services ~/map/...: std_srvs is not installed (pip: ros-std-srvs)")
            return []
        work = {"reset": self._reset, "save": self._save, "load": self._load}
        return [self._node.create_service(Trigger, f"~/map/{name}", self._answer(do)) for name, do in work.items()]

    def _answer(self, work: Callable[[], str]) -> Callable[[Any, Any], Any]:
        async def answer(_: Any, response: Any) -> Any:
            executor = self._node.executor
            done: Future[tuple[bool, str]] = Future(executor=executor)

            def tell(job: Any) -> None:
                done.set_result((False, "the map is closed") if job.cancelled() else job.result())
                if executor is not None:  # the node was not destroyed meanwhile
                    executor.wake()  # it looks at what awaits only when something happens

            self._pool.submit(_attempt, work).add_done_callback(tell)
            response.success, response.message = await done or (False, "the map is closed")
            if response.success:
                self._node.get_logger().info(response.message)
            else:
                self._node.get_logger().error(response.message)
            return response

        return answer

    def _reset(self) -> str:
        self._map.reset()
        return "map is empty"

    def _save(self) -> str:
        path = self._path()
        save_map(path, self._map, self._map_frame)
        return f"map saved to {path}"

    def _load(self) -> str:
        path = self._path()
        load_map(path, self._map, self._map_frame)
        return f"map loaded from {path}"

    def _path(self) -> Path:
        """The map's file, from a parameter that is fixed at the start: nobody on the network may name a file."""
        if not self._values["map_file"]:
            raise InvalidInput("parameter 'map_file' is empty: start the node with a file for the map")
        return Path(self._values["map_file"])

    def close(self) -> None:
        """Finish what has begun, drop what waits, and remove topics and services."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for service in self._services:
            self._node.destroy_service(service)
        for publisher in (self._cloud, self._markers, self._grid):
            self._node.destroy_publisher(publisher)


def _attempt(work: Callable[[], str]) -> tuple[bool, str]:
    """Do something and return (success, message), as std_srvs/Trigger answers."""
    try:
        return True, work()
    except OccError as error:
        return False, str(error)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def _settings(values: Mapping[str, Any]) -> MapSettings:
    size_m = tuple(values["map_size_m"])
    if len(size_m) != 3 or (any(size_m) and min(size_m) <= 0):
        raise InvalidInput(f"parameter 'map_size_m' must be three sizes above 0 m, or zeros, got {list(size_m)}")
    return settings_of(
        size_m=size_m if any(size_m) else None,
        half_life_s=values["map_half_life_s"],
        dynamic_half_life_s=values["map_dynamic_half_life_s"],
    )
