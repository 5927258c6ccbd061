"""A network of 6 layers with everything that quantization meets: ReLU6, batch norms, a residual sum, a gate, GELU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.int8 import Quantization, Tensors
from compress.observers import ObserverName
from models.detector import Architecture, Detector

SIZE = 32


class _Block(nn.Module):
    """Depthwise and pointwise convolutions about a ReLU6 and a gate, and a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)
        self.gate = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, value: Tensor) -> Tensor:
        inner = nn.functional.relu6(self.norm(self.depthwise(value)))
        gate = torch.sigmoid(self.gate(inner.mean((2, 3), keepdim=True)))
        return value + self.project(inner * gate)


class SmallNetwork(nn.Module):
    """float32 [N, 3, 32, 32] -> [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(_Block(8))
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.gelu(self.mix(self.blocks(self.stem(pictures)))).mean((2, 3))


def small_detector(seed: int = 0) -> Detector:
    """Return one with random weights and random batch norms, ``fused``."""
    torch.manual_seed(seed)
    network = SmallNetwork()
    norm = network.blocks[0].norm
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
    nn.init.normal_(norm.weight, 2.0), nn.init.normal_(norm.bias)
    return Detector(Architecture(backbone="test_byobnet", size=SIZE, fused=True), network).eval()


def some_pictures(count: int, seed: int = 1) -> Tensor:
    """Return smooth random pictures, float32 [N, 3, 32, 32], of zero mean."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")


def quantization_of(
    tensors: Tensors, float_layers: Sequence[str] = (), observer: ObserverName = "minmax"
) -> Quantization:
    """Return what a run would store of these scales."""
    return Quantization(
        observer=observer,
        float_layers=list(float_layers),
        calibration_crops=1,
        calibration_fingerprint="",
        tensors=tensors,
    )
