"""Equalization: scales the channels of a tensor to similar ranges, so that one int8 scale suits them all.

A channel between two layers may be multiplied by s, by multiplying the first layer's weights by s and dividing the next
layer's by s: the network's outputs stay the same (arXiv 1906.04721, section 4.1, for two layers around a ReLU). Here a
tensor is followed through all operations: the operands of a residual sum share one s; a ReLU, a mean and a gate pass
s on; GELU, ReLU6, sigmoid, the input and the embeddings forbid factors.
"""

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from compress.graph import LAYERS, aten, traced
from models.detector import Detector
from models.fusing import check_unmoved

STRENGTH = 0.5
"""Exponent of the factors, 0..1. 0: no change; 1: all channels of a tensor have the same range, and the weights' ranges
absorb the difference (the activations' term of arXiv 2211.10438, eq. 4, which also has one of the weights)."""
MOST = 1000.0
"""Largest factor, for channels that are nearly always 0."""
PASSING = (
    aten.relu.default,
    aten.relu_.default,
    aten.dropout.default,
    aten.mean.dim,
    aten.adaptive_avg_pool2d.default,
    aten.flatten.using_ints,
)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
BATCH_NORM = aten.batch_norm.default


def _shape(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's tensor without the batch axis; () if it has no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def _is_own(weight: Any) -> bool:
    """Return whether a layer's weight is a parameter that no other layer uses, and not a fixed filter, as of a blur."""
    if not isinstance(weight, Node) or weight.op != "get_attr" or len(weight.users) != 1:
        return False
    return isinstance(attrgetter(str(weight.target))(weight.graph.owning_module), nn.Parameter)


def _mixes_channels(node: Node) -> bool:
    """Return whether an operation is a mean over other axes than height and width, which would mix channels."""
    return node.target == aten.mean.dim and not {axis % 4 for axis in cast(list[int], node.args[1])} <= {2, 3}


class _Ties:
    """Which tensors must share their factors, and which may not have factors."""

    def __init__(self, graph: GraphModule, open_end: bool) -> None:
        """``open_end``: whether the output of the graph may have factors."""
        self._open_end = open_end
        self._parents: dict[Node, Node] = {}
        """Union-find forest: from a tensor to another one of the group that shares its factors."""
        self._fixed: set[Node] = set()
        """Tensors that may not have factors."""
        for node in graph.graph.nodes:
            self._add(node)
        self._fixed = {self.root(node) for node in self._fixed}

    def root(self, node: Node) -> Node:
        """Return the representative of the tensors that share this one's factors."""
        while node in self._parents:
            node = self._parents[node]
        return node

    def free(self, node: Node) -> bool:
        """Return whether a tensor may have factors."""
        return self.root(node) not in self._fixed

    def _tie(self, *nodes: Node) -> None:
        first = self.root(nodes[0])
        for node in nodes[1:]:
            if self.root(node) is not first:
                self._parents[self.root(node)] = first

    def _add(self, node: Node) -> None:
        operands = node.all_input_nodes
        if node.target in LAYERS:
            # A linear layer on tokens or on [N, H, W, C] does not have its channels on axis 1.
            other_axis = len(_shape(node)) != (1 if node.target == aten.linear.default else 3)
            if other_axis or not _is_own(node.args[1]):
                self._fixed |= {node, operands[0]}
        elif node.target == BATCH_NORM:
            own = _is_own(node.args[1]) and _is_own(node.args[2])
            self._fixed |= {operands[0]} if own else {operands[0], node}
        elif node.target in PASSING and _shape(node)[:1] == _shape(operands[0])[:1] and not _mixes_channels(node):
            self._tie(operands[0], node)
        elif node.target in SUMS and len(operands) == 2 and _shape(operands[0]) == _shape(operands[1]):
            self._tie(*operands, node)
        elif node.target in PRODUCTS and len(operands) == 2 and _shape(operands[1]) == (*_shape(operands[0])[:1], 1, 1):
            self._tie(operands[0], node)
            self._fixed.add(operands[1])
        elif node.op == "output" and self._open_end:
            pass
        else:
            self._fixed |= {*operands, node}


class _ChannelRanges(Interpreter):
    """Runs a graph and records the largest absolute value of each channel of tensors that may have factors."""

    def __init__(self, graph: GraphModule, ties: _Ties) -> None:
        super().__init__(graph)
        self.largest: dict[Node, Tensor] = {}
        """By representative (``_Ties.root``): float [C]."""
        self._ties = ties

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        value = super().run_node(n)
        if n.op == "call_function" and self._ties.free(n):
            largest = value.abs().amax([axis for axis in range(value.ndim) if axis != 1])
            root = self._ties.root(n)
            self.largest[root] = torch.maximum(self.largest[root], largest) if root in self.largest else largest
        return value


def _factors(largest: Tensor, strength: float) -> Tensor:
    """Return the factors of channels, float [C], for their largest absolute values, float [C].

    The largest value of the whole tensor stays as it is.
    """
    overall = largest.max()
    factors = (overall / largest.clamp(min=overall / MOST)) ** strength
    return torch.where(largest > 0, factors, 1.0)


def _rescaled(weight: Tensor, input_factors: Tensor | None, output_factors: Tensor | None) -> Tensor:
    """Return a weight, float [O, I / groups, ...] or [O], divided by its inputs' factors, times its outputs'.

    input_factors: float [I]; output_factors: float [O]; None leaves the weight as it is.
    """
    if input_factors is not None:
        outputs, inputs = weight.shape[:2]
        groups = len(input_factors) // inputs
        per_group = input_factors.view(groups, 1, inputs)
        divisors = per_group.expand(-1, outputs // groups, -1).reshape(outputs, inputs)
        weight = weight / divisors.view(outputs, inputs, *[1] * (weight.ndim - 2))
    if output_factors is not None:
        weight = weight * output_factors.view(-1, *[1] * (weight.ndim - 1))
    return weight


def equalize(detector: Detector, batches: Sequence[Tensor], strength: float = STRENGTH) -> Detector:
    """Return a copy of a fused detector with equalized weights; its outputs differ only by float32 rounding.

    batches: real pictures, float32 [N, 3, S, S], normalized. Layers that share weights stay as they are. Raises
    StageError if the outputs of the head's first layer change by more than rounding explains.
    """
    graph = traced(detector)
    equal = copy.deepcopy(detector)
    ties = _Ties(graph, open_end=equal.first_of_head is not None)
    ranges = _ChannelRanges(graph, ties)
    with torch.inference_mode():
        for pictures in batches:
            ranges.run(pictures)
    factors = {root: _factors(largest, strength) for root, largest in ranges.largest.items()}
    state = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
    for node in graph.graph.nodes:
        if node.target not in (*LAYERS, BATCH_NORM):
            continue
        layer_input, weight = node.args[0], node.args[1]
        bias = node.args[2] if len(node.args) > 2 else None
        output_factors, input_factors = factors.get(ties.root(node)), factors.get(ties.root(layer_input))
        if output_factors is None and input_factors is None:
            continue
        of_inputs = input_factors if node.target in LAYERS else None  # a batch norm's scale is per output alone
        state[str(weight.target)] = _rescaled(state[str(weight.target)], of_inputs, output_factors)
        if output_factors is not None and bias is not None:
            state[str(bias.target)] *= output_factors
    equal.backbone.load_state_dict(state)
    end = graph.graph.output_node().all_input_nodes[0]
    if equal.first_of_head and ties.root(end) in factors:
        equal.first_of_head.weight.data /= factors[ties.root(end)]
    with torch.inference_mode():
        before, after = _first_head_outputs(detector, batches[0]), _first_head_outputs(equal, batches[0])
        check_unmoved(before, after, "equalizing the channels")
    return equal


def _first_head_outputs(detector: Detector, pictures: Tensor) -> Tensor:
    """Return the outputs of the head's first layer, float32 [N, ...]; the embeddings of several modalities."""
    embeddings: Tensor = detector.backbone(pictures)
    return detector.first_of_head(embeddings) if detector.first_of_head else embeddings
