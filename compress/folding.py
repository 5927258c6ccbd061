"""Batch norms behind layers, whose factors a compiler would fold into the layers' weights."""

import copy

import torch
from torch import Tensor, nn
from torch.fx import Node

from compress.equalization import BATCH_NORM
from compress.graph import layers_of, traced
from models.detector import Detector
from models.fusing import check_unmoved
from stage import StageError


def norms_behind_layers(detector: Detector) -> dict[str, str]:
    """Return the names of a fused backbone's batch norms by that of the layer whose output nothing else takes."""
    return {
        layer: str(user.args[1].target).removesuffix(".weight")
        for node, layer in layers_of(traced(detector)).items()
        for user in node.users
        if len(node.users) == 1 and user.target == BATCH_NORM and isinstance(user.args[1], Node)
    }


@torch.no_grad()
def pass_through(norm: nn.Module, shift: Tensor) -> None:
    """Make a batch norm add ``shift``, float32 [C], and leave values as they are otherwise."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.fill_((1.0 + norm.eps) ** 0.5)  # the same factor for all channels, whatever the rounding
    norm.bias.copy_(shift)


@torch.no_grad()
def with_norms_folded(detector: Detector, pictures: Tensor) -> Detector:
    """Return a copy of a fused detector whose layers' weights have the factors of the batch norms behind them.

    The norms stay, and only add. Raises StageError if the embeddings of ``pictures``, float32 [N, 3, S, S], change by
    more than rounding explains.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in detector.backbone.modules()):
        return detector
    try:
        behind = norms_behind_layers(detector)
    except StageError:  # its layers' weights are computed anew for each picture: nothing can be folded into them
        return detector
    folded = copy.deepcopy(detector)
    for layer_name, norm_name in behind.items():
        layer, norm = folded.backbone.get_submodule(layer_name), folded.backbone.get_submodule(norm_name)
        if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue  # Core ML's compiler folds norms into convolutions; it is checked as it writes
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * factor
        layer.weight.mul_(factor.view(-1, 1, 1, 1))
        if layer.bias is not None:
            shift += layer.bias * factor
            layer.bias.zero_()
        pass_through(norm, shift)
    check_unmoved(detector.backbone(pictures), folded.backbone(pictures), "folding batch norms")
    return folded
