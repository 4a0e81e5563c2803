"""Reads a simulated data set: its keyframes' images, and their exact depth and classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from occ_core.errors import MissingInput
from occ_core.world.nuscenes_tables import VERSION
from occ_core.world.sensors import LIDAR


def load_truth(out: Path, scene: str, token: str, channel: str) -> tuple[np.ndarray, np.ndarray]:
    """depth_m float32 (h, w), inf in the sky, and class_id uint8 (h, w), 17 in the sky, of a keyframe's image.

    Raises:
        MissingInput: the data set has no truth there.
    """
    path = out / "truth" / scene / token / f"{channel}.npz"
    if not path.is_file():
        raise MissingInput(f"{path}: no such file; only simulated data sets hold exact depth and class")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["depth_m"].astype(np.float32), arrays["class_id"]


def keyframes(out: Path) -> Iterator[tuple[str, str, dict[str, Path]]]:
    """Scene name, sample token and the image file per camera, of every keyframe of a data set, in order."""
    folder = out / VERSION
    if not folder.is_dir():
        raise MissingInput(f"{folder}: no such folder; is {out} a finished simulated data set?")
    tables = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("scene", "sample", "sample_data")}
    names = {row["token"]: row["name"] for row in tables["scene"]}
    files: dict[str, dict[str, Path]] = {}
    for row in tables["sample_data"]:
        channel = row["filename"].split("/")[1]
        if row["is_key_frame"] and channel != LIDAR:
            files.setdefault(row["sample_token"], {})[channel] = out / row["filename"]
    for row in tables["sample"]:
        yield names[row["scene_token"]], row["token"], files.get(row["token"], {})
