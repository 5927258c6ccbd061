"""Where int8 loses accuracy: the noise that each layer's rounding adds to the logits, measured on real crops."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from compress.fidelity import LayerNoise, decibels
from compress.graph import layers_of, of_pictures
from compress.int8 import graph_of, observers_of
from models.detector import Detector, per_picture


def _of_parameters_alone(graph: GraphModule) -> bool:
    """Tell whether a layer or a rounding takes no picture, as in a relative position bias that is computed."""
    rounded = [node for _, node, _ in observers_of(graph) if node.op != "get_attr"]
    return not of_pictures(graph).issuperset([*rounded, *layers_of(graph)])


class _Layers(Interpreter):
    """Runs a simulated int8 graph and records the output of each layer."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=True)
        self.layers = layers_of(graph)
        self.roundings = {graph.get_submodule(name) for name, _, _ in observers_of(graph)}
        self.outputs: dict[str, Tensor] = {}
        """Outputs by layer, float32 [N, ...]."""

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        value = super().run_node(n)
        if n in self.layers:
            self.outputs[self.layers[n]] = value.detach().clone()
        return value


class _Exact(_Layers):
    """Runs the same graph without rounding, and records each rounding error and the place where it would enter."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.errors: list[tuple[str, Tensor, Tensor]] = []
        """Layer; zeros added where the error would enter, float [N, ...] with a gradient; the error, of that shape."""
        self._latest = next(iter(self.layers.values()))
        self._rounded: dict[Node, Tensor] = {}
        """Outputs of the roundings since the latest layer."""

    def _is_rounding(self, node: Node) -> bool:
        return node.op == "call_module" and self.fetch_attr(str(node.target)) in self.roundings

    def _record_error(self, value: Tensor, error: Tensor) -> Tensor:
        """Record an error of the latest layer, and return the value plus zeros whose gradient is that of the error."""
        zeros = torch.zeros_like(value, requires_grad=True)
        self.errors.append((self._latest, zeros, error.detach()))
        return value + zeros

    def _round(self, node: Node, value: Tensor) -> Tensor:
        """Record the error of one rounding; ``value`` is the exact output of the operation before it.

        If all inputs of that operation have already been rounded since the latest layer, the error is relative to the
        operation on rounded inputs: pooling, flattening, dropout and clamping keep values rounded, so that a second
        rounding adds no error.
        """
        operation, unrounded = node.all_input_nodes[0], value
        operands = operation.all_input_nodes
        if operands and all(operand in self._rounded for operand in operands):
            assert callable(operation.target)
            copies = {operand: self._rounded[operand].clone() for operand in operands}  # some operations work in place
            args, kwargs = map_arg((operation.args, operation.kwargs), copies.__getitem__)
            unrounded = operation.target(*args, **kwargs)
        self._rounded[node] = self.fetch_attr(str(node.target))(unrounded).detach()
        return self._record_error(value, self._rounded[node] - unrounded)

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        if self._is_rounding(n):
            value = self.env[n.all_input_nodes[0]]
            return value if n.all_input_nodes[0].op == "get_attr" else self._round(n, value)
        value = super().run_node(n)
        if n in self.layers:
            self._latest, self._rounded = self.layers[n], {}
            (layer_input, weight, *bias), _ = self.fetch_args_kwargs_from_env(n)
            assert isinstance(n.args[1], Node) and callable(n.target)
            if n.args[1].op == "call_module":
                rounded = self.fetch_attr(str(n.args[1].target))(weight)
                return self._record_error(value, n.target(layer_input, rounded, *bias) - value)
        return value


class _Run(nn.Module):
    """An interpreter as a module."""

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__()
        self._interpreter = interpreter

    def forward(self, pictures: Tensor) -> Any:
        """Return the graph's output for pictures, float32 [N, 3, S, S]."""
        return self._interpreter.run(pictures)


def _fake_minus_real(logits: Tensor) -> Tensor:
    """Return the fake logit minus the real one, [N], of logits [N, 2]."""
    return logits[:, 1] - logits[:, 0]


def layer_noise(program: Detector, batches: Iterable[tuple[Tensor, ...]]) -> list[LayerNoise]:
    """Return how much noise each layer of a simulated int8 program adds to the logits, in the order of the layers.

    batches: inputs of the detector, few samples at a time. A layer's noise is a first-order estimate: its errors times
    the gradient of the logit where they enter, for each layer alone. In the whole program they add up or cancel.
    """
    graph = graph_of(program)
    graph.requires_grad_(False)
    if _of_parameters_alone(graph):  # there the gradient is of all samples together
        batches = (tuple(part[[n]] for part in batch) for batch in batches for n in range(len(batch[0])))
    power, error, noise = (defaultdict[str, float](float) for _ in range(3))
    logit_batches: list[Tensor] = []
    for pictures, *valid in batches:
        exact, rounded = _Exact(graph), _Layers(graph)
        logits = program.with_parts(backbone=_Run(exact))(pictures, *valid)
        logit_batches.append(_fake_minus_real(logits).detach())
        gradients = torch.autograd.grad(_fake_minus_real(logits).sum(), [zeros for _, zeros, _ in exact.errors])
        shifts = defaultdict[str, Tensor](lambda: torch.zeros(1))
        for (layer, _, rounding_error), gradient in zip(exact.errors, gradients, strict=True):
            shifts[layer] = shifts[layer] + (gradient * rounding_error).reshape(len(pictures), -1).sum(1)
        for layer, shift in shifts.items():
            noise[layer] += float(shift.square().sum())
        with torch.inference_mode():
            per_picture(_Run(rounded), pictures)
        for layer, value in exact.outputs.items():
            power[layer] += float(value.square().sum())
            error[layer] += float((value - rounded.outputs[layer]).square().sum())
    logit = torch.cat(logit_batches)
    variance = max(float(logit.var(correction=0)) * len(logit), 1e-30)  # 0: all outputs are equal
    return [
        LayerNoise(layer=layer, snr_db=decibels(power[layer], error[layer]), logit_noise=noise[layer] / variance)
        for layer in power
    ]


def islands(program: Detector) -> dict[str, int]:
    """Count, by kind, the operations of a simulated backbone that take int8 inputs but compute in float32."""
    graph = graph_of(program)
    observers = {name for name, _, _ in observers_of(graph)}
    counts: Counter[str] = Counter()
    for node in graph.graph.nodes:
        annotation = node.meta.get(Q_ANNOTATION_KEY)
        after_int8 = any(operand.target in observers for operand in node.all_input_nodes)
        if node.op == "call_function" and after_int8 and not (annotation and annotation._annotated):
            counts[node.target.__name__.split(".")[0].rstrip("_")] += 1
    return dict(sorted(counts.items()))


def block_of(layer: str) -> str:
    """Return the name of the block that a layer belongs to: ``blocks.1`` for ``blocks.1.conv``."""
    numbered = re.match(r".*\.\d+(?=\.|$)", layer)
    return numbered.group() if numbered else layer.split(".")[0]


def noisiest_blocks(noises: Iterable[LayerNoise]) -> list[str]:
    """Return the blocks of a network, first those whose layers add most to the noise of the logits."""
    noise = defaultdict[str, float](float)
    for layer in noises:
        noise[block_of(layer.layer)] += layer.logit_noise
    return sorted(noise, key=lambda block: -noise[block])
