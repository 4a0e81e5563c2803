"""The demo as a user runs it: real rendering, real bag, three processes over real DDS."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cv2
import pytest

from occ_core.errors import MissingInput, OccError
from occ_core.grid import OCC3D_GRID
from occ_core.models.build import build_model
from occ_core.models.checkpoint import describe, save_checkpoint
from occ_core.models.config import LidarInput
from occ_core.models.occle.config import OccleConfig
from occ_ros import demo

pytest.importorskip("rclpy", reason="rclpy is not installed (pip install 'occ_ros[ros]')")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed (python tools/build_messages.py)")


@pytest.mark.slow
@pytest.mark.ros
def test_demo_answers_every_frame_and_leaves_its_results(tmp_path):
    out = tmp_path / "demo"
    result = subprocess.run(
        [sys.executable, "-m", "occ_ros.demo", str(out), "--keyframes", "4"],
        capture_output=True, text=True, timeout=420, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((out / "report.json").read_text())
    assert (report["frames_sent"], report["frames_answered"], report["frames_dropped"]) == (4, 4, 0)
    assert 0 < report["iou"] <= 100 and report["latency_ms"]["p50"] > 0
    assert len(list((out / "predictions").glob("*.npz"))) == 4
    assert cv2.imread(str(next((out / "pictures").glob("*.png")))).shape[1] == 1440
    assert (out / "report.html").stat().st_size > 100_000
    assert (out / "recording.rrd").stat().st_size > 10_000
    assert not [p for p in os.listdir("/proc") if p.isdigit() and str(out) in command_line(p)], "processes were left"


@pytest.mark.slow
@pytest.mark.ros
def test_demo_with_cameras_and_lidar_finds_the_topic_by_itself(tmp_path):
    """With weights as they are made: what is tested is the way, not the score."""
    config = OccleConfig(
        name="tiny occle", grid_origin_m=OCC3D_GRID.origin_m, voxel_size_m=1.6, grid_shape=(50, 50, 4),
        input_width=64, input_height=32, backbone="mobilenetv4-small", feature_channels=8, volume_channels=8,
        fusion="none", fusion_channels=8, fusion_heads=2, lidar=LidarInput(sweeps=3),
    )  # fmt: skip
    model, out = tmp_path / "occle.safetensors", tmp_path / "demo"
    save_checkpoint(model, build_model(config).state_dict(), describe(config, {}))
    assert demo.main([str(out), "--keyframes", "3", "--model", str(model), "--rate", "0.5"]) == 0
    report, times = (json.loads((out / name).read_text()) for name in ("report.json", "node.json"))
    assert (report["frames_sent"], report["frames_answered"], report["frames_dropped"]) == (3, 3, 0)
    assert times["answered_without_lidar"] == 0 and times["stages_ms"]["lidar"]["count"] == 3


def command_line(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it ended while we looked
        return ""


def test_a_missing_model_is_one_line(tmp_path, capsys):
    assert demo.main([str(tmp_path), "--model", str(tmp_path / "no.onnx")]) == 2
    assert "no.onnx: no such model" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(MissingInput):
        demo.run(tmp_path, 1, tmp_path / "no.onnx")


def test_lost_frames_fail_the_demo(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"frames_sent": 5, "frames_answered": 3, "frames_dropped": 1}))
    with pytest.raises(OccError, match="5 frames were sent but 3 answered and 1 reported dropped"):
        demo.check(tmp_path)
    # Of a busy machine, where one frame came as two sets.
    twice = {"frames_sent": 16, "frames_answered": 7, "frames_dropped": 10}
    (tmp_path / "report.json").write_text(json.dumps(twice))
    demo.check(tmp_path)
