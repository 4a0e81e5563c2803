"""Converts an exported graph to fp16: the layers' weights and arithmetic change; inputs, outputs and what lies between
layers do not."""

from __future__ import annotations

from typing import Any

MOVES = ("ArgMax", "Gather", "Reshape", "Transpose")  # give back what they get, so their type is their input's
KEPT_INPUTS = {"Resize": (1, 2)}  # region and scales, which ONNX wants in fp32


def is_layer(node: Any) -> bool:
    """Whether an exported node belongs to a layer, whose name is its path in the network, such as /neck/smooth/...

    Others are arithmetic between layers: thresholds, and probabilities along viewing rays, which fp16 rounds to 0.
    """
    return node.name.count("/") >= 2


def to_half(graph: Any) -> None:
    """Convert an onnx GraphProto in place; every change of type becomes a Cast node, which all runtimes obey."""
    from onnx import helper, shape_inference

    inferred = shape_inference.infer_shapes(helper.make_model(graph)).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output, *graph.initializer]
    floats = {value.name for value in values if _type(value) == _FLOAT}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    half: set[str] = set()
    cast: dict[str, str] = {}  # name of the same value in the other type
    nodes: list[Any] = []

    def other_type(name: str) -> str:
        if name not in cast:
            cast[name] = f"{name}_as_{'float' if name in half else 'half'}"
            if name in weights:
                graph.initializer.append(_half_tensor(weights[name], cast[name]))
            else:
                to = _FLOAT if name in half else _HALF
                nodes.append(helper.make_node("Cast", [name], [cast[name]], name=cast[name], to=to))
        return cast[name]

    for node in list(graph.node):
        wants_half = is_layer(node) or (node.op_type in MOVES and node.input[0] in half)
        for i, name in enumerate(node.input):
            kept = i in KEPT_INPUTS.get(node.op_type, ())
            if name in floats and (name in half) != wants_half and not kept:
                node.input[i] = other_type(name)
        if wants_half and node.op_type != "Constant":
            half |= floats & set(node.output)
        nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


_FLOAT, _HALF = 1, 10  # of onnx.TensorProto


def _type(value: Any) -> int:
    return value.data_type if hasattr(value, "data_type") else value.type.tensor_type.elem_type


def _half_tensor(tensor: Any, name: str) -> Any:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
