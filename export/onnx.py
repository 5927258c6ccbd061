"""ONNX: a run as a ``.onnx`` for ONNX Runtime, and the runtime that loads it."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.runtimes import Loaded, ProgramName, Programs, program_file

if TYPE_CHECKING:
    from export.programs import Graph

OPSET = 20
"""The first with Gelu as one operator."""


def write(graphs: Sequence["Graph"], path: Path) -> dict[str, Any]:
    """Write one program as a ``.onnx``, or several into a folder; return their operators by name."""
    import onnx

    operators = {}
    for graph in graphs:
        file = program_file(path, "onnxruntime", graph.name)
        file.parent.mkdir(exist_ok=True)
        model = _converted(graph)
        make_activations_unsigned(model)
        onnx.checker.check_model(model)
        onnx.save(model, file)
        operators[graph.name] = sorted({f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in model.graph.node})
    return {"operators": operators}


def _converted(graph: "Graph") -> Any:
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            graph.exported,
            graph.example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=[graph.output.name],
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto


def make_activations_unsigned(model: Any) -> None:
    """Move every int8 activation's zero point by 128 to uint8, in place: the same values are represented.

    ONNX Runtime has fast kernels for unsigned activations with signed weights; on signed ones int8 is slower than
    fp32. Weights (constants behind a DequantizeLinear) stay signed. See ONNX Runtime's quantization documentation.
    """
    from onnx import TensorProto, numpy_helper

    constants = {constant.name: constant for constant in model.graph.initializer}
    shifted: dict[str, str] = {}
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        activation = node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in quantized
        )
        if not activation or constants[node.input[2]].data_type != TensorProto.INT8:
            continue
        name = node.input[2]
        if name not in shifted:
            shifted[name] = f"{name}_unsigned"
            zero_point = numpy_helper.to_array(constants[name]).astype(np.int16) + 128
            model.graph.initializer.append(numpy_helper.from_array(zero_point.astype(np.uint8), shifted[name]))
        node.input[2] = shifted[name]
    # Value types recorded for the graph's inner tensors are those before the move.
    del model.graph.value_info[:]
    used = {name for node in model.graph.node for name in node.input}
    kept = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def opened(path: Path, threads: int) -> Programs:
    """Open a ``.onnx``, or a folder of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3

    def load(name: ProgramName) -> Loaded:
        file = program_file(path, "onnxruntime", name)
        session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            output: NDArray[np.float32] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
            return output

        return run

    return load
