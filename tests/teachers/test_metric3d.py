"""Metric3D's geometry around a network whose answer is known: resize, padding, focal length, both forms of weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from teacher_fixtures import make_frame

from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.teachers.metric3d import HUB_NAMES, MEAN, PAD, STD, HubNetwork, Metric3D, fit, load_hub, load_metric3d

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


# The published architecture's parameters, written down from its code: a line each, `{0..11}` for its blocks.
PUBLISHED = """
import torch
from pathlib import Path

class Net(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            place = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, torch.nn.Module())
                place = getattr(place, part)
            place.register_parameter(last, torch.nn.Parameter(torch.empty(shape, device="meta")))

def metric3d_vit_small(pretrain=False):
    lines = Path(__file__).with_name("keys.txt").read_text().split("\\n")
    return Net({name: tuple(map(int, shape.split("x"))) for name, shape in map(str.split, filter(None, lines))})
"""
CHECKPOINT = "metric_depth_vit_small_800k.pth"


def hub_folder(root: Path) -> Path:
    (root / "metric3d").mkdir()
    (root / "metric3d/hubconf.py").write_text(HUBCONF)
    torch.save({"model_state_dict": {"gain": torch.ones(())}}, root / CHECKPOINT)
    return root


def published_keys() -> dict[str, tuple[int, ...]]:
    keys = {}
    for line in Path(__file__).with_name("metric3d_vit_small_keys.txt").read_text().splitlines():
        name, shape = line.split()
        for block in range(12) if "{0..11}" in name else (0,):
            keys[name.replace("{0..11}", str(block))] = tuple(map(int, shape.split("x")))
    return keys


def published_folder(root: Path) -> dict[str, torch.Tensor]:
    """The code's stand-in under `root`, and the state of a checkpoint as published: without the mask token."""
    keys = published_keys()
    (root / "metric3d").mkdir()
    (root / "metric3d/hubconf.py").write_text(PUBLISHED)
    text = "".join(f"{name} {'x'.join(map(str, shape))}\n" for name, shape in keys.items())
    (root / "metric3d/keys.txt").write_text(text)
    # one number each in the file, so that it stays small
    return {name: torch.zeros(()).expand(shape) for name, shape in keys.items() if "mask_token" not in name}


def on_cpu(root: Path) -> Metric3D:
    """The hub's stub on the CPU, which the published code refuses."""
    network = HubNetwork(load_hub(root / "metric3d", root / CHECKPOINT), torch.device("cpu"))
    return Metric3D(network, "stub")


@pytest.mark.parametrize("size", [(1600, 900), (800, 450), (1226, 370), (480, 640)])
def test_fit_keeps_the_aspect_and_centres_the_image(size):
    padded, scale, (left, top, width, height) = fit(ramp(*size), (1064, 616))
    assert padded.shape == (616, 1064, 3) and scale == min(1064 / size[0], 616 / size[1])
    assert (width, height) == (int(size[0] * scale), int(size[1] * scale)) and (width == 1064 or height == 616)
    assert abs(left - (1064 - width - left)) <= 1 and abs(top - (616 - height - top)) <= 1
    inside = np.zeros((616, 1064), dtype=bool)
    inside[top : top + height, left : left + width] = True
    np.testing.assert_allclose(padded[~inside], np.broadcast_to(PAD, (int((~inside).sum()), 3)))
    assert (np.diff(padded[top + height // 2, left : left + width, 0].astype(int)) >= 0).all()
    assert padded.dtype == np.uint8


@pytest.mark.parametrize(("focal_px", "width"), [(1260.0, 1600), (630.0, 800), (700.0, 1600)])
def test_depth_is_scaled_by_the_resized_focal_length(tmp_path, focal_px, width):
    image = ramp(width, width * 9 // 16)
    teacher = on_cpu(hub_folder(tmp_path))
    found = teacher.depth(make_frame({"A": image, "B": image}, focal_px=focal_px))
    assert list(found) == ["A", "B"] and found["A"].size == (1064, 598)
    scale = 1064 / width
    red = cv2.resize(image, (1064, 598))[..., 0].astype(np.float32)
    np.testing.assert_allclose(found["A"].depth_m, red / 10 * focal_px * scale / 1000, rtol=1e-4)
    green = (cv2.resize(image, (1064, 598))[..., 1] - MEAN[1]) / STD[1]
    np.testing.assert_allclose(found["A"].confidence, 1 / (1 + np.exp(-green)), rtol=1e-4)


def test_two_cameras_that_see_a_thing_equally_large_agree_on_its_distance(tmp_path):
    """Half the resolution is half the focal length and half the pixels: the same depth."""
    teacher = on_cpu(hub_folder(tmp_path))
    large = teacher.depth(make_frame({"A": ramp(1600, 900)}, focal_px=1260.0))["A"].depth_m
    small = teacher.depth(make_frame({"A": ramp(800, 450)}, focal_px=630.0))["A"].depth_m
    np.testing.assert_allclose(large, small, atol=0.09)  # a grey value is 0.084 m


def test_depth_is_clipped_at_its_limit(tmp_path):
    found = on_cpu(hub_folder(tmp_path)).depth(make_frame({"A": ramp(160, 90)}, focal_px=9e4))["A"]
    assert found.depth_m.max() == 300


def save_onnx(path: Path, outputs: dict[str, float], dtype: str = "FLOAT", size=(56, 112), external: str = "") -> Path:
    """A network whose outputs are the mean of the colours times a factor each."""
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["pixel_values"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
    ]
    nodes += [helper.make_node("Mul", ["mean", f"factor_{name}"], [name]) for name in outputs]
    factors = [numpy_helper.from_array(np.full(1, f, np.float32), f"factor_{name}") for name, f in outputs.items()]
    graph = helper.make_graph(
        nodes, "means", [value("pixel_values", getattr(TensorProto, dtype), [1, 3, *size])],
        [value(name, TensorProto.FLOAT, [1, 1, *size]) for name in outputs], factors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=bool(external), location=external or None, size_threshold=0)
    return path


def test_onnx_file_gives_what_its_graph_says(tmp_path):
    path = save_onnx(tmp_path / "metric3d_vit_small.onnx", {"pred_depth": 1.0})
    teacher = load_metric3d(tmp_path, "cpu")
    image = ramp(112, 56)
    found = teacher.depth(make_frame({"A": image}, focal_px=500.0))["A"]
    np.testing.assert_allclose(found.depth_m, image.mean(axis=2) * 0.5, rtol=1e-4)
    assert (found.confidence == 1).all() and "112x56" in teacher.version
    path.write_bytes(b"broken")
    with pytest.raises(CorruptInput, match="metric3d_vit_small.onnx"):
        load_metric3d(tmp_path, "cpu")


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "UINT8"])
def test_onnx_depth_is_chosen_by_name_and_the_input_has_its_type(tmp_path, dtype):
    outputs = {"normal_confidence": 9.0, "predicted_normal": 7.0, "predicted_depth": 1.0}
    save_onnx(tmp_path / "metric3d.onnx", outputs, dtype, ("h", "w"))
    image = ramp(1064, 616)
    found = load_metric3d(tmp_path, "cpu").depth(make_frame({"A": image}, focal_px=500.0))["A"]
    np.testing.assert_allclose(found.depth_m, image.mean(axis=2) * 0.5, rtol=1e-3)


def test_onnx_networks_that_are_no_metric3d_are_refused(tmp_path):
    save_onnx(tmp_path / "metric3d.onnx", {"a": 1.0, "b": 1.0})
    with pytest.raises(InvalidInput, match="outputs \\(a, b\\) is named predicted_depth"):
        load_metric3d(tmp_path, "cpu")
    save_onnx(tmp_path / "metric3d.onnx", {"depth": 1.0}, "INT64")
    with pytest.raises(InvalidInput, match="pixel_values tensor\\(int64\\)"):
        load_metric3d(tmp_path, "cpu")
    save_onnx(tmp_path / "metric3d_vit_large.onnx", {"depth": 1.0})
    with pytest.raises(InvalidInput, match="holds 2 Metric3D networks"):
        load_metric3d(tmp_path, "cpu")


@pytest.mark.parametrize("inside", ["", "metric3d-vit-giant2", "any-name"])
def test_onnx_files_are_found_as_the_hub_gives_them(tmp_path, inside):
    """`onnx/model.onnx`, with its weights beside it, which belong to the network's version."""
    path = save_onnx(tmp_path / inside / "onnx/model.onnx", {"predicted_depth": 1.0}, external="model.onnx_data")
    (tmp_path / inside / "config.json").write_text('{"model_type": "metric3d"}')
    version = load_metric3d(tmp_path, "cpu").version
    data = path.with_name("model.onnx_data")
    data.write_bytes(np.full(1, 2.0, np.float32).tobytes() + data.read_bytes()[4:])
    assert load_metric3d(tmp_path, "cpu").version != version
    (tmp_path / inside / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(MissingInput, match="hf download onnx-community/metric3d-vit-large"):
        load_metric3d(tmp_path, "cpu")


def test_onnx_files_are_found_in_the_hubs_cache(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra 'teachers' is not installed")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingInput, match="hub cache"):
        load_metric3d(None, "cpu")
    repository = tmp_path / f"models--{HUB_NAMES[2].replace('/', '--')}"
    save_onnx(repository / "snapshots/abc/onnx/model.onnx", {"predicted_depth": 1.0})
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    assert "metric3d-1" in load_metric3d(None, "cpu").version


@pytest.mark.filterwarnings("ignore:.*meta parameter.*")
def test_published_checkpoints_lack_the_mask_token_and_nothing_else(tmp_path):
    state, path = published_folder(tmp_path), tmp_path / CHECKPOINT
    assert len(published_keys()) == 362 and len(state) == 361
    torch.save({"model_state_dict": state}, path)
    assert len(load_hub(tmp_path / "metric3d", path).state_dict()) == 362
    lost = "depth_model.encoder.blocks.0.3.attn.qkv.weight"
    torch.save({"model_state_dict": {k: v for k, v in state.items() if k != lost}}, path)
    with pytest.raises(CorruptInput, match=f"lacks 1 tensors of metric3d_vit_small, such as {lost}"):
        load_hub(tmp_path / "metric3d", path)
    torch.save({"model_state_dict": {**state, "depth_model.decoder.more": torch.zeros(1)}}, path)
    with pytest.raises(CorruptInput, match=r"has besides 1 tensors .* such as depth_model\.decoder\.more"):
        load_hub(tmp_path / "metric3d", path)
    torch.save({"model_state_dict": {**state, lost: torch.zeros(3)}}, path)
    with pytest.raises(CorruptInput, match="cannot be loaded"):
        load_hub(tmp_path / "metric3d", path)


def test_the_published_code_on_a_cpu_names_what_runs_there(tmp_path):
    with pytest.raises(InvalidInput, match="cannot run on 'cpu'.*hf download onnx-community/metric3d-vit-large"):
        load_metric3d(hub_folder(tmp_path), "cpu")


def test_absent_and_broken_weights_are_named(tmp_path):
    with pytest.raises(MissingInput, match="docs/teachers.md"):
        load_metric3d(tmp_path, "cpu")
    hub_folder(tmp_path)
    checkpoint = tmp_path / CHECKPOINT
    torch.save({"model_state_dict": {}}, checkpoint)
    with pytest.raises(CorruptInput, match="lacks 1 tensors of metric3d_vit_small, such as gain"):
        on_cpu(tmp_path)
    torch.save({"model_state_dict": Metric3D}, checkpoint)  # a pickle that would run code
    with pytest.raises(CorruptInput, match="800k.pth"):
        on_cpu(tmp_path)
    frame = make_frame({"A": ramp(16, 9)})
    with pytest.raises(InvalidInput, match="must answer"):
        Metric3D(lambda image: (np.zeros((3, 3), np.float32), None), "none").depth(frame)
    with pytest.raises(CorruptInput, match="depth of A is NaN everywhere"):
        Metric3D(lambda image: (np.full(image.shape[2:], np.nan, np.float32), None), "none").depth(frame)
