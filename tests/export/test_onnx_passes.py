"""Rewritten ONNX graphs compute what they computed, in operators that ONNX Runtime has fast kernels for."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle import Bundle
from export.onnx_passes import pool_globally, widen_normalization

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)


def program(nodes, constants, given, taken=("pixels", TensorProto.UINT8, [2, 6, 5, 3]), inner=()):
    """Return a model of some nodes that gives ``out``."""
    graph = helper.make_graph(
        nodes,
        "program",
        [helper.make_tensor_value_info(*taken)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, given)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inner],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def computed(model, given):
    """Return what ONNX Runtime makes of an input."""
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: given})[0]


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims", "pooled"),
    [
        ([2, 3, 6, 5], [2, 3], 1, True),
        ([2, 3, 6, 5], [-1, -2], 1, True),
        ([2, 3, 6, 5], [2, 3], 0, False),
        ([2, 3, 6, 5], [1, 2], 1, False),
        ([2, 3, 6, 5, 2], [2, 3], 1, False),
    ],
)
def test_only_means_over_height_and_width_become_pools(shape, axes, keepdims, pooled):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = values.mean(axis=tuple(axes), keepdims=bool(keepdims))
    model = program(
        [
            helper.make_node("Relu", ["x"], ["inner"]),
            helper.make_node("ReduceMean", ["inner", "axes"], ["out"], keepdims=keepdims),
        ],
        {"axes": np.array(axes)},
        list(expected.shape),
        ("x", TensorProto.FLOAT, shape),
        [("inner", shape)],
    )
    pool_globally(model)
    assert [node.op_type for node in model.graph.node] == ["Relu", "GlobalAveragePool" if pooled else "ReduceMean"]
    np.testing.assert_allclose(
        computed(model, np.abs(values)), np.abs(values).mean(tuple(axes), keepdims=bool(keepdims)), rtol=1e-6
    )


def test_other_constants_of_three_channels_stay():
    """As the scales of three attention heads."""
    model = program(
        [
            helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["cast"], ["permuted"], perm=[0, 3, 1, 2]),
            helper.make_node("Sub", ["permuted", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "heads"], ["out"]),
        ],
        {name: np.ones((1, 3, 1, 1), np.float32) for name in ("mean", "scale", "heads")},
        [2, 3, 6, 5],
    )
    widen_normalization(model)
    assert {c.name: list(c.dims)[3] for c in model.graph.initializer} == {"mean": 5, "scale": 5, "heads": 1}


def test_a_row_of_means_normalizes_as_one_mean():
    mean, scale = (np.array(own, np.float32).reshape(1, 3, 1, 1) for own in ([124, 116, 104], [0.017, 0.018, 0.019]))
    model = program(
        [
            helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["cast"], ["permuted"], perm=[0, 3, 1, 2]),
            helper.make_node("Sub", ["permuted", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "scale"], ["out"]),
        ],
        {"mean": mean, "scale": scale},
        [2, 3, 6, 5],
    )
    widen_normalization(model)
    assert [list(constant.dims) for constant in model.graph.initializer] == [[1, 3, 1, 5]] * 2
    np.testing.assert_array_equal(
        computed(model, PIXELS), (PIXELS.transpose(0, 3, 1, 2).astype(np.float32) - mean) * scale
    )


def test_exported_students_have_both(bundle_path):
    bundle = Bundle(bundle_path)
    for scheme in ("fp32", "int8"):
        artifact = bundle.artifact(f"test_byobnet-{scheme}.onnx")
        graph = onnx.load(bundle.path / artifact.file).graph
        operators = [node.op_type for node in graph.node]
        assert "GlobalAveragePool" in operators
        assert sum(list(constant.dims) == [1, 3, 1, 64] for constant in graph.initializer) == 2
