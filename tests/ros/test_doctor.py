"""`occ doctor`: the table of live topics, from what a node says on /diagnostics."""

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (pip install -e '.[ros]')")

from diagnostic_msgs.msg import DiagnosticArray

from occ_core.cli.doctor_table import problem_lines
from occ_core.problems import KINDS
from occ_ros.doctor import Heard, camera_rows, other_lines, well
from occ_ros.messages import status_of
from occ_ros.sensors import ERROR, OK, Found

PLACED = {
    "image_topic": "/front/image", "size": "320 x 180", "lens": "pinhole, f 250 px", "azimuth_deg": 0,
    "elevation_deg": -3, "tf": "front_optical", "encoding": "rgb8", "stamps_behind_s": 0.02,
}  # fmt: skip


def heard_of(*statuses):
    heard = Heard()
    for received, used in ((10, 9), (30, 28)):
        counts = {"received": received, "used": used}
        made = [status_of(level, name, "", text, {**values, **counts}) for level, name, text, values in statuses]
        heard.add(DiagnosticArray(status=made))
    return heard


def test_a_node_that_is_well_and_one_that_is_not():
    lost = Found(ERROR, "no publisher on /left/image", "no publisher")
    good = OK, "occupancy_node: camera front", "ok", PLACED
    also = {"also": "2 publishers on /left/camera_info: a, b"}
    bad = ERROR, "occupancy_node: camera left", lost.text, {"image_topic": "/left/image", **also, **lost.help}
    model = OK, "occupancy_node: model", "ok", {}
    heard = heard_of(good, model)
    (row,) = camera_rows(heard)
    assert (row.name, row.verdict, row.images, row.looks) == ("front", "ok", "28 of 30", "+0 / -3")
    assert (row.offset_ms, row.lens, row.path) == ("-20", "pinhole, f 250 px", "front_optical")
    assert float(row.rate_hz) > 0 and well([row])
    assert other_lines(heard) == ["model: ok: ok"]
    rows = camera_rows(heard_of(good, bad, model))
    assert [row.verdict for row in rows] == ["ok", "left out"] and not well(rows)
    (said,) = problem_lines(rows)
    assert said.startswith("left: no publisher on /left/image")
    assert "; also: 2 publishers on /left/camera_info" in said
    assert KINDS["no publisher"].cause in said and KINDS["no publisher"].cure in said
