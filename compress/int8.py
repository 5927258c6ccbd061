"""Static int8: torchao's PT2E with ExecuTorch's XNNPACK quantizer, calibrated once and rebuilt from numbers.

``quantization.json`` holds the scale and zero point of every quantized tensor, so that an int8 program can be rebuilt
from float weights and these numbers: nothing is unpickled, and every runtime gets the same scales. Settings are
compared on a simulation (``simulated``): the same graph, which rounds in float32 before it is converted to integers.

Only the backbone is quantized; it computes picture by picture. The head stays in float32: the coarse steps of int8
logits alone would cost more than all other rounding together, to first order (docs/lab-notes.md). A frame's head has
only some millionths of the multiplications; a clip's head runs once, while its backbone runs for each frame.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from operator import attrgetter
from types import MethodType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from compress.graph import aten, floating, layers_of, of_pictures, traced
from compress.observers import OBSERVERS, Candidates, Clamped, ObserverName
from models.detector import Detector
from models.fusing import check_unmoved
from models.run import Run
from parsing import parse_json
from stage import StageError, reason_of

CLAMPS: dict[Any, Callable[[Node], tuple[float, float]]] = {
    aten.relu.default: lambda _: (0.0, math.inf),
    aten.relu_.default: lambda _: (0.0, math.inf),
    aten.hardtanh.default: lambda node: (float(node.args[1]), float(node.args[2])),  # type: ignore[arg-type]
    aten.hardtanh_.default: lambda node: (float(node.args[1]), float(node.args[2])),  # type: ignore[arg-type]
}
"""Operations that clamp values, with their lower and upper bound."""


class QuantizedTensor(BaseModel):
    """How one tensor is stored: ``real = (integer - zero_point) * scale``, per tensor or per output channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: list[float]
    zero_point: list[int]


Tensors = dict[str, QuantizedTensor]
"""Quantization of tensors, by the name of the graph node whose value they are."""


class Quantization(BaseModel):
    """``quantization.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[3] = 3
    quantizer: Literal["xnnpack"] = "xnnpack"
    weights: Literal["int8, symmetric, per channel"] = "int8, symmetric, per channel"
    activations: Literal["int8, affine, per tensor"] = "int8, affine, per tensor"
    observer: ObserverName
    """The observer that found the ranges of activations."""
    float_layers: list[str]
    """Layers of the backbone that stay in float32."""
    calibration_crops: int
    calibration_fingerprint: str
    tensors: Tensors


class Rounding(ObserverBase):  # type: ignore[misc]
    """Replaces a calibrated observer: holds its scale and zero point, and rounds in float32 as int8 will."""

    def __init__(self, observer: Any, known: QuantizedTensor) -> None:
        super().__init__(observer.dtype)
        self.qscheme, self.quant_min, self.quant_max = observer.qscheme, observer.quant_min, observer.quant_max
        self.ch_axis = getattr(observer, "ch_axis", 0)
        self.register_buffer("scale", torch.tensor(known.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(known.zero_point, dtype=torch.int32))

    def forward(self, value: Tensor) -> Tensor:
        """Return the value, float32 of any shape, rounded to the nearest int8 level.

        The gradient is 1 within the range and 0 outside.
        """
        if self.qscheme == torch.per_channel_symmetric:
            return torch.fake_quantize_per_channel_affine(
                value, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max
            )
        return torch.fake_quantize_per_tensor_affine(value, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the scale, float32 [C], and the zero point, int64 [C]; C is 1 per tensor."""
        return self.scale, self.zero_point.long()


def _prepare(detector: Detector, float_layers: Collection[str]) -> GraphModule:
    """Return the graph of a fused detector's backbone with an observer at every tensor that will be quantized."""
    # Imported here, because it takes seconds and float runs do not need it.
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    graph = traced(detector)
    float_nodes = floating(graph, float_layers)

    class Partial(xnnpack.XNNPACKQuantizer):  # type: ignore[misc]
        """Leaves concatenations of float32 tensors alone: there XNNPACK's quantizer asks no filter.

        And those of parameters and positions, of which some transformers join a layer's bias or input. Their
        annotations go before XNNPACK's passes them on to the operations that follow.
        """

        def _annotate_for_quantization_config(self, model: GraphModule) -> GraphModule:
            annotated: GraphModule = super()._annotate_for_quantization_config(model)
            picture_nodes = of_pictures(annotated)
            for node in annotated.graph.nodes:
                joins_parameters = node.target == aten.cat.default and node not in picture_nodes
                if node.name in float_nodes or joins_parameters:
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            return annotated

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = Partial().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_filter_function(lambda node: node.name not in float_nodes)
        # Batch norms are already folded, so their patterns cannot match; tracing these patterns would take 4 s in all.
        quantizer.SUPPORTED_PATTERNS = [pattern for pattern in quantizer.SUPPORTED_PATTERNS if not pattern.is_qat]
        prepared: GraphModule = prepare_pt2e(graph, quantizer)
    return prepared


def observers_of(graph: GraphModule) -> Iterator[tuple[str, Node, Any]]:
    """Yield the name, the observed node and the module of each observer in a prepared or simulated graph."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, (ObserverBase, Candidates, Clamped)):
                yield str(node.target), node.args[0], module


def _clamp_bounds(node: Node) -> tuple[float, float]:
    """Return the bounds to which all consumers of an observed node clamp its values; infinite if one does not."""
    consumers = [consumer for observer in node.users for consumer in observer.users]
    bounds = [CLAMPS[consumer.target](consumer) for consumer in consumers if consumer.target in CLAMPS]
    if not consumers or len(bounds) < len(consumers):
        return -math.inf, math.inf
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def observe(detector: Detector, batches: Iterable[Tensor]) -> dict[ObserverName, Tensors]:
    """Find the range of every tensor of a backbone with each observer, in one pass over the calibration set.

    batches: real pictures, float32 [N, 3, S, S], normalized. Values that a clamp cuts off do not extend a range:
    XNNPACK's quantizer also rounds before every ReLU6, and would spend most of its steps on values that the clamp
    discards. Raises StageError if the quantizer made another network of the backbone.
    """
    graph = _prepare(detector, [])
    shared: dict[int, Candidates] = {}
    observed = {}
    for name, node, observer in list(observers_of(graph)):
        if observer.qscheme == torch.per_channel_symmetric:
            observed[name] = (node.name, dict.fromkeys(OBSERVERS, observer))
            continue
        candidates = shared.setdefault(id(observer), Candidates(observer))
        observed[name] = (node.name, dict(candidates.observers.items()))
        bounds = _clamp_bounds(node)
        setattr(graph, name, candidates if bounds == (-math.inf, math.inf) else Clamped(candidates, *bounds))
    with torch.inference_mode():
        for pictures in batches:
            outputs = graph(pictures)
        check_unmoved(detector.backbone(pictures), outputs, f"preparing {detector.architecture.backbone} for int8")
        numbers: dict[tuple[int, str], QuantizedTensor] = {}
        tensors: dict[ObserverName, Tensors] = {name: {} for name in OBSERVERS}
        for node_name, observers in observed.values():
            for name, observer in observers.items():
                key = (id(observer), name)
                if key not in numbers:
                    scale, zero_point = observer.calculate_qparams()
                    numbers[key] = QuantizedTensor(
                        scale=scale.flatten().tolist(), zero_point=zero_point.flatten().tolist()
                    )
                tensors[name][node_name] = numbers[key]
    return tensors


def _always_eval(graph: GraphModule) -> GraphModule:
    """Keep a graph in eval mode: ``train`` and ``eval``, which would raise on an exported graph, do nothing.

    PyTorch's own replacement of these methods would turn a network's inactive dropout into dropout of one half.
    """

    def unchanged(self: GraphModule, *_mode: bool) -> GraphModule:
        return self

    for name in ("train", "eval"):
        setattr(graph, name, MethodType(unchanged, graph))
    return graph


def graph_of(program: Detector) -> GraphModule:
    """Return the backbone of a simulated or integer program as a graph."""
    assert isinstance(program.backbone, GraphModule)
    return program.backbone


def simulated(detector: Detector, tensors: Tensors, float_layers: Collection[str] = ()) -> Detector:
    """Return a fused detector with its backbone replaced by a float32 simulation of the int8 program.

    Raises StageError if ``tensors`` does not belong to this network.
    """
    graph = _prepare(detector, float_layers)
    set_numbers(graph, tensors)
    return detector.with_parts(backbone=_always_eval(graph))


def set_numbers(graph: GraphModule, tensors: Tensors) -> None:
    """Make a prepared or simulated graph round with the scales of ``tensors``, in place.

    Raises StageError if ``tensors`` does not belong to this network.
    """
    for name, node, observer in list(observers_of(graph)):
        quantization = tensors.get(node.name)
        per_channel = observer.qscheme == torch.per_channel_symmetric
        channels = len(attrgetter(str(node.target))(graph)) if per_channel and node.op == "get_attr" else 1
        if quantization is None or not len(quantization.scale) == len(quantization.zero_point) == channels:
            raise StageError(
                f"quantization.json does not fit the network, whose {node.name} has {channels} scales: "
                "quantize the run again"
            )
        setattr(graph, name, Rounding(observer, quantization))


def quantized(detector: Detector, quantization: Quantization) -> Detector:
    """Return a fused detector with its backbone replaced by an int8 program.

    Raises StageError if ``quantization`` does not belong to this network.
    """
    simulation = simulated(detector, quantization.tensors, quantization.float_layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = convert_pt2e(graph_of(simulation))
    _settle_biases(program)
    return detector.with_parts(backbone=_always_eval(program))


def _value_of(graph: GraphModule, node: Node) -> Tensor:
    """Return the value of a node that depends on parameters alone: one of them, or what is joined of several."""
    if node.op == "get_attr":
        parameter: Tensor = attrgetter(str(node.target))(graph)
        return parameter
    assert callable(node.target), node
    value: Tensor = node.target(*map_arg(node.args, lambda given: _value_of(graph, given)), **node.kwargs)
    return value


def _settle_biases(program: GraphModule) -> None:
    """Make constants of biases that a program joins of parameters: XNNPACK takes no layer whose bias is computed."""
    biases = {layer: layer.args[2] for layer in layers_of(program) if len(layer.args) > 2}
    joined = {layer: bias for layer, bias in biases.items() if isinstance(bias, Node) and bias.op != "get_attr"}
    for layer, bias in joined.items():
        settled = f"{layer.name}_settled_bias"
        program.register_buffer(settled, _value_of(program, bias).detach().clone())
        with program.graph.inserting_before(layer):
            layer.update_arg(2, program.graph.get_attr(settled))
    if joined:
        program.graph.eliminate_dead_code()
        program.recompile()


def rebuild(run: Run) -> Detector:
    """Return the int8 program of a run, rebuilt from its float weights and ``quantization.json``.

    Raises StageError if a file is missing or damaged, or if they do not fit each other.
    """
    try:
        quantization = Quantization.model_validate(parse_json(run.read("quantization.json")), strict=True)
    except ValueError as error:
        raise StageError(f"{run.path / 'quantization.json'} is not valid: {reason_of(error)}") from error
    return quantized(run.detector(), quantization)
