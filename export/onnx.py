"""ONNX: a run as a ``.onnx`` for ONNX Runtime, and the runtime that loads it."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "pixels", "fake_probability"
OPSET = 20
"""The first with Gelu as one operator."""


def write(detector: Any, size: int, path: Path) -> dict[str, Any]:
    """Write ``detector`` (uint8 [1, size, size, 3] -> float32 [1]) as a ``.onnx`` and return its operators."""
    import onnx
    import torch

    example = (torch.zeros(1, size, size, 3, dtype=torch.uint8),)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.export.export(detector, example)
        exported = torch.onnx.export(
            program,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    make_activations_unsigned(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return {"operators": sorted({f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in model.graph.node})}


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


class OnnxRunner:
    """Runs a ``.onnx``: crops uint8 [N, S, S, 3] RGB, one at a time, to P(fake) float32 [N]."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score crops."""
        run = self._session.run
        scores = [run([OUTPUT], {INPUT: np.ascontiguousarray(frame[None])})[0][0] for frame in pixels]
        return np.array(scores, np.float32)
