"""What int8 costs and where: the noise that each layer's rounding adds to the logits, on real crops."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from compress.fidelity import MOST_DB, LayerNoise
from compress.int8 import graph_of, layers_of, observers_of
from models.detector import Detector, per_picture


class _Layers(Interpreter):
    """Runs a simulated int8 graph and keeps what each layer gives."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=True)
        self.layers = layers_of(graph)
        self.roundings = {graph.get_submodule(name) for name, _, _ in observers_of(graph)}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        value = super().run_node(n)
        if n in self.layers:
            self.outputs[self.layers[n]] = value.detach().clone()
        return value


class _Exact(_Layers):
    """Runs the same graph without rounding, and keeps each error that rounding would make, and where it would enter."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.errors: list[tuple[str, Tensor, Tensor]] = []
        """By layer: zeros that were added, float [N, ...] with a gradient, and the error, of the same shape."""
        self._latest = next(iter(self.layers.values()))
        self._rounded: dict[Node, Tensor] = {}
        """What each rounding since the latest layer gives."""

    def _is_rounding(self, node: Node) -> bool:
        return node.op == "call_module" and self.fetch_attr(str(node.target)) in self.roundings

    def _entry(self, value: Tensor, error: Tensor) -> Tensor:
        zeros = torch.zeros_like(value, requires_grad=True)
        self.errors.append((self._latest, zeros, error.detach()))
        return value + zeros

    def _round(self, node: Node, value: Tensor) -> Tensor:
        """Note the error that a rounding makes: where the same layer's have rounded all it follows from, of that.

        Pooling, flattening, dropout and clamping give rounded values as they get them: a second rounding adds nothing.
        """
        operation, given = node.all_input_nodes[0], value
        taken = operation.all_input_nodes
        if taken and all(own in self._rounded for own in taken):
            assert callable(operation.target)
            copies = {own: self._rounded[own].clone() for own in taken}  # some operations work in place
            args, kwargs = map_arg((operation.args, operation.kwargs), copies.__getitem__)
            given = operation.target(*args, **kwargs)
        self._rounded[node] = self.fetch_attr(str(node.target))(given).detach()
        return self._entry(value, self._rounded[node] - given)

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        if self._is_rounding(n):
            value = self.env[n.all_input_nodes[0]]
            return value if n.all_input_nodes[0].op == "get_attr" else self._round(n, value)
        value = super().run_node(n)
        if n in self.layers:
            self._latest, self._rounded = self.layers[n], {}
            (given, weight, *bias), _ = self.fetch_args_kwargs_from_env(n)
            assert isinstance(n.args[1], Node) and callable(n.target)
            if n.args[1].op == "call_module":
                rounded = self.fetch_attr(str(n.args[1].target))(weight)
                return self._entry(value, n.target(given, rounded, *bias) - value)
        return value


class _Run(nn.Module):
    """An interpreter as a module."""

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__()
        self._interpreter = interpreter

    def forward(self, pictures: Tensor) -> Any:
        """Run it."""
        return self._interpreter.run(pictures)


def _difference(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


def layer_noise(program: Detector, batches: Iterable[tuple[Tensor, ...]]) -> list[LayerNoise]:
    """Say what each layer of a simulated int8 program adds to the noise of the logits.

    batches: what the detector takes, few samples at a time. A layer's share is of first order: errors times the
    gradient of the logit where they enter, each layer on its own. In the whole program they add up or cancel.
    """
    graph = graph_of(program)
    graph.requires_grad_(False)
    power, error, noise = (defaultdict[str, float](float) for _ in range(3))
    found: list[Tensor] = []
    for pictures, *valid in batches:
        exact, rounded = _Exact(graph), _Layers(graph)
        logits = program.with_parts(backbone=_Run(exact))(pictures, *valid)
        found.append(_difference(logits).detach())
        gradients = torch.autograd.grad(_difference(logits).sum(), [zeros for _, zeros, _ in exact.errors])
        parts = defaultdict[str, Tensor](lambda: torch.zeros(1))
        for (layer, _, wrong), gradient in zip(exact.errors, gradients, strict=True):
            parts[layer] = parts[layer] + (gradient * wrong).reshape(len(pictures), -1).sum(1)
        for layer, part in parts.items():
            noise[layer] += float(part.square().sum())
        with torch.inference_mode():
            per_picture(_Run(rounded), pictures)
        for layer, value in exact.outputs.items():
            power[layer] += float(value.square().sum())
            error[layer] += float((value - rounded.outputs[layer]).square().sum())
    logit = torch.cat(found)
    variance = max(float(logit.var(correction=0)) * len(logit), 1e-30)  # 0: a network that says one thing of all
    return [
        LayerNoise(layer=layer, snr_db=_decibels(power[layer], error[layer]), logit_noise=noise[layer] / variance)
        for layer in power
    ]


def _decibels(power: float, error: float) -> float:
    if not error:
        return MOST_DB
    return 10 * math.log10(power / error) if power else -MOST_DB


def islands(program: Detector) -> dict[str, int]:
    """Count the operations of a simulated backbone that take what int8 gives and compute in float32, by kind."""
    graph = graph_of(program)
    observers = {name for name, _, _ in observers_of(graph)}
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        annotation = node.meta.get(Q_ANNOTATION_KEY)
        after_int8 = any(given.target in observers for given in node.all_input_nodes)
        if node.op == "call_function" and after_int8 and not (annotation and annotation._annotated):
            found[node.target.__name__.split(".")[0].rstrip("_")] += 1
    return dict(sorted(found.items()))


def block_of(layer: str) -> str:
    """Return the block of a backbone that a layer belongs to: ``blocks.1`` of ``blocks.1.conv``."""
    numbered = re.match(r".*\.\d+(?=\.|$)", layer)
    return numbered.group() if numbered else layer.split(".")[0]


def noisiest_blocks(noises: Iterable[LayerNoise]) -> list[str]:
    """Return the blocks of a network, those first whose layers add most to the noise of the logits."""
    noise = defaultdict[str, float](float)
    for layer in noises:
        noise[block_of(layer.layer)] += layer.logit_noise
    return sorted(noise, key=lambda block: -noise[block])
