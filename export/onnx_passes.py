"""Passes over a converted ``.onnx`` that let ONNX Runtime use fast kernels; they change no value."""

from typing import Any

import numpy as np

EXACT_ON_X86 = "session.x64quantprecision"
"""Session option of ONNX Runtime: products of bytes are added so that they cannot overflow."""


def rewrite(model: Any) -> None:
    """Apply every pass of this module to an ONNX model as torch's exporter writes it, in place."""
    pool_globally(model)
    widen_normalization(model)
    make_activations_unsigned(model)
    part_zero_points(model)
    remove_traces(model)


def pool_globally(model: Any) -> None:
    """Replace, in place, each ReduceMean over height and width that keeps both as 1 by a GlobalAveragePool.

    Squeeze-and-excite pools in this way. ONNX Runtime fuses the pool, but not the mean, with the quantization around
    it: this removes ten of 39 dequantizations of an int8 RepViT.
    """
    from onnx import numpy_helper

    graph = model.graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4 or node.input[1] not in constants:
            continue
        keeps_dimensions = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if keeps_dimensions and sorted(numpy_helper.to_array(constants[node.input[1]]) % 4) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]


def widen_normalization(model: Any) -> None:
    """Repeat, in place, the means and scales of the pixels' channels once for each column.

    In an int8 program ONNX Runtime moves the permutation of [N, H, W, 3] behind the normalization. Then it takes
    0.25 ms, a fifteenth of an int8 RepViT, to broadcast three numbers along the last axis; a row of them takes 0.01 ms.
    """
    from onnx import numpy_helper

    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) < 4 or shape[-1] != 3:
        return
    *_, width, channels = shape
    constants = {constant.name: constant for constant in model.graph.initializer}
    centre = next((node for node in model.graph.node if node.op_type == "Sub"), None)
    scales = [
        node for node in model.graph.node if centre and node.op_type == "Mul" and node.input[0] == centre.output[0]
    ]
    for node in filter(None, (centre, *scales)):
        constant = constants.get(node.input[1])
        if constant is not None and list(constant.dims) == [1, channels, 1, 1]:
            row = np.repeat(numpy_helper.to_array(constant), width, axis=3)
            constant.CopyFrom(numpy_helper.from_array(row, constant.name))


def make_activations_unsigned(model: Any) -> None:
    """Shift, in place, the zero point of every int8 activation by 128 to uint8: it represents the same values.

    ONNX Runtime has fast kernels for unsigned activations with signed weights; on signed ones int8 is slower than
    fp32. Weights (constants behind a DequantizeLinear) stay signed. See ONNX Runtime's quantization documentation.
    """
    from onnx import TensorProto, numpy_helper

    constants = {constant.name: constant for constant in model.graph.initializer}
    shifted: dict[str, str] = {}
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        dequantizes_activation = node.op_type == "DequantizeLinear" and node.input[0] in quantized
        if not (node.op_type == "QuantizeLinear" or dequantizes_activation):
            continue
        if constants[node.input[2]].data_type != TensorProto.INT8:
            continue
        name = node.input[2]
        if name not in shifted:
            shifted[name] = f"{name}_unsigned"
            zero_point = numpy_helper.to_array(constants[name]).astype(np.int16) + 128
            model.graph.initializer.append(numpy_helper.from_array(zero_point.astype(np.uint8), shifted[name]))
        node.input[2] = shifted[name]
    # The value types recorded for the graph's inner tensors are those before the shift.
    del model.graph.value_info[:]
    used = {name for node in model.graph.node for name in node.input}
    remaining = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(remaining)


def part_zero_points(model: Any) -> None:
    """Give, in place, each layer's weights a zero point constant of their own.

    Where layers share one, ONNX Runtime (1.31) fails with ``EXACT_ON_X86``: it converts each layer's under one name.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    assigned: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants or len(node.input) < 3:
            continue
        name = node.input[2]
        if name in assigned:
            copy = model.graph.initializer.add()
            copy.CopyFrom(constants[name])
            copy.name = node.input[2] = f"{name}_{number}"
        assigned.add(name)


def remove_traces(model: Any) -> None:
    """Remove, in place, the records of where each node came from in Python: a seventh of an int8 file."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")
