"""Static int8: torchao's PT2E with ExecuTorch's XNNPACK quantizer, calibrated once and rebuilt from numbers.

``quantization.json`` keeps the scale and zero point of every quantized tensor, so that an int8 program is made anew
from float weights and these numbers: nothing is unpickled, and every runtime gets the same scales.
"""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from models.detector import Detector
from models.run import Run
from stage import StageError


class QuantizedTensor(BaseModel):
    """How one tensor is stored: ``real = (integer - zero_point) * scale``, per tensor or per output channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    """The graph node whose value it is."""
    scale: list[float]
    zero_point: list[int]


class Quantization(BaseModel):
    """``quantization.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    quantizer: Literal["xnnpack"] = "xnnpack"
    weights: Literal["int8, symmetric, per channel"] = "int8, symmetric, per channel"
    activations: Literal["int8, affine, per tensor, histogram observer"] = (
        "int8, affine, per tensor, histogram observer"
    )
    calibration_crops: int
    calibration_fingerprint: str
    tensors: dict[str, QuantizedTensor]
    """By observer, in the order of the graph."""


class KnownRange(ObserverBase):  # type: ignore[misc]
    """Stands in for a calibrated observer and returns the scale and zero point that it had found."""

    def __init__(self, observer: Any, known: QuantizedTensor) -> None:
        super().__init__(observer.dtype)
        self.qscheme, self.quant_min, self.quant_max = observer.qscheme, observer.quant_min, observer.quant_max
        self.ch_axis = getattr(observer, "ch_axis", 0)
        self.register_buffer("scale", torch.tensor(known.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(known.zero_point, dtype=torch.int64))

    def forward(self, value: Tensor) -> Tensor:
        """Pass the value through."""
        return value

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point."""
        return self.scale, self.zero_point


def _prepare(detector: Detector, dynamic_batch: bool) -> GraphModule:
    """Return the fused detector as a graph with an observer at every tensor that will be quantized."""
    # Imported here: executorch's import takes seconds, and float runs do not need it.
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    size = detector.architecture.size
    example = torch.zeros(2 if dynamic_batch else 1, 3, size, size)
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},) if dynamic_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(detector.eval(), (example,), dynamic_shapes=shapes)
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        prepared: GraphModule = prepare_pt2e(program.module(), quantizer)
    return prepared


def _observers(graph: GraphModule) -> dict[str, tuple[str, ObserverBase]]:
    """Return the observers of a prepared graph by name, each with the node that it observes."""
    found = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, ObserverBase):
                found[str(node.target)] = (node.args[0].name, module)
    return found


def calibrate(detector: Detector, batches: Iterable[Tensor], crops: int, fingerprint: str) -> Quantization:
    """Find the range of every tensor of a fused detector on real pictures, float32 [N, 3, S, S], normalized."""
    graph = _prepare(detector, dynamic_batch=True)
    with torch.inference_mode():
        for pictures in batches:
            graph(pictures)
    tensors = {}
    for name, (node, observer) in _observers(graph).items():
        scale, zero_point = observer.calculate_qparams()
        tensors[name] = QuantizedTensor(
            of=node, scale=scale.flatten().tolist(), zero_point=zero_point.flatten().tolist()
        )
    return Quantization(calibration_crops=crops, calibration_fingerprint=fingerprint, tensors=tensors)


def quantized(detector: Detector, quantization: Quantization, dynamic_batch: bool) -> GraphModule:
    """Make the int8 program of a fused detector: float32 [N, 3, S, S] -> logits float32 [N, 2].

    Raises StageError if the numbers do not belong to this network.
    """
    graph = _prepare(detector, dynamic_batch)
    observers = _observers(graph)
    nodes = {name: node for name, (node, _) in observers.items()}
    if nodes != {name: tensor.of for name, tensor in quantization.tensors.items()}:
        raise StageError(
            f"quantization.json names {len(quantization.tensors)} tensors, the network has {len(nodes)} to quantize, "
            "and they differ: quantize the run again"
        )
    for name, (_, observer) in observers.items():
        setattr(graph, name, KnownRange(observer, quantization.tensors[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: GraphModule = convert_pt2e(graph)
    return program


def rebuild(run: Run, dynamic_batch: bool) -> nn.Module:
    """Make the int8 program of a run from its float weights and ``quantization.json``."""
    try:
        quantization = Quantization.model_validate_json(run.read("quantization.json"))
    except ValidationError as error:
        raise StageError(f"{run.path / 'quantization.json'} is not valid: {error.errors()[0]['msg']}") from error
    return quantized(run.detector(), quantization, dynamic_batch)
