"""config/occupancy.rviz and config/foxglove_layout.json name topics that exist, with the type and QoS they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from occ_core.show.foxglove import PREDICTED, TRUE, image_topic, info_topic

ROOT = Path(__file__).resolve().parents[2]
NODE = "/occupancy_node"


def node_topics() -> dict[str, str]:
    """Topic -> message type, as the code of the node has them (`..., Type, "~/name", ...`)."""
    found = {}
    for path in (ROOT / "occ_ros").glob("*.py"):
        code = path.read_text(encoding="utf-8")
        for kind, name in re.findall(r"(PointCloud2|MarkerArray|OccupancyGrid), \"~(/[a-z/]+)\"", code):
            found[NODE + name] = kind
    return found


def cameras() -> list[str]:
    parameters = yaml.safe_load((ROOT / "config" / "occupancy_node.yaml").read_text())["/**"]["ros__parameters"]
    return parameters["cameras"]


@pytest.fixture(scope="module")
def rviz():
    return yaml.safe_load((ROOT / "config" / "occupancy.rviz").read_text())["Visualization Manager"]


@pytest.fixture(scope="module")
def layout():
    return json.loads((ROOT / "config" / "foxglove_layout.json").read_text())


def test_the_node_has_its_six_outputs():
    assert set(node_topics()) == {f"{NODE}{map_}/{name}" for map_ in ("", "/map") for name in OUTPUTS}


OUTPUTS = {"occupancy": "PointCloud2", "markers": "MarkerArray", "grid": "OccupancyGrid"}


def test_rviz_displays_are_of_topics_that_exist(rviz):
    classes = {"PointCloud2": "PointCloud2", "MarkerArray": "MarkerArray", "OccupancyGrid": "Map"}
    expected = {topic: f"rviz_default_plugins/{classes[kind]}" for topic, kind in node_topics().items()}
    expected |= {f"/{camera}/image_raw/compressed": "rviz_default_plugins/Image" for camera in cameras()}
    shown = {d["Topic"]["Value"]: d for d in rviz["Displays"] if "Topic" in d}
    assert {topic: display["Class"] for topic, display in shown.items()} == expected
    for topic, display in shown.items():
        latched = display["Topic"]["Durability Policy"] == "Transient Local"
        assert latched == topic.startswith(f"{NODE}/map/")
    assert rviz["Global Options"]["Fixed Frame"] == "base_link"


def test_foxglove_layout_shows_topics_that_exist(layout):
    panels = layout["configById"]
    assert set(panels["3D!occupancy"]["topics"]) == set(node_topics()) | {PREDICTED, TRUE}
    images = {config["imageMode"]["imageTopic"] for name, config in panels.items() if name.startswith("Image!")}
    infos = {config["imageMode"]["calibrationTopic"] for name, config in panels.items() if name.startswith("Image!")}
    assert images == {image_topic(camera) for camera in cameras()}
    assert infos == {info_topic(camera) for camera in cameras()}
    assert panels["DiagnosticSummary!node"]["topicToRender"] == "/diagnostics"


def test_foxglove_layout_places_each_panel_once(layout):
    def panels(node):
        return [node] if isinstance(node, str) else panels(node["first"]) + panels(node["second"])

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])


def test_docs_name_every_topic():
    docs = "\n".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("node.md", "mapping.md", "view.md")
    )
    for topic in [*(topic.replace(NODE, "~") for topic in node_topics()), PREDICTED, TRUE]:
        assert f"{topic}`" in docs, topic
