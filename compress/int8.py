"""Static int8: torchao's PT2E with ExecuTorch's XNNPACK quantizer, calibrated once and rebuilt from numbers.

``quantization.json`` keeps the scale and zero point of every quantized tensor, so that an int8 program is made anew
from float weights and these numbers: nothing is unpickled, and every runtime gets the same scales. Before it becomes
an integer program the same graph rounds in float32 (``simulated``), which is how settings are compared.

What is quantized is the backbone, picture by picture. The head stays in float32: int8 logits come in coarse steps,
which to first order alone costs more than all other rounding together (docs/lab-notes.md), and a frame's head has some
millionths of the multiplications; a clip's is run once, where its backbone is run for each frame.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from operator import attrgetter
from types import MethodType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from compress.observers import OBSERVERS, Candidates, Clamped, ObserverName
from models.detector import Detector
from models.run import Run
from stage import StageError, reason_of

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.linear.default)
"""Operations with weights, which are quantized or stay in float32."""
CLAMPS: dict[Any, Callable[[Node], tuple[float, float]]] = {
    aten.relu.default: lambda _: (0.0, math.inf),
    aten.relu_.default: lambda _: (0.0, math.inf),
    aten.hardtanh.default: lambda node: (float(node.args[1]), float(node.args[2])),  # type: ignore[arg-type]
    aten.hardtanh_.default: lambda node: (float(node.args[1]), float(node.args[2])),  # type: ignore[arg-type]
}
"""Operations that cut off values, and where."""


class QuantizedTensor(BaseModel):
    """How one tensor is stored: ``real = (integer - zero_point) * scale``, per tensor or per output channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: list[float]
    zero_point: list[int]


Tensors = dict[str, QuantizedTensor]
"""By the graph node whose value it is."""


class Quantization(BaseModel):
    """``quantization.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[3] = 3
    quantizer: Literal["xnnpack"] = "xnnpack"
    weights: Literal["int8, symmetric, per channel"] = "int8, symmetric, per channel"
    activations: Literal["int8, affine, per tensor"] = "int8, affine, per tensor"
    observer: ObserverName
    """How the ranges of activations were found."""
    float_layers: list[str]
    """Layers of the backbone that stay in float32."""
    calibration_crops: int
    calibration_fingerprint: str
    tensors: Tensors


class Rounding(ObserverBase):  # type: ignore[misc]
    """Stands in for a calibrated observer: rounds as int8 will, in float32, and knows the scale and zero point."""

    def __init__(self, observer: Any, known: QuantizedTensor) -> None:
        super().__init__(observer.dtype)
        self.qscheme, self.quant_min, self.quant_max = observer.qscheme, observer.quant_min, observer.quant_max
        self.ch_axis = getattr(observer, "ch_axis", 0)
        self.register_buffer("scale", torch.tensor(known.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(known.zero_point, dtype=torch.int32))

    def forward(self, value: Tensor) -> Tensor:
        """Return the value rounded to what int8 can hold; the gradient is 1 within the range and 0 beyond."""
        if self.qscheme == torch.per_channel_symmetric:
            return torch.fake_quantize_per_channel_affine(
                value, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max
            )
        return torch.fake_quantize_per_tensor_affine(value, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point."""
        return self.scale, self.zero_point.long()


def traced(detector: Detector, dynamic_batch: bool = True) -> GraphModule:
    """Return a fused detector's backbone as a graph of ATen operations: float32 [N, 3, S, S] -> [N, D]."""
    size = detector.architecture.size
    example = torch.zeros(2 if dynamic_batch else 1, 3, size, size)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(detector.backbone.eval(), (example,), dynamic_shapes=shapes).module()
    assert isinstance(graph, GraphModule)
    for node in graph.graph.nodes:
        if node.target == aten.relu6.default:  # the form that quantizer and runtimes know
            node.target, node.args = aten.hardtanh.default, (node.args[0], 0.0, 6.0)
    graph.recompile()
    return graph


def layers_of(graph: GraphModule) -> dict[Node, str]:
    """Return the nodes that have weights, in order, each with the name of its module."""
    found = {}
    for node in graph.graph.nodes:
        if node.target in LAYERS:
            weight = node.args[1]
            while weight.op == "call_module":  # its observer
                weight = weight.args[0]
            found[node] = str(weight.target).removesuffix(".weight")
    return found


def floating(graph: GraphModule, layers: Collection[str]) -> set[str]:
    """Return the names of the nodes that compute in float32: of ``layers``, and what comes between such."""
    names, found = layers_of(graph), set()
    for node in graph.graph.nodes:
        operands = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
        if node in names:
            stays = names[node] in layers
        else:
            stays = node.op == "placeholder" or (bool(operands) and all(o.name in found for o in operands))
        if stays:
            found.add(node.name)
    return found


def _prepare(detector: Detector, float_layers: Collection[str], dynamic_batch: bool) -> GraphModule:
    """Return the graph of a fused detector's backbone with an observer at every tensor that will be quantized."""
    # Imported here: executorch's import takes seconds, and float runs do not need it.
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    graph = traced(detector, dynamic_batch)
    stay = floating(graph, float_layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_filter_function(lambda node: node.name not in stay)
        # Batch norms are folded before they could be met; each of their patterns would be traced anew, for 4 s in all.
        quantizer.SUPPORTED_PATTERNS = [pattern for pattern in quantizer.SUPPORTED_PATTERNS if not pattern.is_qat]
        prepared: GraphModule = prepare_pt2e(graph, quantizer)
    return prepared


def observers_of(graph: GraphModule) -> Iterator[tuple[str, Node, Any]]:
    """Yield the observers of a prepared graph: its name, the node that it observes, and what observes."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, (ObserverBase, Candidates, Clamped)):
                yield str(node.target), node.args[0], module


def _cut(node: Node) -> tuple[float, float]:
    """Return the bounds that all consumers of an observed node cut its values to."""
    consumers = [consumer for observer in node.users for consumer in observer.users]
    bounds = [CLAMPS[consumer.target](consumer) for consumer in consumers if consumer.target in CLAMPS]
    if not consumers or len(bounds) < len(consumers):
        return -math.inf, math.inf
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def observe(detector: Detector, batches: Iterable[Tensor]) -> dict[ObserverName, Tensors]:
    """Find the range of every tensor of a backbone with each observer, in one pass over the calibration set.

    batches: real pictures, float32 [N, 3, S, S], normalized. What a clamp cuts off is left out of a range: XNNPACK's
    quantizer rounds before every ReLU6 as well as after it, and would spend most steps on what the first rounding
    keeps and the clamp throws away.
    """
    graph = _prepare(detector, [], dynamic_batch=True)
    shared: dict[int, Candidates] = {}
    watched = {}
    for name, node, observer in list(observers_of(graph)):
        if observer.qscheme == torch.per_channel_symmetric:
            watched[name] = (node.name, dict.fromkeys(OBSERVERS, observer))
            continue
        candidates = shared.setdefault(id(observer), Candidates(observer))
        watched[name] = (node.name, dict(candidates.observers.items()))
        bounds = _cut(node)
        setattr(graph, name, candidates if bounds == (-math.inf, math.inf) else Clamped(candidates, *bounds))
    with torch.inference_mode():
        for pictures in batches:
            graph(pictures)
        numbers: dict[tuple[int, str], QuantizedTensor] = {}
        found: dict[ObserverName, Tensors] = {name: {} for name in OBSERVERS}
        for node_name, observers in watched.values():
            for name, observer in observers.items():
                key = (id(observer), name)
                if key not in numbers:
                    scale, zero_point = observer.calculate_qparams()
                    numbers[key] = QuantizedTensor(
                        scale=scale.flatten().tolist(), zero_point=zero_point.flatten().tolist()
                    )
                found[name][node_name] = numbers[key]
    return found


def _as_traced(graph: GraphModule) -> GraphModule:
    """Let ``train`` and ``eval`` leave a graph as it was traced, in eval mode; exported graphs refuse them.

    PyTorch's own mend would put dropout of one half wherever a network has some that does nothing.
    """

    def stay(self: GraphModule, *_mode: bool) -> GraphModule:
        return self

    for name in ("train", "eval"):
        setattr(graph, name, MethodType(stay, graph))
    return graph


def graph_of(program: Detector) -> GraphModule:
    """Return the graph that computes what a detector's backbone did."""
    assert isinstance(program.backbone, GraphModule)
    return program.backbone


def simulated(
    detector: Detector, tensors: Tensors, float_layers: Collection[str] = (), dynamic_batch: bool = True
) -> Detector:
    """Return a fused detector whose backbone is the int8 program in float32, which rounds where integers will.

    Raises StageError if the numbers do not belong to this network.
    """
    graph = _prepare(detector, float_layers, dynamic_batch)
    set_numbers(graph, tensors)
    return detector.with_parts(backbone=_as_traced(graph))


def set_numbers(graph: GraphModule, tensors: Tensors) -> None:
    """Let a prepared or simulated graph round by these numbers, in place; raises as ``simulated``."""
    for name, node, observer in list(observers_of(graph)):
        known = tensors.get(node.name)
        per_channel = observer.qscheme == torch.per_channel_symmetric
        channels = len(attrgetter(str(node.target))(graph)) if per_channel and node.op == "get_attr" else 1
        if known is None or not len(known.scale) == len(known.zero_point) == channels:
            raise StageError(
                f"quantization.json does not fit the network, whose {node.name} has {channels} scales: "
                "quantize the run again"
            )
        setattr(graph, name, Rounding(observer, known))


def quantized(detector: Detector, quantization: Quantization, dynamic_batch: bool = True) -> Detector:
    """Return a fused detector whose backbone is an int8 program.

    Raises StageError if the numbers do not belong to this network.
    """
    simulation = simulated(detector, quantization.tensors, quantization.float_layers, dynamic_batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = convert_pt2e(graph_of(simulation))
    return detector.with_parts(backbone=_as_traced(program))


def rebuild(run: Run, dynamic_batch: bool) -> Detector:
    """Make the int8 program of a run from its float weights and ``quantization.json``."""
    try:
        quantization = Quantization.model_validate_json(run.read("quantization.json"))
    except ValidationError as error:
        raise StageError(f"{run.path / 'quantization.json'} is not valid: {reason_of(error)}") from error
    return quantized(run.detector(), quantization, dynamic_batch)
