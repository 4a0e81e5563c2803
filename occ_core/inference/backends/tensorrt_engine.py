"""TensorRT engines: each is built once for a GPU and a TensorRT version, and kept with a json that describes it.

One code path for TensorRT 10.3 (JetPack 6) to 11: networks are strongly typed, so the precision is the ONNX file's own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from occ_core.errors import CorruptInput, InvalidInput, MissingInput, MissingPackage, need
from occ_core.files import default_cache, read_json, write_atomically
from occ_core.inference.backends.cuda import Gpu, probe
from occ_core.inference.backends.exported import EXPORT_KEY, METADATA_KEY, described
from occ_core.models.easyocc.config import EasyOccConfig
from occ_core.models.easyocc.table import RAY_CHANNELS

FORMAT = "occ_core engine 1"
CAMERAS = 1, 6, 12  # fewest, usual and most of the rigs that one engine serves
WORKSPACE_BYTES = 1 << 30


class Machine(NamedTuple):
    """The GPU and TensorRT version that an engine is bound to."""

    gpu: Gpu
    tensorrt: str  # version

    def __str__(self) -> str:
        return f"{self.gpu.name} (compute capability {self.gpu.compute_capability}), TensorRT {self.tensorrt}"


def this_machine() -> tuple[Machine, Any]:
    """Return GPU, TensorRT version and the TensorRT module. The driver is asked first, since TensorRT crashes without
    one.

    Raises:
        MissingPackage: says what is missing, driver, GPU or TensorRT, and what to install.
    """
    gpu = probe()
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:  # OSError: its libraries are not there
        raise MissingPackage(
            f"backend tensorrt needs TensorRT >= 10.3 ({error}); on a Jetson: sudo apt install python3-libnvinfer-dev, "
            "elsewhere see https://docs.nvidia.com/deeplearning/tensorrt"
        ) from error
    return Machine(gpu, trt.__version__), trt


def build_engine(onnx_file: Path, folder: Path | None = None) -> Path:
    """Build the engine of an exported model for this machine, unless it is there already.

    Raises:
        MissingPackage, MissingInput, CorruptInput: TensorRT's parser refuses the file, or its builder fails.
    """
    onnx_file = Path(onnx_file)
    content, entries = read_exported(onnx_file)
    machine, trt = this_machine()
    made = how_made(entries)
    sha256 = hashlib.sha256(content).hexdigest()
    out = engine_path(sha256, machine, made["precision"], folder)
    if out.is_file() and out.with_suffix(".json").is_file():
        return out
    config, _ = described(entries.get(METADATA_KEY), onnx_file)
    plan = _serialized(trt, content, config, onnx_file)
    sidecar = {
        "format": FORMAT,
        "gpu": machine.gpu._asdict(),
        "tensorrt": machine.tensorrt,
        "onnx": {"name": onnx_file.name, "sha256": sha256},
        **made,
        "cameras": {"min": CAMERAS[0], "max": CAMERAS[2]},
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "record": json.loads(entries[METADATA_KEY]),
    }
    write_atomically(out.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())
    write_atomically(out, plan)
    return out


def engine_path(onnx_sha256: str, machine: Machine, precision: str, folder: Path | None = None) -> Path:
    """Return where the engine of a model for a machine is kept; its name contains everything that it depends on."""

    capability = machine.gpu.compute_capability.replace(".", "")
    name = f"{onnx_sha256[:16]}_trt{machine.tensorrt}_sm{capability}_{precision}.engine"
    return (default_cache() / "engines" if folder is None else Path(folder)) / name


def read_exported(onnx_file: Path) -> tuple[bytes, dict[str, str]]:
    """Read content and metadata of an exported model.

    Raises:
        MissingInput, CorruptInput, MissingPackage.
    """
    if not onnx_file.is_file():
        raise MissingInput(f"{onnx_file}: no such model")
    onnx = need("onnx", "onnx")
    content = onnx_file.read_bytes()
    try:
        graph = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own types
        raise CorruptInput(f"{onnx_file}: not a readable ONNX model ({' '.join(str(error).split())[:200]})") from error
    return content, {entry.key: entry.value for entry in graph.metadata_props}


def how_made(entries: dict[str, str]) -> dict[str, Any]:
    """Return the precision, and the calibration if there was one, from an exported model's metadata."""
    return json.loads(entries.get(EXPORT_KEY, '{"precision": "fp32"}'))


def read_sidecar(engine_file: Path) -> dict[str, Any]:
    """Read the json beside an engine, after checking that it describes this engine.

    Raises:
        MissingInput, CorruptInput: before anything of the engine is run.
    """
    if not engine_file.is_file():
        raise MissingInput(f"{engine_file}: no such engine")
    beside = engine_file.with_suffix(".json")
    if not beside.is_file():
        raise MissingInput(f"{beside}: the json that belongs to the engine is not there")
    sidecar = read_json(beside)
    try:
        format_, sha256 = sidecar["format"], sidecar["engine_sha256"]
        Gpu(**sidecar["gpu"]), sidecar["tensorrt"], sidecar["record"]["model"], sidecar["cameras"]["max"]
        sidecar["onnx"]["name"]
    except (TypeError, KeyError) as error:
        raise CorruptInput(f"{beside}: not the json of an engine ({error!r})") from error
    if format_ != FORMAT:
        raise CorruptInput(f"{beside}: its format is '{format_}', not '{FORMAT}'; build the engine again")
    if (found := hashlib.sha256(engine_file.read_bytes()).hexdigest()) != sha256:
        raise CorruptInput(
            f"{engine_file}: is not the engine of its json (sha256 {found[:16]}..., not {sha256[:16]}...)"
        )
    return sidecar


def require_this_machine(sidecar: dict[str, Any], here: Machine, engine_file: Path) -> None:
    """Raise InvalidInput, naming both, for an engine of another GPU or another TensorRT."""
    built = Machine(Gpu(**sidecar["gpu"]), sidecar["tensorrt"])
    if built != here:
        raise InvalidInput(
            f"{engine_file}: built for {built}; here is {here}. Build it here: "
            f"occ engine build {sidecar['onnx']['name']}"
        )


def _serialized(trt: Any, content: bytes, config: EasyOccConfig, onnx_file: Path) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise CorruptInput(f"{onnx_file}: TensorRT {trt.__version__} cannot read it: {' '.join(reasons.split())[:400]}")
    builder_config = builder.create_builder_config()
    builder_config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    w, h = config.feature_size
    for name, shape in (("images", (config.input_height, config.input_width, 3)), ("rays", (RAY_CHANNELS, h, w))):
        profile.set_shape(name, *((cameras, *shape) for cameras in CAMERAS))
    builder_config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, builder_config)
    if plan is None:
        raise CorruptInput(f"{onnx_file}: TensorRT {trt.__version__} could not build an engine; its log above says why")
    return bytes(plan)
