"""The page of an adaption, from answers and labels on disk."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'occ_ros[bags]'")
pytest.importorskip("torch")

from bag_robot import T0, S, robot

from occ_core.adapt.cut import write_cut
from occ_core.adapt.doctor import examine
from occ_core.adapt.label import LABELS
from occ_core.adapt.page import write_report_page
from occ_core.bags import messages as msg
from occ_core.geometry import pose
from occ_core.grid import OCC3D_GRID
from occ_core.inference.predictions import save_prediction
from occ_core.occupancy import Occupancy, save_occ3d
from occ_core.sources.scenes import Recording
from occ_core.taxonomy import OCC3D

SECONDS = 16


def volume(seed: int) -> Occupancy:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(OCC3D_GRID.shape) < 0.01, rng.integers(0, 17, OCC3D_GRID.shape), 17)
    return Occupancy(OCC3D_GRID, OCC3D, labels.astype(np.uint8), np.ones(OCC3D_GRID.shape, bool))


@pytest.fixture(scope="module")
def stretch(tmp_path_factory):
    """A drive, its folder OUT, and its held-out stretch."""
    folder = tmp_path_factory.mktemp("page")
    made = robot(images=10 * SECONDS, tf=False)
    made.static("left", "right")
    for step in range(10 * SECONDS + 2):
        stamp = T0 + step * S // 10
        made.add("/tf", stamp, msg.transforms(stamp, [("odom", "base_link", pose((step / 10, 0, 0)))]))
    drive = examine(made.write(folder / "drive"))
    parts = write_cut(folder / "out", [drive])
    return drive, folder / "out", [folder / "out" / name for name in parts["judge"]]


def test_before_after_and_labels_stand_side_by_side(stretch):
    drive, out, judged = stretch
    recording = Recording(judged[0])
    scene = recording.scene(recording.scenes[0])
    for number, token in enumerate(scene.tokens):
        label = volume(number)
        if number:  # the first moment has none
            save_occ3d(judged[0] / LABELS / recording.scenes[0] / token / "labels.npz", label)
        for seed, name in ((100, "before"), (200, "after")):
            answer = volume(seed + number)
            save_prediction(out / "judged" / name / f"{token}.npz", answer.labels, answer.observed)
    (out / "train").mkdir()
    (out / "train" / "log.csv").write_text("step,total\n8,2.0\n16,1.0\n")
    cells = [{"protocol": "camera", "classes": ["car"], "cells": [[n]]} for n in (3, 4)]
    report = {
        "before": {"summary": {"labels_iou": 12.34}, "labels": {"confusion": cells[0]}},
        "after": {"summary": {"labels_iou": 23.45, "truth_iou": 5.0}, "truth": {"confusion": cells[1]}},
        "why": "held-out labels: <better>", "labels": {"lacking": ["one moment"]}, "runs": "torch fp32",
        "node": {"run": "ros2 run"}, "trained": {"checkpoint": "train/model.safetensors"},
        "speed": {"torch fp32": {"p50_ms": 31.5, "p95_ms": 40.0, "equal_percent": 100.0, "same_percent": 100.0}},
    }  # fmt: skip
    text = write_report_page(out, judged, report).read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["title"] == "out" and data["scene"]["cameras"] == ["left", "right"]
    assert data["curves"] == [{"name": "", "x": {"name": "step", "values": [8, 16]}, "lines": {"total": [2, 1]}}]
    assert data["confusion"] == [{"name": "before", **cells[0]}, {"name": "after", **cells[1]}]
    doctor = data["tables"][-1]
    assert [row[:2] for row in doctor["rows"]] == [["left", "ok"], ["right", "ok"]]
    assert len(data["scene"]["frames"]) == len(scene) >= 3 and data["scene"]["volumes"] == [
        "after",
        "before",
        "labels",
    ]
    assert "labels" not in data["scene"]["frames"][0]["volumes"]
    for seed, name in ((100, "before"), (200, "after"), (0, "labels")):
        packed = zlib.decompress(base64.b64decode(data["scene"]["frames"][1]["volumes"][name]["label"]))
        expected = volume(seed + 1).labels
        np.testing.assert_array_equal(np.frombuffer(packed, np.uint8), expected[expected != 17])
    assert data["tables"][0]["rows"] == [["labels iou", "12.3", "23.4"], ["truth iou", "-", "5.0"]]
    assert data["tables"][1]["rows"] == [["torch fp32", "31.5", "40.0", "100.0", "100.0"]]
    assert data["notes"] == ["held-out labels: <better>", "runs as torch fp32: ros2 run", "one moment"]
