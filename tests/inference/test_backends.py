"""Every runtime against plain torch, in every precision; what exported graphs may hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_nuscenes
from model_fixtures import camera
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("rosbags")

import ros_fixtures as fx  # noqa: E402
from runtimes import EQUAL_LABELS, RUNTIMES, SHIPPED, TENSORRT_OPERATORS, equal, graph_of, require  # noqa: E402

from occ_core.camera import Rig  # noqa: E402
from occ_core.cli.main import app  # noqa: E402
from occ_core.errors import CorruptInput, InvalidInput  # noqa: E402
from occ_core.frame import Frame  # noqa: E402
from occ_core.inference.export import PRECISIONS, export_onnx  # noqa: E402
from occ_core.inference.predictor import Predictor  # noqa: E402
from occ_core.occupancy import Occupancy  # noqa: E402
from occ_core.sources.nuscenes import NuScenesSource  # noqa: E402

PRODUCTS = {"/MatMul", *(f"/MatMul_{i}" for i in range(1, 9))}
"""They stay in float: six of the attention along columns, sums along viewing rays, the window of their ends,
and the means of pillars."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return fx.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def files(checkpoint):
    """The tiny network at each precision, int8 calibrated on a bag through the command line."""
    bag = fx.write_bag(checkpoint.with_name("drive"), 3)
    for precision in PRECISIONS:
        arguments = [
            "export",
            str(checkpoint),
            str(checkpoint.with_name(f"{precision}.onnx")),
            "--precision",
            precision,
        ]
        calibrate = ["--calibrate", str(bag), "--frames", "2"] if precision == "int8" else []
        result = CliRunner().invoke(app, arguments + calibrate)
        assert result.exit_code == 0, result.output
    return {precision: checkpoint.with_name(f"{precision}.onnx") for precision in PRECISIONS}


@pytest.fixture(scope="module")
def of_torch(checkpoint) -> dict[int, Occupancy]:
    """What torch says of two sets of images, by their index."""
    predictor = Predictor.load(checkpoint, "torch", 1)
    return {index: predictor.predict(fx.images(index), fx.RIG) for index in (7, 8)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_answers_as_torch_does(runtime, precision, files, of_torch):
    fast = Predictor.load(files[precision], require(runtime), 1)
    for index, a in of_torch.items():
        b = fast.predict(fx.images(index), fx.RIG)
        assert equal(a.labels, b.labels) >= EQUAL_LABELS[precision] and len(np.unique(a.labels)) > 3
        assert equal(a.observed, b.observed) >= EQUAL_LABELS[precision] and 0 < a.observed.mean() < 1
        same = a.labels == b.labels
        assert np.abs(a.confidence - b.confidence)[same].mean() < (0.02 if precision == "int8" else 0.002)
        assert b.labels.dtype == np.uint8 and b.labels.shape == fx.CONFIG.grid_shape


def test_openvino_takes_any_rig_and_remembers_nothing_of_the_last(checkpoint, files):
    slow, fast = Predictor.load(checkpoint, "torch", 1), Predictor.load(files["fp32"], require("openvino"), 1)
    six = Rig(tuple(camera(f"c{i}", 60 * i, (160, 90)) for i in range(6)))
    turned = Rig(tuple(camera(name, 20 + 90 * i, (160, 90)) for i, name in enumerate(fx.RIG.names)))
    kept = fast.predict(fx.images(0), fx.RIG)
    labels = kept.labels.copy()
    part = {name: image for name, image in fx.images(1).items() if name != "l"}
    for pictures, rig in (
        (part, fx.RIG),
        (fx.images(2, six), six),
        (fx.images(3), fx.RIG),
        (fx.images(3, turned), turned),
    ):
        assert equal(slow.predict(pictures, rig).labels, fast.predict(pictures, rig).labels) >= EQUAL_LABELS["fp32"]
    assert np.array_equal(kept.labels, labels)  # an answer is the caller's own


@pytest.mark.slow
def test_bench_compares_every_backend_with_torch(checkpoint, tmp_path):
    """Compiled torch too, whose compiler takes long, and the peer."""
    data = tmp_path / "set"
    small_nuscenes.make(data, keyframes=2, sweeps=0)
    peer = Path(__file__).parents[2] / "benchmarks" / "peers" / "flashocc.py"
    arguments = ["bench", "backends", str(checkpoint), str(data), "--calibrate", str(data), "--peer", str(peer)]
    arguments += ["--frames", "2", "--repeats", "2", "--threads", "1", "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = figures["rows"]
    assert {"torch fp32", "torch-compiled fp32", "FlashOcc M0 (re-creation)"} <= set(rows)
    for name, row in rows.items():
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        if "re-creation" not in name:
            assert row["equal_labels_percent"] >= 100 * EQUAL_LABELS[name.split()[1]], name
            assert row["miou_17"] is None or 0 <= row["miou_17"] <= 100
    assert rows["torch fp32"]["equal_labels_percent"] == 100 and {"openvino int8", "onnxruntime fp16"} <= set(rows)
    assert all(name in figures["left_out"] or name in rows for name in ("tensorrt fp32", "tensorrt int8"))
    assert 30 < figures["peer"]["parameters_m"] < 45 and figures["frames"] == 2


@pytest.mark.parametrize("unnamed", [(), (0, 3, 16), range(1, 17), range(17)])
def test_the_exported_order_of_computing_changes_no_answer(checkpoint, unnamed):
    """Deployed against the network as it is trained, in torch alone; classes that are never named are not computed."""
    from occ_core.inference.backends.torch_backend import load_model
    from occ_core.models.easyocc.deployed import Deployed
    from occ_core.models.easyocc.logits import NEVER
    from occ_core.models.easyocc.model import Answer
    from occ_core.models.easyocc.table import build_table

    model, table = load_model(checkpoint), build_table(fx.RIG, fx.CONFIG, frozenset({"b"}))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 64, 3), dtype=np.uint8)
    inputs = [torch.from_numpy(array) for array in (images, table.voxel_index, table.pillar_index, table.rays)]
    model.class_bias[list(unnamed)] = NEVER
    assert Deployed(model).model.to_class.out_channels == ((17 - len(unnamed)) or 17) * fx.CONFIG.grid_shape[2]
    with torch.inference_mode():
        for plain, quick in zip(Answer(model)(*inputs), Deployed(model)(*inputs), strict=True):
            assert plain.dtype == quick.dtype == torch.uint8 and plain.shape == quick.shape
            assert (plain.int() - quick.int()).abs().float().mean() < 1e-3
    with torch.no_grad():
        model.birds_eye.fine.weight.fill_(float("nan"))  # as an overflow of fp16 would
    with torch.inference_mode():
        for network in (Answer(model), Deployed(model)):
            assert not network(*inputs)[2].any()  # the node refuses an answer that observes nothing


@pytest.fixture(scope="module")
def seen_by_torch(shared_data) -> tuple[Frame, Occupancy]:
    """A real moment, and what the shipped model says of it."""
    frame = NuScenesSource(shared_data("nuscenes_scene0103_4kf"))[1]
    return frame, Predictor.load(SHIPPED, "torch", 1).predict_frame(frame)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_shipped_model_on_real_images(precision, seen_by_torch, shared_data, tmp_path):
    """int8 calibrated on other moments of the drive; equal labels stand in for truth, which real images lack."""
    require("openvino")
    drive = shared_data("nuscenes_scene0103_4kf")
    calibrate = {"calibrate": drive, "frames": 2} if precision == "int8" else {}
    exported = export_onnx(SHIPPED, tmp_path / "nano.onnx", precision, **calibrate)
    frame, a = seen_by_torch
    for runtime in RUNTIMES:
        b = Predictor.load(exported, runtime, 1).predict_frame(frame)
        assert equal(a.labels, b.labels) >= EQUAL_LABELS[precision], runtime
        assert equal(a.observed, b.observed) >= EQUAL_LABELS[precision], runtime


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_graphs_hold_only_what_tensorrt_can_read(precision, files):
    model, types = graph_of(files[precision])
    graph = model.graph
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in graph.node} <= TENSORRT_OPERATORS
    assert {value.name: types[value.name] for value in graph.input} == {
        "images": onnx.TensorProto.UINT8,
        "voxel_index": onnx.TensorProto.INT32,
        "pillar_index": onnx.TensorProto.INT32,
        "rays": onnx.TensorProto.FLOAT,
    }
    # TensorRT converts bytes from and to floats only, and only right at the network's inputs and outputs.
    for value in (value for value in graph.input if types[value.name] == onnx.TensorProto.UINT8):
        assert {node.op_type for node in graph.node if value.name in node.input} == {"Cast"}
    for value in graph.output:
        (source,) = (node for node in graph.node if value.name in node.output)
        assert source.op_type == "Cast" and types[source.input[0]] == onnx.TensorProto.FLOAT
    inner = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    assert onnx.TensorProto.UINT8 not in {types[name] for name in inner if name in types}
    lifts = {node.input[1] for node in graph.node if node.op_type == "Gather"}
    assert {"voxel_index", "pillar_index"} <= lifts


def test_int8_is_symmetric_per_channel_and_leaves_what_is_sensitive(files):
    graph = onnx.load(str(files["int8"])).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zero_points = [constants[n.input[2]] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(zero_points) > 100 and all(point.dtype == np.int8 and not point.any() for point in zero_points)
    layers = {node.name: node for node in graph.node if node.op_type in ("Conv", "MatMul")}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    quantised = {n for n, node in layers.items() if all(made_by.get(i) == "DequantizeLinear" for i in node.input[:2])}
    assert len(quantised) > 70 and {"/to_class/Conv", "/birds_eye/geometry/geometry.0/Conv"} <= quantised
    sensitive = {"/neck/rays/Conv", "/birds_eye/enter/enter.0/Conv", "/to_verdicts/Conv"}
    assert set(layers) - quantised == {*PRODUCTS, *sensitive}
    scales = [constants[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert all(scale.ndim == 1 for scale in scales)


def test_fp16_is_in_the_layers_and_not_between_them(files):
    model, types = graph_of(files["fp16"])
    nodes = {node.name: node for node in model.graph.node}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    layers = [node for node in nodes.values() if node.op_type in ("Conv", "MatMul") and node.name not in PRODUCTS]
    assert len(layers) > 60 and {types[name] for node in layers for name in node.input} == {half}
    for name in ("/Exp", "/Softplus", "/Sigmoid"):
        assert types[nodes[name].input[0]] == full
    assert files["fp16"].stat().st_size < 0.62 * files["fp32"].stat().st_size


def test_a_file_says_its_precision_and_its_calibration(files):
    made = {}
    for precision, path in files.items():
        entries = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
        made[precision] = json.loads(entries["occ_core_export"])
        assert json.loads(entries["occ_core"])["model"]["name"] == "tiny"
    assert made["fp32"] == {"precision": "fp32"} and made["fp16"] == {"precision": "fp16"}
    calibration = made["int8"]["calibration"]
    assert calibration["source"] == "drive" and calibration["frames"] == 2 and len(calibration["images_sha256"]) == 16


def test_precision_and_calibration_have_to_fit(checkpoint, tmp_path):
    out = tmp_path / "x.onnx"
    with pytest.raises(InvalidInput, match="'int4' is not one of fp32, fp16, int8"):
        export_onnx(checkpoint, out, "int4")
    with pytest.raises(InvalidInput, match="int8 needs frames to calibrate with: --calibrate"):
        export_onnx(checkpoint, out, "int8")
    with pytest.raises(InvalidInput, match="for int8 only, precision is fp16"):
        export_onnx(checkpoint, out, "fp16", calibrate=tmp_path)
    assert not list(tmp_path.iterdir())


# --- which runtime ---------------------------------------------------------------------------------------------------


def test_auto_takes_the_fastest_that_is_installed(checkpoint, files, tmp_path):
    """In processes where packages cannot be imported."""
    require("openvino")
    code = (
        "import sys\n"
        "for name in sys.argv[3:]: sys.modules[name] = None\n"
        "from occ_core.errors import OccError\n"
        "from occ_core.inference.predictor import Predictor\n"
        "try: print(type(Predictor.load(sys.argv[1], sys.argv[2], 1).session).__name__)\n"
        "except OccError as error: print(error)\n"
    )

    def said(*arguments) -> str:
        environment = fx.environment(0) | {"XDG_CACHE_HOME": str(tmp_path)}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout

    assert said(files["int8"], "auto", "torch", "onnx") == "OpenVinoSession\n"
    assert said(files["int8"], "auto", "openvino") == "OnnxSession\n"
    assert said(checkpoint, "auto", "openvino", "onnxruntime") == "TorchSession\n"
    assert "pip install 'occ_ros[openvino]'" in said(files["fp32"], "openvino", "openvino")
    assert "pip install 'occ_ros[onnx]'" in said(files["fp32"], "auto", "openvino", "onnxruntime")


def test_a_backend_that_does_not_fit_the_file_is_refused(checkpoint, files, tmp_path):
    for backend in ("torch", "torch-compiled"):
        with pytest.raises(InvalidInput, match=f"runs with backend openvino or onnxruntime, not {backend}"):
            Predictor.load(files["fp32"], backend)
    with pytest.raises(InvalidInput, match=r"run `occ export`, `occ engine build`"):
        Predictor.load(checkpoint, "tensorrt")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_cannot_be_run_is_named(runtime, files, tmp_path):
    require(runtime)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files["fp32"].read_bytes()[:20_000])
    with pytest.raises(CorruptInput, match="broken.onnx: not a readable ONNX model"):
        Predictor.load(broken, runtime)
    graph = onnx.load(str(files["fp32"]))
    del graph.metadata_props[:]
    foreign = tmp_path / "foreign.onnx"
    onnx.save(graph, str(foreign))
    with pytest.raises(CorruptInput, match="foreign.onnx: an ONNX model, but not exported by `occ export`"):
        Predictor.load(foreign, runtime)
