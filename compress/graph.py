"""A backbone as a graph of ATen operations, in which int8 finds the layers and rounds."""

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node

from models.detector import Detector
from stage import StageError

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.conv1d.default, aten.linear.default)
"""Operations with weights, which are either quantized or kept in float32."""
UNLAYERED = (aten.conv2d.padding, aten.conv_transpose2d.input)
"""Operations with weights that stay in float32: one pads unevenly, of the other torchao takes the wrong axis."""


def _keep_apart(graph: GraphModule, norm: Node) -> None:
    """Keep a batch norm apart from a layer whose output something else takes too.

    torchao folds a norm into the convolution or linear layer before it, whoever else takes that layer's output. An
    inert operation in between prevents it.
    """
    layer = norm.args[0]
    assert isinstance(layer, Node)
    if layer.target in (*LAYERS, *UNLAYERED) and len(layer.users) > 1:
        with graph.graph.inserting_before(norm):
            apart = graph.graph.call_function(aten.dropout.default, (layer, 0.0, False))
        apart.meta["val"] = layer.meta["val"]
        norm.replace_input_with(layer, apart)


def _number_padding(node: Node) -> None:
    """Give a convolution with padding "same" or "valid" its padding in numbers, as XNNPACK's quantizer knows it.

    One whose kernel would pad one side more than the other stays as it is, in float32.
    """
    defaults = (None, None, None, [1, 1], "valid", [1, 1], 1)
    arguments: list[Any] = [*node.args, *defaults[len(node.args) :]]
    pictures, weight, bias, stride, padding, dilation, groups = arguments
    kernel = weight.meta["val"].shape[2:]
    both_sides = [d * (k - 1) * (padding == "same") for k, d in zip(kernel, dilation, strict=True)]
    if not any(pixels % 2 for pixels in both_sides):
        node.target = aten.conv2d.default
        node.args = (pictures, weight, bias, stride, [pixels // 2 for pixels in both_sides], dilation, groups)


def traced(detector: Detector) -> GraphModule:
    """Return a fused detector's backbone as a graph of ATen operations: float32 [N, 3, S, S] -> [N, D], for any N.

    Scales are known by the names of its nodes, which a trace of a fixed N would name otherwise in some networks. Raises
    StageError for a network that computes weights of layers anew for each picture.
    """
    size = detector.architecture.size
    example = torch.zeros(2, 3, size, size)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(detector.backbone.eval(), (example,), dynamic_shapes=shapes).module()
    assert isinstance(graph, GraphModule)
    for node in graph.graph.nodes:
        if node.target == aten.relu6.default:  # the form that the quantizer and the runtimes support
            node.target, node.args = aten.hardtanh.default, (node.args[0], 0.0, 6.0)
        elif node.target == aten.conv2d.padding:
            _number_padding(node)
        elif node.target == aten.batch_norm.default:
            _keep_apart(graph, node)
    graph.recompile()
    if computed := [node for node in graph.graph.nodes if node.target in LAYERS and node.args[1].op != "get_attr"]:
        raise StageError(
            f"{detector.architecture.backbone} computes the weights of {len(computed)} layers anew for each picture "
            "(as weight standardization does), which int8 cannot keep: give --scheme fp16, or another student"
        )
    return graph


def of_pictures(graph: GraphModule) -> set[Node]:
    """Return the nodes whose values depend on what is in the pictures, and not on parameters or numbers alone."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        is_size = node.target == aten.sym_size.int
        if node.op == "placeholder" or (not is_size and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def layers_of(graph: GraphModule) -> dict[Node, str]:
    """Return the nodes that have weights, in order, with the names of their modules."""
    layers = {}
    for node in graph.graph.nodes:
        if node.target in LAYERS:
            weight = node.args[1]
            while weight.op == "call_module":  # its observer
                weight = weight.args[0]
            layers[node] = str(weight.target).removesuffix(".weight")
    return layers


def floating(graph: GraphModule, layers: Collection[str]) -> set[str]:
    """Return the names of the nodes that compute in float32: ``layers``, and operations with only float32 inputs."""
    names, float_nodes = layers_of(graph), set()
    for node in graph.graph.nodes:
        operands = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
        if node.target in UNLAYERED:
            stays = True
        elif node in names:
            stays = names[node] in layers
        else:
            stays = node.op == "placeholder" or (bool(operands) and all(o.name in float_nodes for o in operands))
        if stays:
            float_nodes.add(node.name)
    return float_nodes
