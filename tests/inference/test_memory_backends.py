"""A network with memory in every runtime, over drives; what its exports hold; `occ predict` over scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_nuscenes
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("rosbags")

import ros_fixtures as fx  # noqa: E402
from runtimes import EQUAL_LABELS, RUNTIMES, SHIPPED, TENSORRT_OPERATORS, equal, graph_of, require  # noqa: E402

from occ_core.cli.main import app  # noqa: E402
from occ_core.errors import InvalidInput  # noqa: E402
from occ_core.inference.export import PRECISIONS, export_onnx  # noqa: E402
from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.models.build import build_model, parse_config  # noqa: E402
from occ_core.models.checkpoint import describe, load_checkpoint, save_checkpoint  # noqa: E402
from occ_core.occupancy import Occupancy  # noqa: E402
from occ_core.sources.nuscenes import NuScenesSource  # noqa: E402

CHANNELS = 7  # of the state, and one more
MEMORY_OPERATORS = {"GridSample", "Slice", "Tanh"}  # TensorRT parses them since 8.5


@pytest.fixture(scope="module")
def drives(tmp_path_factory) -> Path:
    """Two scenes of three keyframes, 0.5 s apart: 4 m and 0.1 rad on in the first, 80 m on in the second."""
    data = tmp_path_factory.mktemp("drives") / "set"
    small_nuscenes.make(data, keyframes=3, sweeps=0, scenes=2)
    return data


@pytest.fixture(scope="module")
def files(tmp_path_factory, drives) -> dict[str, Path]:
    checkpoint = fx.tiny_model(tmp_path_factory.mktemp("model"), fx.REMEMBERING)
    made = {"checkpoint": checkpoint}
    for precision in PRECISIONS:
        calibrate = {"calibrate": drives, "frames": 4} if precision == "int8" else {}
        made[precision] = export_onnx(checkpoint, checkpoint.with_name(f"{precision}.onnx"), precision, **calibrate)
    return made


def answers(path: Path, runtime: str, drives: Path, remembers: bool = True) -> list[Occupancy]:
    predictor, frames = Predictor.load(path, runtime, 1), NuScenesSource(drives)
    if not remembers:
        predictor.memory = None
    given = [predictor.predict_frame(frames[i]) for i in range(len(frames))]
    if predictor.memory is not None:
        assert predictor.memory.counts == {"no frame before": 1, "used": 2, "another scene": 1, "jump": 2}
    return given


@pytest.fixture(scope="module")
def of_torch(files, drives) -> tuple[list[Occupancy], list[Occupancy]]:
    """With memory, and each moment by itself."""
    with_memory, alone = (answers(files["checkpoint"], "torch", drives, remembers) for remembers in (True, False))
    return with_memory, alone


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_remembers_as_torch_does(runtime, precision, files, drives, of_torch):
    slow, alone = of_torch
    fast = answers(files[precision], require(runtime), drives)
    for a, b, c in zip(slow, alone, fast, strict=True):
        assert equal(a.labels, c.labels) >= EQUAL_LABELS[precision]
        assert equal(a.observed, c.observed) >= EQUAL_LABELS[precision]
        effect = abs(a.confidence - b.confidence).max()
        assert (effect > 0.3) == (a is slow[1] or a is slow[2])
        if effect and precision != "int8":  # of a random network, int8 is as coarse as that is large
            matters = abs(a.confidence - b.confidence) > 0.15
            assert abs(a.confidence - c.confidence)[matters].mean() < 0.01


@pytest.mark.slow
def test_int8_remembers_on_real_images(shared_data, tmp_path):
    """The shipped network with a memory of random weights: what it changes, it changes in int8, too."""
    drive = shared_data("nuscenes_scene0103_4kf")
    tensors, record = load_checkpoint(SHIPPED)
    config = parse_config(record["model"]).model_copy(update={"memory_channels": 32})
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        model.birds_eye.memory.change.weight.normal_(std=0.3)
    memory = {name: tensor for name, tensor in model.state_dict().items() if ".memory." in name}
    save_checkpoint(tmp_path / "shipped.safetensors", tensors | memory, describe(config, {}))
    int8 = export_onnx(tmp_path / "shipped.safetensors", tmp_path / "int8.onnx", "int8", calibrate=drive, frames=2)
    frames = NuScenesSource(drive)

    def last(path: Path, backend: str, remembers: bool) -> Occupancy:
        predictor = Predictor.load(path, backend, 1)
        predictor.memory = predictor.memory if remembers else None
        return [predictor.predict_frame(frames[i]) for i in range(len(frames))][-1]

    slow, alone = (last(tmp_path / "shipped.safetensors", "torch", remembers) for remembers in (True, False))
    fast, fast_alone = (last(int8, require("openvino"), remembers) for remembers in (True, False))
    assert equal(slow.labels, alone.labels) < 0.99
    coarse = equal(alone.labels, fast_alone.labels)  # as the network itself is in int8, without a memory
    assert coarse > 0.97 and equal(slow.labels, fast.labels) > coarse - 0.003
    seen = slow.observed & fast.observed
    effects = (a.confidence[seen] - b.confidence[seen] for a, b in ((slow, alone), (fast, fast_alone)))
    assert np.corrcoef(*effects)[0, 1] > 0.6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_state_is_an_input_and_an_output_of_the_graph(precision, files):
    model, types = graph_of(files[precision])
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert list(shapes)[4:6] == ["state", "then_from_now"] and list(shapes)[-1] == "next_state"
    assert shapes["state"] == shapes["next_state"] == [1, CHANNELS + 1, 100, 100]
    assert shapes["then_from_now"] == [1, 2, 3]
    for name in ("state", "then_from_now", "next_state"):
        assert types[name] == onnx.TensorProto.FLOAT
    assert {node.op_type for node in model.graph.node} <= TENSORRT_OPERATORS | MEMORY_OPERATORS
    (moved,) = (node for node in model.graph.node if node.op_type == "GridSample")
    assert {types[name] for name in (*moved.input, *moved.output)} == {
        onnx.TensorProto.FLOAT
    }  # fp16: 0.02 m too coarse


def test_int8_has_the_memorys_layers_and_leaves_the_motion_alone(files):
    graph = onnx.load(str(files["int8"])).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    layers = {n.name: all(made_by.get(i) == "DequantizeLinear" for i in n.input[:2]) for n in graph.node
              if n.op_type in ("Conv", "MatMul")}  # fmt: skip
    of_memory = {name for name in layers if "/memory/" in name}
    assert len(of_memory) == 3 and all(layers[name] for name in of_memory)
    assert not layers["/birds_eye/keep/Conv"]
    outside = {name for name, quantised in layers.items() if not quantised and name.count("/") == 1}
    assert len(outside) == 11  # nine of the network without memory; two products that make the sampling places
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (kept,) = (node for node in graph.node if node.op_type == "Conv" and node.name.endswith("/then/Conv"))
    (quantised,) = (node for node in graph.node if kept.input[0] in node.output)
    assert 0.5 / 127 < arrays[quantised.input[1]] <= 1.01 / 127  # of a state in -1..1


def test_int8_needs_a_drive_to_calibrate_with(files, tmp_path):
    bag = fx.write_bag(tmp_path / "standing", 3)  # no odometry
    with pytest.raises(InvalidInput, match="no frame whose past is known, of 3: .* a drive with odometry"):
        export_onnx(files["checkpoint"], tmp_path / "x.onnx", "int8", calibrate=bag)


def test_a_bag_without_odometry_is_answered_moment_by_moment(files, tmp_path):
    """There all poses are the identity, but the robot may have driven."""
    from occ_core.sources.open import open_source

    source, predictor = open_source(fx.write_bag(tmp_path / "drive", 3)), Predictor.load(files["fp32"], threads=1)
    for i in range(3):
        predictor.predict_frame(source[i])
    assert predictor.memory.counts == {"no odometry": 3}


def test_a_prediction_run_that_goes_on_ends_where_an_unbroken_one_does(files, drives, tmp_path):
    def run(out, *options):
        result = CliRunner().invoke(app, ["predict", str(files["fp32"]), str(drives), str(out), *options])
        assert result.exit_code == 0, result.output
        return {path.stem: np.load(path)["pred"] for path in sorted(out.iterdir())}

    whole = run(tmp_path / "whole")
    tokens = NuScenesSource(drives).tokens
    assert set(whole) == set(tokens)
    kept = tmp_path / "whole" / f"{tokens[0]}.npz"
    stamp = kept.stat().st_mtime_ns
    for lost in (tokens[1], tokens[5]):
        (tmp_path / "whole" / f"{lost}.npz").unlink()
    again = run(tmp_path / "whole")
    assert all(np.array_equal(whole[token], again[token]) for token in tokens)
    assert kept.stat().st_mtime_ns == stamp
    alone = run(tmp_path / "alone", "--alone")
    same = [np.array_equal(alone[token], whole[token]) for token in tokens]
    assert same == [True, False, False, True, True, True]
