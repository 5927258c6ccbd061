"""Equalization: the channels of a tensor brought nearer to one range, so that one int8 scale serves them all.

Between two layers a channel may be multiplied by s if the first layer's weights are, and the next one's are divided by
it: the network computes what it did (arXiv 1906.04721, section 4.1, there between the two layers about a ReLU). Here
everything that a tensor meets on its way is followed: residual sums share one s, a ReLU, a mean and a gate let it pass;
GELU, ReLU6, sigmoid, the input and the embeddings forbid it.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from compress.int8 import LAYERS, aten, traced
from models.detector import Detector
from models.fusing import check_unmoved

STRENGTH = 0.5
"""0: as it was; 1: all channels of a tensor reach equally far, and weights bear it all (the activations' term
of arXiv 2211.10438, eq. 4, which also has one of the weights)."""
MOST = 1000.0
"""Largest factor: a channel that is nearly always 0 has no range to speak of."""
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
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def _own(weight: Any) -> bool:
    """Whether a layer's weight is a parameter that no other layer uses."""
    return isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1


def _over_channels(node: Node) -> bool:
    """Whether an operation is a mean that does not leave the channels apart."""
    return node.target == aten.mean.dim and not {axis % 4 for axis in cast(list[int], node.args[1])} <= {2, 3}


class _Ties:
    """Which tensors must have equal factors, and which must have none."""

    def __init__(self, graph: GraphModule, open_end: bool) -> None:
        """``open_end``: whether what the graph gives may have factors."""
        self._open_end = open_end
        self._above: dict[Node, Node] = {}
        self._fixed: set[Node] = set()
        for node in graph.graph.nodes:
            self._add(node)
        self._fixed = {self.root(node) for node in self._fixed}

    def root(self, node: Node) -> Node:
        """Return the tensor that stands for all that have the factors of this one."""
        while node in self._above:
            node = self._above[node]
        return node

    def free(self, node: Node) -> bool:
        """Whether a tensor may have factors."""
        return self.root(node) not in self._fixed

    def _tie(self, *nodes: Node) -> None:
        first = self.root(nodes[0])
        for node in nodes[1:]:
            if self.root(node) is not first:
                self._above[self.root(node)] = first

    def _add(self, node: Node) -> None:
        operands = node.all_input_nodes
        if node.target in LAYERS:
            # A linear layer on tokens or on [N, H, W, C] has its channels elsewhere.
            elsewhere = len(_shape(node)) != (1 if node.target == aten.linear.default else 3)
            if elsewhere or not _own(node.args[1]):
                self._fixed |= {node, operands[0]}
        elif node.target == BATCH_NORM:
            self._fixed |= {operands[0]} if _own(node.args[1]) and _own(node.args[2]) else {operands[0], node}
        elif node.target in PASSING and _shape(node)[:1] == _shape(operands[0])[:1] and not _over_channels(node):
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


class _Reach(Interpreter):
    """Runs a graph and keeps how far each channel of free tensors reaches, float [C]."""

    def __init__(self, graph: GraphModule, ties: _Ties) -> None:
        super().__init__(graph)
        self.found: dict[Node, Tensor] = {}
        self._ties = ties

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        value = super().run_node(n)
        if n.op == "call_function" and self._ties.free(n):
            reach = value.abs().amax([axis for axis in range(value.ndim) if axis != 1])
            root = self._ties.root(n)
            self.found[root] = torch.maximum(self.found[root], reach) if root in self.found else reach
        return value


def _factors(reach: Tensor, strength: float) -> Tensor:
    """Return what to multiply channels by, float [C], so that a tensor's largest value stays as it is."""
    farthest = reach.max()
    factors = (farthest / reach.clamp(min=farthest / MOST)) ** strength
    return torch.where(reach > 0, factors, 1.0)


def equalize(detector: Detector, batches: Sequence[Tensor], strength: float = STRENGTH) -> Detector:
    """Return a fused detector whose backbone has other weights and computes the same, but for the rounding of float32.

    batches: real pictures, float32 [N, 3, S, S], normalized. A layer whose weights are used twice stays as it is.
    Raises StageError if what the head takes of them moves by more than rounding explains.
    """
    graph = traced(detector)
    equal = copy.deepcopy(detector)
    ties = _Ties(graph, open_end=equal.first_of_head is not None)
    reach = _Reach(graph, ties)
    with torch.inference_mode():
        for pictures in batches:
            reach.run(pictures)
    factors = {root: _factors(found, strength) for root, found in reach.found.items()}
    state = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
    for node in graph.graph.nodes:
        if node.target not in (*LAYERS, BATCH_NORM):
            continue
        given, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
        own, before = factors.get(ties.root(node)), factors.get(ties.root(given))
        if own is None and before is None:
            continue
        scaled = state[str(weight.target)]
        if before is not None and node.target in LAYERS:
            outputs, inputs = scaled.shape[:2]
            groups = len(before) // inputs
            of_output = before.view(groups, 1, inputs).expand(-1, outputs // groups, -1).reshape(outputs, inputs)
            scaled = scaled / of_output.view(outputs, inputs, *[1] * (scaled.ndim - 2))
        if own is not None:
            scaled = scaled * own.view(-1, *[1] * (scaled.ndim - 1))
            if bias is not None:
                state[str(bias.target)] *= own
        state[str(weight.target)] = scaled
    equal.backbone.load_state_dict(state)
    end = graph.graph.output_node().all_input_nodes[0]
    if equal.first_of_head and ties.root(end) in factors:
        equal.first_of_head.weight.data /= factors[ties.root(end)]
    with torch.inference_mode():
        check_unmoved(_heard(detector, batches[0]), _heard(equal, batches[0]), "equalizing the channels")
    return equal


def _heard(detector: Detector, pictures: Tensor) -> Tensor:
    """Return what a head makes of each picture by itself."""
    embeddings: Tensor = detector.backbone(pictures)
    return detector.first_of_head(embeddings) if detector.first_of_head else embeddings
