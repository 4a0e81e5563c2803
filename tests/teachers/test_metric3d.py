"""Metric3D's geometry around a network whose answer is known: resize, padding, focal length, both forms of weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from teacher_fixtures import make_frame

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.teachers.metric3d import MEAN, STD, Metric3D, fit, load_metric3d

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

HUBCONF = '''
import torch

class Net(torch.nn.Module):
    """Depth = red / 10 of the image before it was normalised; confidence = green, normalised."""
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(()))

    def inference(self, data):
        x = data["input"]
        red = x[:, :1] * 58.395 + 123.675
        return red / 10 * self.gain, x[:, 1:2], {}

def metric3d_vit_small(pretrain=False):
    assert not pretrain
    return Net()
'''


def ramp(width: int, height: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.linspace(10, 250, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def hub_folder(root: Path) -> Path:
    (root / "metric3d").mkdir()
    (root / "metric3d/hubconf.py").write_text(HUBCONF)
    torch.save({"model_state_dict": {"gain": torch.ones(())}}, root / "metric_depth_vit_small_800k.pth")
    return root


@pytest.mark.parametrize("size", [(1600, 900), (800, 450), (1226, 370), (480, 640)])
def test_fit_keeps_the_aspect_and_centres_the_image(size):
    padded, scale, (left, top, width, height) = fit(ramp(*size), (1064, 616))
    assert padded.shape == (616, 1064, 3) and scale == min(1064 / size[0], 616 / size[1])
    assert (width, height) == (int(size[0] * scale), int(size[1] * scale)) and (width == 1064 or height == 616)
    assert abs(left - (1064 - width - left)) <= 1 and abs(top - (616 - height - top)) <= 1
    inside = np.zeros((616, 1064), dtype=bool)
    inside[top : top + height, left : left + width] = True
    np.testing.assert_allclose(padded[~inside], np.broadcast_to(MEAN, (int((~inside).sum()), 3)))
    assert (np.diff(padded[top + height // 2, left : left + width, 0]) >= 0).all()


@pytest.mark.parametrize(("focal_px", "width"), [(1260.0, 1600), (630.0, 800), (700.0, 1600)])
def test_depth_is_scaled_by_the_resized_focal_length(tmp_path, focal_px, width):
    image = ramp(width, width * 9 // 16)
    teacher = load_metric3d(hub_folder(tmp_path), "cpu")
    found = teacher.depth(make_frame({"A": image, "B": image}, focal_px=focal_px))
    assert list(found) == ["A", "B"] and found["A"].size == (1064, 598)
    scale = 1064 / width
    red = cv2.resize(image, (1064, 598))[..., 0].astype(np.float32)
    np.testing.assert_allclose(found["A"].depth_m, red / 10 * focal_px * scale / 1000, rtol=1e-4)
    green = (cv2.resize(image, (1064, 598))[..., 1] - MEAN[1]) / STD[1]
    np.testing.assert_allclose(found["A"].confidence, 1 / (1 + np.exp(-green)), rtol=1e-4)


def test_two_cameras_that_see_a_thing_equally_large_agree_on_its_distance(tmp_path):
    """Half the resolution is half the focal length and half the pixels: the same depth."""
    teacher = load_metric3d(hub_folder(tmp_path), "cpu")
    large = teacher.depth(make_frame({"A": ramp(1600, 900)}, focal_px=1260.0))["A"].depth_m
    small = teacher.depth(make_frame({"A": ramp(800, 450)}, focal_px=630.0))["A"].depth_m
    np.testing.assert_allclose(large, small, atol=0.09)  # a grey value is 0.084 m


def test_depth_is_clipped_at_its_limit(tmp_path):
    found = load_metric3d(hub_folder(tmp_path), "cpu").depth(make_frame({"A": ramp(160, 90)}, focal_px=9e4))["A"]
    assert found.depth_m.max() == 300


def test_onnx_file_gives_what_its_graph_says(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["pred_depth"], axes=[1], keepdims=1)],
        "mean of the colours",
        [value("image", TensorProto.FLOAT, [1, 3, 56, 112])],
        [value("pred_depth", TensorProto.FLOAT, [1, 1, 56, 112])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "metric3d_vit_small.onnx")
    teacher = load_metric3d(tmp_path, "cpu")
    image = ramp(112, 56)
    found = teacher.depth(make_frame({"A": image}, focal_px=500.0))["A"]
    np.testing.assert_allclose(found.depth_m, image.mean(axis=2) * 0.5, rtol=1e-4)
    assert (found.confidence == 1).all() and "112x56" in teacher.version
    (tmp_path / "metric3d_vit_small.onnx").write_bytes(b"broken")
    with pytest.raises(CorruptInput, match="metric3d_vit_small.onnx"):
        load_metric3d(tmp_path, "cpu")


def test_absent_and_broken_weights_are_named(tmp_path):
    with pytest.raises(MissingInput, match="docs/teachers.md"):
        load_metric3d(None, "cpu")
    with pytest.raises(MissingInput, match="hubconf.py"):
        load_metric3d(tmp_path, "cpu")
    hub_folder(tmp_path)
    version = load_metric3d(tmp_path, "cpu").version
    checkpoint = tmp_path / "metric_depth_vit_small_800k.pth"
    torch.save({"model_state_dict": {"gain": torch.tensor(2.0)}}, checkpoint)
    assert load_metric3d(tmp_path, "cpu").version != version
    torch.save({"model_state_dict": {}}, checkpoint)
    with pytest.raises(CorruptInput, match="lacks 1 tensors of metric3d_vit_small, such as gain"):
        load_metric3d(tmp_path, "cpu")
    torch.save({"model_state_dict": Metric3D}, checkpoint)  # a pickle that would run code
    with pytest.raises(CorruptInput, match="800k.pth"):
        load_metric3d(tmp_path, "cpu")
    with pytest.raises(InvalidInput, match="must answer"):
        Metric3D(lambda image: (np.zeros((3, 3), np.float32), None), "none").depth(make_frame({"A": ramp(16, 9)}))
