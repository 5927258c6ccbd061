"""Batch norms folded into the layers before them, against PyTorch's own folding."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from compress.folding import norms_behind_layers, with_norms_folded
from tests.compress.small_network import small_detector, some_pictures


def test_weights_have_the_factors_of_the_norm_behind_which_only_adds() -> None:
    detector, pictures = small_detector(), some_pictures(8)
    assert norms_behind_layers(detector) == {"blocks.0.depthwise": "blocks.0.norm"}
    folded = with_norms_folded(detector, pictures)
    conv, norm = detector.backbone.blocks[0].depthwise, detector.backbone.blocks[0].norm
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    found = folded.backbone.blocks[0]
    torch.testing.assert_close(found.depthwise.weight, weight)
    torch.testing.assert_close(found.norm.bias, bias)
    assert len((found.norm.weight / (found.norm.running_var + found.norm.eps).sqrt()).unique()) == 1
    with torch.inference_mode():
        torch.testing.assert_close(folded(pictures), detector(pictures))
        values = torch.randn(2, 8, 4, 4)
        torch.testing.assert_close(found.norm(values), values + bias[:, None, None])


def test_a_norm_behind_a_linear_layer_stays() -> None:
    class Narrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.narrow, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            narrowed: torch.Tensor = self.last(self.narrow(self.norm(self.first(pictures)).mean((2, 3))))
            return narrowed

    torch.manual_seed(0)
    detector, pictures = small_detector().with_parts(backbone=Narrowed().eval()), some_pictures(4)
    nn.init.normal_(detector.backbone.norm.weight, 2.0)
    folded = with_norms_folded(detector, pictures).backbone
    assert torch.equal(folded.narrow.weight, detector.backbone.narrow.weight)
    assert not torch.equal(folded.first.weight, detector.backbone.first.weight)


def test_a_network_that_computes_its_weights_stays_as_it_is() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels, self.norm = nn.Parameter(torch.rand(2, 8, 3, 3, 3)), nn.BatchNorm2d(8)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            kernel = (self.kernels * pictures.mean()).sum(0)
            mean: torch.Tensor = self.norm(nn.functional.conv2d(pictures, kernel)).mean((2, 3))
            return mean

    detector = small_detector().with_parts(backbone=Mixed().eval())
    assert with_norms_folded(detector, some_pictures(4)) is detector


def test_an_output_that_something_else_takes_too_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            maps = self.first(pictures)
            mean: torch.Tensor = (self.norm(maps) + maps).mean((2, 3))
            return mean

    detector = small_detector().with_parts(backbone=Twice().eval())
    assert norms_behind_layers(detector) == {}
