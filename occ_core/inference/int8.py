"""Converts an exported graph to int8, calibrated on real frames: symmetric Q/DQ nodes stand before the layers that gain
from it.

All zero points are 0 and weights have a scale a channel, which TensorRT asks for and OpenVINO runs as fast as its own
format. Only what a layer reads is rounded. What it gives is not, as onnxruntime's own quantiser has it: before its
activation it may have a far wider range than after it, and residual sums would be rounded at each of their terms.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from occ_core.errors import need
from occ_core.inference.half import is_layer

THREADS = 2  # of the runs that calibrate
LEVELS = 127  # of each sign
WEIGHT_LEVELS = 63  # CPUs without VNNI add two products in 16 bits, which more would overflow
KEPT_FLOAT = (
    "/neck/rays/",  # one scale would have to fit directions and what is left of 1 / distance at 20 m
    "/birds_eye/enter/",  # joins features and places of unlike range; OpenVINO mistakes their scales
    "/to_verdicts/",  # compared with thresholds
    "/birds_eye/keep/",  # what it gives is squashed into -1..1 and remembered: coarse steps would add up
)


def to_int8(model: Any, frames: list[dict[str, np.ndarray]]) -> Any:
    """Return a copy of an onnx ModelProto with its layers in int8.

    Args:
        frames: the network's inputs by name, of each frame to calibrate with.
    """
    onnx = need("onnx", "onnx")
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    layers = [node for node in graph.node if _gains(node)]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    before: defaultdict[str, list[Any]] = defaultdict(list)
    for name, largest in _largest(model, {layer.input[0] for layer in layers}, frames).items():
        first = next(layer for layer in layers if layer.input[0] == name)
        constants |= {f"{name}_scale": np.float32(largest / LEVELS or 1), f"{name}_zero": np.int8(0)}
        before[first.name] += _pair(name, [f"{name}_scale", f"{name}_zero"])
    for layer in layers:
        weight = layer.input[1]
        parts = [f"{weight}_int8", f"{weight}_scale", f"{weight}_zero"]
        constants |= dict(zip(parts, _rounded(constants.pop(weight)), strict=True))
        before[layer.name].append(_node("DequantizeLinear", parts, f"{weight}_rounded", axis=0))
        layer.input[0], layer.input[1] = f"{layer.input[0]}_rounded", f"{weight}_rounded"
    nodes = [part for node in graph.node for part in (*before[node.name], node)]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    return quantised


def _gains(node: Any) -> bool:
    return node.op_type == "Conv" and is_layer(node) and not node.name.startswith(KEPT_FLOAT)


def _largest(model: Any, names: set[str], frames: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """The largest magnitude of each of these tensors over all frames."""
    onnx, runtime = need("onnx", "onnx"), need("onnxruntime", "onnx")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in sorted(names):
        watched.graph.node.append(_node("Abs", [name], f"{name}_magnitude"))
        watched.graph.node.append(_node("ReduceMax", [f"{name}_magnitude"], f"{name}_largest", keepdims=0))
        watched.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}_largest", onnx.TensorProto.FLOAT, []))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = runtime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = np.array([session.run(None, inputs) for inputs in frames]).max(axis=0)
    return dict(zip(sorted(names), found.tolist(), strict=True))


def _pair(name: str, scale: list[str]) -> list[Any]:
    return [
        _node("QuantizeLinear", [name, *scale], f"{name}_int8"),
        _node("DequantizeLinear", [f"{name}_int8", *scale], f"{name}_rounded"),
    ]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return need("onnx", "onnx").helper.make_node(kind, inputs, [output], output, **attributes)


def _rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round weights (C, ...) to int8; returns them with their scales and zero points (C,)."""
    scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1), 1e-12).astype(np.float32) / WEIGHT_LEVELS
    in_steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(in_steps).astype(np.int8), scale, np.zeros(len(weight), np.int8)
