"""What is rounded in an int8 graph, and how coarsely."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from occ_core.inference.int8 import to_int8  # noqa: E402

C = 8
FLOAT = onnx.TensorProto.FLOAT


def bottleneck():
    """Expand to ReLU6, depthwise, project, with a residual beside them, and a last layer.

    What the first layer gives reaches to +-100, of which ReLU6 keeps 0 to 6.
    """
    rng = np.random.default_rng(0)
    shapes = {"expand": (C, 3, 3, 3), "depthwise": (C, 1, 3, 3), "project": (C, C, 1, 1), "last": (4, C, 1, 1)}
    weights = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    weights["expand"][::2] *= 40
    constants = {f"{name}.weight": weight.astype(np.float32) for name, weight in weights.items()}
    constants |= {"zero": np.float32(0), "six": np.float32(6)}

    def conv(name, data, out, **attributes):
        return helper.make_node("Conv", [data, f"{name}.weight"], [out], f"/net/{name}/Conv", **attributes)

    nodes = [
        conv("expand", "images", "wide", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["wide", "zero", "six"], ["clipped"], "/net/Clip"),
        conv("depthwise", "clipped", "deep", pads=[1, 1, 1, 1], group=C),
        conv("project", "deep", "branch"),
        helper.make_node("Add", ["clipped", "branch"], ["sum"], "/net/Add"),
        conv("last", "sum", "answer"),
    ]
    value = helper.make_tensor_value_info
    ends = [value("images", FLOAT, [1, 3, 12, 12])], [value("answer", FLOAT, [1, 4, 12, 12])]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "bottleneck", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def frames(count=8):
    rng = np.random.default_rng(1)
    return [{"images": rng.uniform(-1, 1, (1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def answers(model, of):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.array([session.run(None, frame)[0] for frame in of])


def test_steps_are_those_of_what_is_left_after_an_activation():
    model = bottleneck()
    before = model.SerializeToString()
    quantised = to_int8(model, frames())
    assert model.SerializeToString() == before
    a, b = answers(model, frames()), answers(quantised, frames())
    noise_db = 10 * np.log10(((a - b) ** 2).mean() / (a**2).mean())
    assert -60 < noise_db < -25
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    assert constants["clipped_scale"] == pytest.approx(6 / 127)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    rounded = constants["expand.weight_int8"] * constants["expand.weight_scale"][:, None, None, None]
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 63
    assert constants["expand.weight_int8"].dtype == np.int8 and np.abs(constants["expand.weight_int8"]).max() == 63
    assert (np.abs(rounded - weight) <= 0.51 * steps).all()


def test_only_what_layers_read_is_rounded_and_sums_are_not():
    graph = to_int8(bottleneck(), frames(1)).graph
    onnx.checker.check_graph(graph)
    rounded = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(rounded) == ["clipped", "deep", "images", "sum"]
    readers = {name: node.op_type for node in graph.node for name in node.input}
    assert all(readers[n.output[0]] == "Conv" for n in graph.node if n.op_type == "DequantizeLinear")
    (total,) = (node for node in graph.node if node.op_type == "Add")
    assert list(total.input) == ["clipped", "branch"]


def test_what_no_frame_has_shown_is_rounded_somehow():
    """A layer that reads nothing but zeros in all frames has no range."""
    dark = [{"images": np.zeros((1, 3, 12, 12), np.float32)}]
    assert np.isfinite(answers(to_int8(bottleneck(), dark), frames(1))).all()
