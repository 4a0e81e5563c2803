"""Runs an engine in TensorRT >= 10.3. It has not been measured for this project; docs/backends.md says what was
checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from occ_core.camera import Rig
from occ_core.errors import CorruptInput, InvalidInput, MissingInput
from occ_core.inference.backends.cuda import Cuda, CudaError
from occ_core.inference.backends.exported import (
    OUTPUTS,
    PAST_INPUTS,
    STATE_OUTPUT,
    ExportedSession,
    network_inputs,
    require_outputs,
)
from occ_core.inference.backends.tensorrt_engine import (
    Machine,
    engine_path,
    how_made,
    read_exported,
    read_sidecar,
    require_this_machine,
    this_machine,
)
from occ_core.models.checkpoint import trained_cameras
from occ_core.models.easyocc.config import parse_config
from occ_core.models.easyocc.past import Past, empty_past
from occ_core.models.easyocc.table import Table, TableCache

PER_MOMENT = {"images", *PAST_INPUTS}


class TensorRtSession(ExportedSession):
    """Buffers are made for the latest number of cameras; a rig's table is uploaded once."""

    def __init__(self, path: Path):
        """Load an engine; for an `.onnx` file, the engine that `occ engine build` made of it for this machine.

        Raises:
            MissingPackage, MissingInput, CorruptInput, InvalidInput: an engine of another GPU or TensorRT.
        """
        here, trt = this_machine()
        engine_file = path if path.suffix == ".engine" else _kept_engine(path, here)
        sidecar = read_sidecar(engine_file)
        require_this_machine(sidecar, here, engine_file)
        self.config, self.cameras = parse_config(sidecar["record"]["model"]), trained_cameras(sidecar["record"])
        self._most_cameras = sidecar["cameras"]["max"]
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = runtime = trt.Runtime(self._logger)
        self._engine = engine = runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if engine is None:
            raise CorruptInput(f"{engine_file}: TensorRT {here.tensorrt} cannot load it; build it again")
        require_outputs({engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}, self.config, engine_file)
        self._context = engine.create_execution_context()
        self._cuda = Cuda()
        self._tables = TableCache(self.config)
        cells = np.empty((1, *self.config.grid_shape), dtype=np.uint8)
        self._answer: dict[str, np.ndarray] = dict.fromkeys(OUTPUTS, cells)  # arrays of the outputs' shapes and types
        if self.config.memory_channels:
            self._answer[STATE_OUTPUT] = empty_past(self.config).state
        self._addresses: dict[str, int] = {}
        self._prepared_for = 0
        self._uploaded: Table | None = None

    def _outputs(self, images: np.ndarray, rig: Rig, missing: frozenset[str], past: Past | None) -> list[np.ndarray]:
        if len(rig) > self._most_cameras:
            raise InvalidInput(f"the rig has {len(rig)} cameras, the engine takes {self._most_cameras} at most")
        table = self._tables.of(rig, missing)
        inputs = network_inputs(images, table, past)
        self._cuda.enter()
        self._prepare(len(rig), inputs)
        for name, array in inputs.items():
            if name in PER_MOMENT or self._uploaded is not table:
                self._cuda.upload(self._addresses[name], array)
        self._uploaded = table
        if not self._context.execute_async_v3(self._cuda.stream):
            raise CudaError("TensorRT could not run the engine; its log says why")
        return [self._downloaded(name) for name in self._answer]

    def _prepare(self, cameras: int, inputs: dict[str, np.ndarray]) -> None:
        if self._prepared_for == cameras:
            return
        self._cuda.free()
        self._uploaded = None
        sizes = {name: array.nbytes for name, array in (inputs | self._answer).items()}
        self._addresses = {name: self._cuda.allocate(size) for name, size in sizes.items()}
        context: Any = self._context
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise InvalidInput(f"the engine does not take '{name}' of shape {array.shape}")
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        self._prepared_for = cameras

    def _downloaded(self, name: str) -> np.ndarray:
        array = np.empty_like(self._answer[name])
        self._cuda.download(array, self._addresses[name])
        return array


def _kept_engine(onnx_file: Path, here: Machine) -> Path:
    content, entries = read_exported(onnx_file)
    engine_file = engine_path(hashlib.sha256(content).hexdigest(), here, how_made(entries)["precision"])
    if not engine_file.is_file():
        raise MissingInput(f"{engine_file}: no engine of {onnx_file} for {here} yet; run: occ engine build {onnx_file}")
    return engine_file
