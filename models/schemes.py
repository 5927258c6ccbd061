"""Schemes: in which numbers a network computes, other than the float32 in which it was trained.

Static int8 is a program of its own (``compress/int8.py``); the schemes here change a detector's modules.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.detector import Detector
from stage import PALETTES, STATIC_INT8, Scheme

SMALLEST_PALETTE = 2048
"""Values of a tensor that is not given a palette: coremltools' own limit."""
PARTS = 1 << 14
"""Of a tensor's weights in order, whose means stand for them."""


BFLOAT16 = ("avx512_bf16", "bf16", "sve_bf16")
"""How torch calls the instructions for bfloat16 of processors of x86-64 and of Arm."""


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type in which this device is faster than in fp32, or None."""
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return torch.bfloat16 if any(known.get(name) for name in BFLOAT16) else None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def cast_to(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return autocast to ``dtype`` on a device, or none at all."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


class Autocast(nn.Module):
    """Layers in bfloat16 where the device is fast in it, in float16 where it is fast in that alone; float32 weights.

    A device that is fast in neither computes in bfloat16 all the same: slower, and rounded alike.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor, *rest: Tensor) -> Tensor:
        """Return float32."""
        with cast_to(pictures.device, fast_dtype(pictures.device) or torch.bfloat16):
            result: Tensor = self.network(pictures, *rest).float()
        return result


class Half(nn.Module):
    """Weights and activations in float16; takes and gives float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, given: Tensor, *rest: Tensor) -> Tensor:
        """Return float32."""
        result: Tensor = self.network(given.half(), *rest).float()
        return result


def dynamic_layers(detector: Detector) -> list[str]:
    """Return the linear layers that ``int8-dynamic`` rounds: all but the one that gives the logits.

    The projections inside PyTorch's ``MultiheadAttention`` are no modules of their own, and stay in float32.
    """
    return [
        name
        for name, module in detector.named_modules()
        if type(module) is nn.Linear and module is not detector.classifier
    ]


def _dynamic(detector: Detector) -> Detector:
    """Return a copy whose linear layers multiply integers: weights per channel, activations per token as they come."""
    # Imported here: torchao takes seconds to import, and no other scheme needs it.
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layers, rounded = set(dynamic_layers(detector)), copy.deepcopy(detector)
    quantize_(rounded, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda _, name: name in layers)
    return rounded


def _clustered(weights: NDArray[np.float32], clusters: int) -> NDArray[np.float32]:
    """Return weights of any shape, each moved to the nearest of so many values, which k-means finds.

    It sees the means of neighbours, dozens in each cluster: half a million weights would take it minutes.
    """
    if len(np.unique(weights)) <= clusters:
        return weights
    from sklearn.cluster import KMeans  # imported here: it takes seconds, and no other scheme needs it

    flat = np.sort(weights.flatten().astype(np.float64))
    start = np.unique(np.quantile(flat, np.linspace(0, 1, clusters)))[:, None]
    parts = np.array_split(flat, min(len(flat), PARTS))
    means, counts = np.array([part.mean() for part in parts])[:, None], np.array([len(part) for part in parts])
    found = KMeans(len(start), init=start, n_init=1).fit(means, sample_weight=counts)
    centres = np.sort(found.cluster_centers_.flatten())
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, weights.astype(np.float64))
    clustered: NDArray[np.float32] = centres[nearest].astype(np.float32)
    return clustered


def palettized(detector: Detector, bits: int) -> Detector:
    """Return a copy whose large weights have ``2 ** bits`` values each (arXiv 1510.00149, section 3).

    Tensors of SMALLEST_PALETTE values and less stay: Core ML's tools leave them too, as a table would save little.
    """
    found = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1 and parameter.numel() > SMALLEST_PALETTE:
                parameter.copy_(torch.from_numpy(_clustered(parameter.numpy(), 2**bits)))
    return found


def in_scheme(detector: Detector, scheme: Scheme) -> nn.Module:
    """Return a float32 detector in another scheme, in eval mode; it takes and gives what the detector does."""
    assert scheme not in STATIC_INT8, "an integer program is rebuilt from its scales"
    if scheme == "autocast":
        return Autocast(detector).eval()
    if scheme == "fp16":
        return detector.with_parts(Half(detector.backbone), Half(detector.head)).eval()
    if scheme in PALETTES:
        return palettized(detector, PALETTES[scheme]).eval()
    return _dynamic(detector).eval() if scheme == "int8-dynamic" else detector
