"""Schemes: number formats, other than the float32 of training, in which a network stores weights and computes.

Static int8 is a separate program (``compress/int8.py``); the schemes here change a detector's modules.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.detector import Detector
from stage import PALETTES, STATIC_INT8, Scheme

LARGEST_WITHOUT_PALETTE = 2048
"""Largest number of values of a tensor that gets no palette: the limit of coremltools."""
PARTS = 1 << 14
"""Number of parts of a tensor's sorted weights; k-means runs on the means of these parts."""

BFLOAT16 = ("avx512_bf16", "bf16", "sve_bf16")
"""Torch's names of the bfloat16 instructions of x86-64 and Arm processors."""


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type in which a device is faster than in fp32, or None."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if any(capabilities.get(name) for name in BFLOAT16) else None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def cast_to(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return an autocast context to ``dtype`` on a device, disabled if ``dtype`` is None."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


class Autocast(nn.Module):
    """Runs a network with float32 weights under autocast to the device's fast 16-bit type (``fast_dtype``).

    A device without one uses bfloat16 nevertheless: it is slower, but rounds in the same way.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor, *rest: Tensor) -> Tensor:
        """Return the network's output in float32."""
        with cast_to(pictures.device, fast_dtype(pictures.device) or torch.bfloat16):
            result: Tensor = self.network(pictures, *rest).float()
        return result


class Half(nn.Module):
    """Runs a network with weights and activations in float16; inputs and outputs are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, given: Tensor, *rest: Tensor) -> Tensor:
        """Return the network's output in float32."""
        result: Tensor = self.network(given.half(), *rest).float()
        return result


def dynamic_layers(detector: Detector) -> list[str]:
    """Return the names of the linear layers that ``int8-dynamic`` rounds: all except the one of the logits.

    The projections inside PyTorch's ``MultiheadAttention`` are not separate modules, and stay in float32.
    """
    return [
        name
        for name, module in detector.named_modules()
        if type(module) is nn.Linear and module is not detector.classifier
    ]


def _dynamic(detector: Detector) -> Detector:
    """Return a copy whose linear layers multiply integers; scales: of weights per channel, of activations per token."""
    # Imported here: torchao takes seconds to import, and no other scheme needs it.
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layers = set(dynamic_layers(detector))
    rounded = copy.deepcopy(detector)
    quantize_(rounded, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda _, name: name in layers)
    return rounded


def _clustered(weights: NDArray[np.float32], clusters: int) -> NDArray[np.float32]:
    """Return weights of any shape, each replaced by the nearest of ``clusters`` values, which k-means finds.

    K-means runs on the means of neighbouring weights, dozens in each cluster: half a million weights would take it
    minutes.
    """
    if len(np.unique(weights)) <= clusters:
        return weights
    from sklearn.cluster import KMeans  # imported here: it takes seconds, and no other scheme needs it

    ordered = np.sort(weights.flatten().astype(np.float64))
    start = np.unique(np.quantile(ordered, np.linspace(0, 1, clusters)))[:, None]
    parts = np.array_split(ordered, min(len(ordered), PARTS))
    means = np.array([part.mean() for part in parts])[:, None]
    counts = np.array([len(part) for part in parts])
    kmeans = KMeans(len(start), init=start, n_init=1).fit(means, sample_weight=counts)
    centres = np.sort(kmeans.cluster_centers_.flatten())
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, weights.astype(np.float64))
    clustered: NDArray[np.float32] = centres[nearest].astype(np.float32)
    return clustered


def palettized(detector: Detector, bits: int) -> Detector:
    """Return a copy whose large weight tensors have at most ``2 ** bits`` values each (arXiv 1510.00149, section 3).

    Tensors of at most LARGEST_WITHOUT_PALETTE values stay as they are, as in Core ML's tools: a table would save
    little.
    """
    result = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.ndim > 1 and parameter.numel() > LARGEST_WITHOUT_PALETTE:
                parameter.copy_(torch.from_numpy(_clustered(parameter.numpy(), 2**bits)))
    return result


def in_scheme(detector: Detector, scheme: Scheme) -> nn.Module:
    """Return a float32 detector in another scheme, in eval mode, with the same inputs and outputs."""
    assert scheme not in STATIC_INT8, "an integer program is rebuilt from its scales"
    if scheme == "autocast":
        return Autocast(detector).eval()
    if scheme == "fp16":
        return detector.with_parts(Half(detector.backbone), Half(detector.head)).eval()
    if scheme in PALETTES:
        return palettized(detector, PALETTES[scheme]).eval()
    return _dynamic(detector).eval() if scheme == "int8-dynamic" else detector
