"""The fused map of a node over real DDS: topics, services, faults. And the grid for Nav2 as a message."""

from __future__ import annotations

import os
import resource
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")

import rclpy
from map_fixtures import CAR, GRID, STAMP, WALL, center_m, occupancy_of_cells, random_occupancy, turned
from nav_msgs.msg import OccupancyGrid
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from ros_fixtures import own_domain, wait_for
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from occ_core.clouds import VOXEL_POINT
from occ_core.errors import InvalidInput, MissingTransform
from occ_core.mapping.costs import class_costs, column_costs, column_costs_in_world
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import OCC3D
from occ_core.transforms import TransformTree
from occ_ros.map_server import COUNTS, MAP_PARAMETERS, MapServer
from occ_ros.messages import points_of, stamp_ns_of
from occ_ros.nav_grid import GRID_PARAMETERS, answer_grid

DOMAIN = own_domain()
VALUES = {p.name: p.default for p in (*MAP_PARAMETERS, *GRID_PARAMETERS)} | {
    "grid_min_z_m": -0.3,
    "grid_max_z_m": 0.8,
    "map_rate_hz": 50.0,
}
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
POSE = turned(12.0, -3.0, 0.4, 0.4)


class Spun:
    """A node in a thread that spins it."""

    def __init__(self, name: str, context: rclpy.Context) -> None:
        self.node = Node(name, context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def end(self) -> None:
        self._executor.shutdown()
        self._thread.join(10)
        self.node.destroy_node()


@pytest.fixture(scope="module")
def nodes():
    """(node with the map, somebody else)."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    both = Spun("mapper", context), Spun("listener", context)
    yield both[0].node, both[1].node
    for each in both:
        each.end()
    rclpy.shutdown(context=context)


@pytest.fixture
def served(nodes, tmp_path):
    """`served(**parameters)`: a server with odom over base_link, known from 10 s before STAMP to 10 s after."""
    servers = []

    def make(tf=True, **changes):
        tree = TransformTree(buffer_s=30)
        for second in (-10, 10) if tf else ():
            tree.set("odom", "base_link", STAMP + second * 10**9, POSE)
        values = VALUES | {"map_file": str(tmp_path / "map.npz")} | changes
        server = MapServer(nodes[0], GRID, OCC3D, tree, "base_link", values)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.close()


def fused(server, count):
    wait_for(lambda: server.status()[2]["fused"] >= count, what=f"{count} answers fused: {server.status()}")


def feed(server, occupancy, times=1):
    for _ in range(times):
        done = server.status()[2]["fused"]
        server.add(occupancy, STAMP)
        fused(server, done + 1)


def listen(node, kind, topic):
    """(messages, subscription)."""
    heard: list = []
    return heard, node.create_subscription(kind, topic, heard.append, LATCHED)


@pytest.mark.ros
def test_map_topics_hold_the_fused_map_in_its_frame(nodes, served):
    server = served()
    kinds = {"occupancy": PointCloud2, "markers": MarkerArray, "grid": OccupancyGrid}
    heard = {name: listen(nodes[1], kind, f"/mapper/map/{name}") for name, kind in kinds.items()}
    wait_for(
        lambda: all(each.get_subscription_count() for each in (server._cloud, server._markers, server._grid)),
        what="discovery",
    )
    labels = occupancy_of_cells().labels
    labels[3:6, 3:6, 0:3] = WALL  # 27 cells; the one in the middle cannot be seen
    labels[8, 8, 1] = CAR
    feed(server, Occupancy(GRID, OCC3D, labels, np.ones(GRID.shape, bool)), 3)
    time.sleep(0.05)
    feed(server, occupancy_of_cells(observed=False))
    expected = server._map.occupancy()
    wait_for(lambda: all(len(messages) >= 1 for messages, _ in heard.values()), what="all three topics")
    time.sleep(0.2)
    cloud, markers, grid = (heard[name][0][-1] for name in kinds)
    assert cloud.header.frame_id == markers.markers[1].header.frame_id == grid.header.frame_id == "odom"
    assert stamp_ns_of(cloud.header.stamp) == STAMP
    points = points_of(cloud, VOXEL_POINT)
    xyz = np.stack([points["x"], points["y"], points["z"]], axis=1).astype(np.float64)
    index, inside = expected.grid.index_of(xyz)
    cells = {tuple(cell) for cell in index}
    occupied = {tuple(cell) for cell in np.argwhere(expected.occupied)}
    hidden = {c for c in occupied if all(tuple(np.add(c, s)) in occupied for s in np.vstack([np.eye(3), -np.eye(3)]))}
    assert inside.all() and len(hidden) and cells == occupied - hidden
    np.testing.assert_array_equal(points["label"], expected.labels[tuple(index.T)])
    np.testing.assert_allclose(points["confidence"], expected.confidence[tuple(index.T)])
    colors = np.array(OCC3D.colors)[points["label"]]
    np.testing.assert_array_equal(points["rgb"], colors[:, 0] << 16 | colors[:, 1] << 8 | colors[:, 2])
    cubes = markers.markers[1]
    assert {(p.x, p.y, p.z) for p in cubes.points} == {
        tuple(center_m(cell, expected.grid)) for cell in occupied - hidden
    }
    costs = column_costs(expected, (-0.3 + 0.4, 0.8 + 0.4), class_costs(OCC3D))
    assert np.array_equal(np.array(grid.data, np.int8).reshape(grid.info.height, grid.info.width).T, costs)
    assert {0, 100, -1} <= set(costs.ravel().tolist())
    assert grid.info.origin.position.x == expected.grid.origin_m[0] and grid.info.origin.orientation.w == 1.0
    for _, subscription in heard.values():
        nodes[1].destroy_subscription(subscription)


@pytest.mark.ros
def test_without_a_transform_nothing_is_fused_and_the_link_is_named(served):
    server = served(tf=False)
    server.add(occupancy_of_cells([(5, 5, 2)]), STAMP)
    wait_for(lambda: server.status()[0], what="warning")
    level, text, values = server.status()
    assert (level, values["fused"], values["not fused: no transform"]) == (1, 0, 1)
    assert "no transform 'odom' <- 'base_link'" in text
    assert not server._map.occupancy().observed.any()
    server._tree.set("odom", "base_link", STAMP, POSE)
    feed(server, occupancy_of_cells([(5, 5, 2)]))
    assert server.status()[:2] == (0, "ok")


@pytest.mark.ros
def test_a_transform_that_comes_late_is_waited_for(served):
    server = served(tf=False)
    server._tree.set("odom", "base_link", STAMP - 10**9, POSE)
    server.add(occupancy_of_cells([(5, 5, 2)]), STAMP)
    time.sleep(0.03)
    server._tree.set("odom", "base_link", STAMP, POSE)
    fused(server, 1)


@pytest.mark.ros
def test_answers_that_come_too_fast_are_counted(served):
    server = served()
    feed(server, occupancy_of_cells())  # numba has compiled
    for _ in range(50):
        server.add(occupancy_of_cells(), STAMP)
    wait_for(lambda: not server._waiting, what="idle")
    values = server.status()[2]
    assert values["offered"] == 51 == sum(values[name] for name in COUNTS[1:])
    assert values["not fused: busy"] > 0


@pytest.mark.ros
def test_a_bad_moment_does_not_stop_the_map(served):
    server = served()
    server.add(occupancy_of_cells(grid=type(GRID)(GRID.origin_m, 0.4, (3, 3, 3))), STAMP)
    wait_for(lambda: server.status()[2]["not fused: failed"], what="failure")
    assert "the map is of occ3d" in server.status()[1]
    feed(server, occupancy_of_cells())
    assert server.status()[0] == 0


@pytest.fixture
def call(nodes):
    """`call(name)`: response of a service."""
    Trigger = pytest.importorskip("std_srvs.srv", reason="services need std_srvs (pip: ros-std-srvs)").Trigger
    clients = []

    def ask(name):
        client = nodes[1].create_client(Trigger, f"/mapper/map/{name}")
        clients.append(client)
        assert client.wait_for_service(15)
        future = client.call_async(Trigger.Request())
        wait_for(future.done, what=name)
        return future.result()

    yield ask
    for client in clients:
        nodes[1].destroy_client(client)


@pytest.mark.ros
def test_save_reset_load(served, call, tmp_path):
    server = served()
    feed(server, occupancy_of_cells([(5, 5, 2)]), 3)
    before = server._map.occupancy()
    answer = call("save")
    assert answer.success and answer.message == f"map saved to {tmp_path / 'map.npz'}"
    assert call("reset").success
    assert not server._map.occupancy().observed.any()
    assert call("load").success
    after = server._map.occupancy()
    assert after.grid == before.grid
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.observed, before.observed)


@pytest.mark.ros
def test_services_say_what_is_wrong(served, call, tmp_path):
    server = served()
    missing = call("load")
    assert not missing.success and missing.message == f"{tmp_path / 'map.npz'}: no such file"
    (tmp_path / "map.npz").write_bytes(b"PK nothing")
    damaged = call("load")
    assert not damaged.success and "map.npz: not a readable map file" in damaged.message
    (tmp_path / "map.npz").unlink()
    (tmp_path / "map.npz").mkdir()
    blocked = call("save")
    assert not blocked.success and "map.npz: cannot write" in blocked.message
    feed(server, occupancy_of_cells())  # it lives


@pytest.mark.ros
def test_a_full_disk_leaves_the_last_map(served, call, tmp_path):
    """A limit on the size of files, which a process meets as it meets a full disk: in the middle of a write."""
    server = served()
    feed(server, occupancy_of_cells([(5, 5, 2)]), 3)
    assert call("save").success
    whole = (tmp_path / "map.npz").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        refused = call("save")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not refused.success and "map.npz: cannot write" in refused.message
    assert (tmp_path / "map.npz").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".map", "map"))] == ["map.npz"]
    assert call("save").success


@pytest.mark.ros
def test_without_a_file_parameter_the_services_refuse(served, call):
    served(map_file="")
    answer = call("save")
    assert not answer.success and "parameter 'map_file' is empty" in answer.message


def test_map_size_parameter_is_checked(nodes):
    for size_m in ([1.0, 2.0], [10.0, 0.0, 5.0], [float("nan")] * 3):
        with pytest.raises(InvalidInput, match="map_size_m|size_m"):
            MapServer(nodes[0], GRID, OCC3D, TransformTree(), "base_link", VALUES | {"map_size_m": size_m})


def test_grid_of_one_moment_in_its_own_frame_and_in_odom():
    seen, costs, tree = random_occupancy(np.random.default_rng(8)), class_costs(OCC3D, ["terrain:30"]), TransformTree()
    band_m = (-0.3, 0.8)
    own = answer_grid(seen, STAMP, "base_link", "", tree, band_m, costs)
    assert own.header.frame_id == "base_link" and own.info.origin.position.z == 0
    expected = column_costs(seen, band_m, costs)
    with pytest.raises(MissingTransform, match="'odom' <- 'base_link'"):
        answer_grid(seen, STAMP, "base_link", "odom", tree, band_m, costs)
    tree.set("odom", "base_link", STAMP, POSE)
    fixed = answer_grid(seen, STAMP, "base_link", "odom", tree, band_m, costs)
    in_world, world_grid = column_costs_in_world(seen, POSE, band_m, costs)
    for message, cells, grid in ((own, expected, GRID), (fixed, in_world, world_grid)):
        message = deserialize_message(serialize_message(message), OccupancyGrid)
        assert (message.info.width, message.info.height) == cells.shape
        for x, y in np.ndindex(cells.shape):
            assert message.data[y * cells.shape[0] + x] == cells[x, y]
        assert (message.info.origin.position.x, message.info.origin.position.y) == grid.origin_m[:2]
        assert message.info.origin.orientation.w == 1.0 and message.info.resolution == pytest.approx(0.4)
    assert fixed.header.frame_id == "odom" and fixed.info.origin.position.z == pytest.approx(0.4)
