"""TensorRT engines, as far as they can be checked without a GPU: the driver's probe, the names used, what is refused.

The contract with TensorRT's Python packages needs their wheels, which are large and not installed:

    pip install --no-deps --target lean10 tensorrt-lean-cu12-libs==10.16.1.11 tensorrt-lean-cu12-bindings==10.16.1.11
    pip install --no-deps --target lean11 tensorrt-lean-cu13-libs==11.4.0.106 tensorrt-lean-cu13-bindings==11.4.0.106
    pip install --no-deps --target full10 tensorrt-cu12-bindings==10.3.0
    pip install --no-deps --target full11 tensorrt-cu13-bindings==11.4.0.106
    OCC_TENSORRT_WHEELS=lean10:lean11:full10:full11 pytest tests/inference/test_engine.py
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model_fixtures import SMALL

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingPackage
from occ_core.inference.backends import cuda, tensorrt_backend
from occ_core.inference.backends.cuda import Gpu
from occ_core.inference.backends.tensorrt_engine import (
    FORMAT,
    Machine,
    build_engine,
    engine_path,
    read_sidecar,
    require_this_machine,
    this_machine,
)
from occ_core.inference.predictor import Predictor

ORIN = Machine(Gpu("Orin", "8.7"), "10.3.0")
SOURCES = [Path(tensorrt_backend.__file__), Path(build_engine.__code__.co_filename)]
OBJECTS = {  # variables of our code that hold an object of TensorRT
    "engine": "ICudaEngine", "context": "IExecutionContext", "runtime": "Runtime", "logger": "Logger",
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "builder_config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
}  # fmt: skip
OF_THE_BUILDER = {"Builder", "OnnxParser", "IBuilderConfig", "MemoryPoolType", "NetworkDefinitionCreationFlag"}


def names_used() -> set[tuple[str, ...]]:
    """('Class', 'member') or ('Class', 'enumerator') of TensorRT, wherever our code reads one."""
    used = set()
    for node in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))):
        if not isinstance(node, ast.Attribute):
            continue
        dotted = ast.unparse(node).split(".")
        if re.fullmatch(r"trt(\.\w+)+", ast.unparse(node)):
            used.add(tuple(dotted[1:]))
        owner = dotted[-2].lstrip("_") if len(dotted) in (2, 3) and (len(dotted) == 2 or dotted[0] == "self") else ""
        if owner in OBJECTS:
            used.add((OBJECTS[owner], dotted[-1]))
    return used


def wheels() -> list[Path]:
    found = [Path(path) for path in os.environ.get("OCC_TENSORRT_WHEELS", "").split(os.pathsep) if path]
    if not found:
        pytest.skip("OCC_TENSORRT_WHEELS names no folders with TensorRT's wheels; see the top of this file")
    return found


def test_the_names_our_code_uses_are_found():
    """What the contract below relies on."""
    used = names_used()
    assert {("ICudaEngine", "get_tensor_name"), ("IExecutionContext", "execute_async_v3")} <= used
    assert {("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("OnnxParser", "parse"), ("Logger", "WARNING")} <= used
    assert ("IOptimizationProfile", "set_shape") in used and ("IBuilderConfig", "set_memory_pool_limit") in used
    assert not {name for *_, name in used} & {"FP16", "INT8", "BF16", "int8_calibrator", "EXPLICIT_BATCH"}  # not in 11


def test_tensorrt_10_and_11_have_every_name_of_the_runtime():
    """In a process each: two versions cannot live in one."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "import tensorrt_lean_bindings as trt\n"
        "for dotted in json.loads(sys.argv[2]):\n"
        "    at = trt\n"
        "    for name in dotted: at = getattr(at, name)\n"
        "print(trt.__version__)\n"
    )
    names = sorted(name for name in names_used() if not set(name) & (OF_THE_BUILDER | {"INetworkDefinition"}))
    assert len(names) > 10
    versions = []
    for folder in (folder for folder in wheels() if (folder / "tensorrt_lean_bindings").is_dir()):
        command = [sys.executable, "-c", code, str(folder), json.dumps(names)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{folder}: {done.stderr[-500:]}"
        versions.append(done.stdout.split(".")[0])
    assert versions, "OCC_TENSORRT_WHEELS has no tensorrt_lean_bindings"


def test_tensorrt_10_and_11_have_every_name_of_the_builder():
    """The full bindings do not import without libraries that are on no package index; their names stand in the file."""
    folders = [folder for folder in wheels() if (folder / "tensorrt_bindings" / "tensorrt.so").is_file()]
    for folder in folders:
        text = (folder / "tensorrt_bindings" / "tensorrt.so").read_bytes()
        for name in sorted({part for dotted in names_used() for part in dotted if not part.startswith("__")}):
            there = name.encode() + b"\0" in text
            assert there, f"{folder}: no '{name}'"
    assert folders, "OCC_TENSORRT_WHEELS has no tensorrt_bindings"


# --- the probe -------------------------------------------------------------------------------------------------------


def driver(folder: Path, code: str, monkeypatch) -> None:
    """Put a library in the place of NVIDIA's driver."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    (folder / "driver.c").write_text(code)
    library = folder / cuda.DRIVER
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "driver.c")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))


@pytest.mark.parametrize(
    "code, words",
    [
        ("int cuInit(unsigned flags) { return *(volatile int *)0; }", "ended with code -11"),
        ("int cuInit(unsigned flags) { return 100; }", "cuInit gives error 100"),
        (
            "int cuInit(unsigned flags) { return 0; } int cuDeviceGetCount(int *n) { *n = 0; return 0; }",
            "the CUDA driver is there, but no device",
        ),
    ],
    ids=["crashes", "fails", "no device"],
)
def test_a_broken_driver_is_named_and_harms_nobody(code, words, tmp_path, monkeypatch):
    driver(tmp_path, code, monkeypatch)
    with pytest.raises(MissingPackage, match=f"no GPU: .*{words}"):
        cuda.probe()


def test_the_probe_reads_name_and_compute_capability(tmp_path, monkeypatch):
    code = """
    int cuInit(unsigned flags) { return flags; }
    int cuDeviceGetCount(int *n) { *n = 2; return 0; }
    int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
    int cuDeviceGetName(char *name, int size, int device) {
        if (size < 100 || device != 40) return 1;
        __builtin_strcpy(name, "Orin"); return 0; }
    int cuDeviceGetAttribute(int *value, int attribute, int device) {
        *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1; return device != 40; }
    """
    driver(tmp_path, code, monkeypatch)
    assert cuda.probe() == ORIN.gpu
    with pytest.raises(MissingPackage, match=r"needs TensorRT >= 10.3 .* sudo apt install python3-libnvinfer-dev"):
        try:
            import tensorrt  # noqa: F401
        except (ImportError, OSError):
            this_machine()
        else:
            pytest.skip("TensorRT is installed")


def no_gpu() -> str:
    try:
        this_machine()
    except MissingPackage as reason:
        return str(reason)
    return ""


def test_without_a_gpu_every_door_says_so(tmp_path):
    if not (reason := no_gpu()):
        pytest.skip("there is a GPU and TensorRT")
    assert reason.startswith(("no GPU: ", "backend tensorrt needs TensorRT"))
    engine, _ = write_engine(tmp_path)
    with pytest.raises(MissingPackage, match=re.escape(reason[:20])):
        Predictor.load(engine)


@pytest.mark.gpu
def test_an_engine_answers_as_torch_does(tmp_path):
    if reason := no_gpu():
        pytest.skip(reason)
    import ros_fixtures as fx

    from occ_core.inference.export import export_onnx

    checkpoint = fx.tiny_model(tmp_path)
    slow = Predictor.load(checkpoint, "torch").predict(fx.images(7), fx.RIG)
    for precision, least in (("fp32", 0.999), ("fp16", 0.995)):
        exported = export_onnx(checkpoint, tmp_path / f"{precision}.onnx", precision)
        engine = Predictor.load(build_engine(exported, tmp_path))
        for _ in range(2):  # the second time the rig's table is there
            fast = engine.predict(fx.images(7), fx.RIG)
            assert (slow.labels == fast.labels).mean() >= least


@pytest.mark.gpu
def test_an_engine_remembers_as_torch_does(tmp_path):
    if reason := no_gpu():
        pytest.skip(reason)
    import ros_fixtures as fx

    from occ_core.inference.export import export_onnx
    from occ_core.models.easyocc.past import StampedPose

    checkpoint = fx.tiny_model(tmp_path, fx.REMEMBERING)
    exported = export_onnx(checkpoint, tmp_path / "fp32.onnx")
    slow, fast = Predictor.load(checkpoint, "torch"), Predictor.load(build_engine(exported, tmp_path))
    for index in range(4):
        place = np.eye(4)
        place[0, 3] = 2.0 * index
        stamped = StampedPose(index * 500_000_000, place)
        a, b = (predictor.predict(fx.images(index), fx.RIG, pose=stamped) for predictor in (slow, fast))
        assert (a.labels == b.labels).mean() >= 0.999 and abs(a.confidence - b.confidence).mean() < 0.002
    assert fast.memory is not None and fast.memory.counts["used"] == 3


@pytest.mark.gpu
def test_memory_goes_to_the_gpu_and_back():
    try:
        cuda.probe()
    except MissingPackage as reason:
        pytest.skip(str(reason))
    gpu, sent = cuda.Cuda(), np.arange(100_000, dtype=np.int32)
    address, back = gpu.allocate(sent.nbytes), np.zeros_like(sent)
    gpu.upload(address, sent)
    gpu.download(back, address)
    gpu.free()
    assert np.array_equal(sent, back)


# --- the cache -------------------------------------------------------------------------------------------------------


def write_engine(folder: Path, machine: Machine = ORIN, **changes) -> tuple[Path, dict]:
    """What `occ engine build` leaves, but for the engine's bytes."""
    engine = engine_path("0123456789abcdef" * 4, machine, "fp16", folder)
    engine.write_bytes(b"an engine")
    sidecar = {
        "format": FORMAT,
        "gpu": machine.gpu._asdict(),
        "tensorrt": machine.tensorrt,
        "onnx": {"name": "nano.onnx", "sha256": "0123456789abcdef" * 4},
        "precision": "fp16",
        "cameras": {"min": 1, "max": 12},
        "engine_sha256": hashlib.sha256(b"an engine").hexdigest(),
        "record": {"model": SMALL.model_dump(mode="json")},
    } | changes
    engine.with_suffix(".json").write_text(json.dumps(sidecar))
    return engine, sidecar


def test_an_engine_is_named_by_all_that_it_depends_on(tmp_path):
    engine, _ = write_engine(tmp_path)
    assert engine.name == "0123456789abcdef_trt10.3.0_sm87_fp16.engine"
    others = [
        engine_path("f" * 64, ORIN, "fp16", tmp_path),
        engine_path("0123456789abcdef" * 4, ORIN, "int8", tmp_path),
        engine_path("0123456789abcdef" * 4, ORIN._replace(tensorrt="10.7.0"), "fp16", tmp_path),
        engine_path("0123456789abcdef" * 4, Machine(Gpu("RTX 3090", "8.6"), "10.3.0"), "fp16", tmp_path),
    ]
    assert len({engine, *others}) == 5


@pytest.mark.parametrize(
    "here", [Machine(Gpu("NVIDIA GeForce RTX 3090", "8.6"), "10.3.0"), Machine(ORIN.gpu, "11.4.1")], ids=["GPU", "TRT"]
)
def test_an_engine_of_another_machine_is_refused_naming_both(here, tmp_path):
    engine, sidecar = write_engine(tmp_path)
    assert read_sidecar(engine) == sidecar
    require_this_machine(sidecar, ORIN, engine)
    with pytest.raises(InvalidInput) as caught:
        require_this_machine(sidecar, here, engine)
    assert str(ORIN) in str(caught.value) and str(here) in str(caught.value)
    assert str(caught.value).endswith("occ engine build nano.onnx")


def test_an_engine_that_is_not_what_its_json_says_is_never_run(tmp_path):
    engine, _ = write_engine(tmp_path)
    engine.write_bytes(b"an engin")
    with pytest.raises(CorruptInput, match=r"is not the engine of its json \(sha256"):
        read_sidecar(engine)
    engine, _ = write_engine(tmp_path, format="occ_core engine 0")
    with pytest.raises(CorruptInput, match="its format is 'occ_core engine 0'"):
        read_sidecar(engine)
    for text in ("{", "[]", '{"format": "x"}', json.dumps({"format": FORMAT, "engine_sha256": "", "gpu": []})):
        engine.with_suffix(".json").write_text(text)
        with pytest.raises(CorruptInput, match="not the json of an engine|not a JSON file|must be a JSON object"):
            read_sidecar(engine)
    engine.with_suffix(".json").unlink()
    with pytest.raises(MissingInput, match=r"\.json: the json that belongs to the engine"):
        read_sidecar(engine)
    engine.unlink()
    with pytest.raises(MissingInput, match="no such engine"):
        read_sidecar(engine)
