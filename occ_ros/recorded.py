"""The parameters that a node needs for a bag that is played to it."""

from __future__ import annotations

from pathlib import Path

from occ_core.errors import MissingInput
from occ_core.models.build import parse_config
from occ_core.models.checkpoint import load_record
from occ_core.sources.bag import find_lidar
from occ_core.sources.bag_reader import BagReader


def image_topic_of(bag: Path) -> str:
    """The template of the bag's image topics: compressed ones if it has them, else raw ones."""
    compressed = any(topic.endswith("/image_raw/compressed") for topic in BagReader(bag).topics)
    return "/{camera}/image_raw" + ("/compressed" if compressed else "")


def lidar_topic_of(bag: Path, model: Path) -> dict[str, str]:
    """The parameter `lidar_topic` for a checkpoint that takes LiDAR; nothing for other models.

    Raises:
        MissingInput: the model takes LiDAR, and the bag has no cloud of one, or several. OccError: no usable record.
    """
    if model.suffix != ".safetensors":  # an exported network takes none
        return {}
    config = parse_config(load_record(model)["model"])
    if config.lidar_input is None:
        return {}
    topic = find_lidar(BagReader(bag))
    if topic is None:
        raise MissingInput(f"{model}: takes LiDAR, but {bag} has no PointCloud2 topic of one, or several")
    return {"lidar_topic": topic}
