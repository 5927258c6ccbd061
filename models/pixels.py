"""From raw pixels to P(fake): what every artifact computes around a detector."""

from typing import Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

BYTE_MAX = 255.0


class Preprocessing(BaseModel):
    """From raw pixels to what the backbone sees: ``(pixel / 255 - mean) / std``, channels in RGB order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    colour: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, backbone: str) -> "Preprocessing":
        """Return the mean and standard deviation that timm states for a backbone."""
        cfg = timm.get_pretrained_cfg(backbone)
        return cls(mean=tuple(cfg.mean), std=tuple(cfg.std))


def fake_probability(logits: Tensor) -> Tensor:
    """Return P(fake), float32 [N], for logits [N, 2] (real, fake)."""
    return torch.softmax(logits.float(), dim=-1)[:, 1]


class Normalize(nn.Module):
    """Maps pixels 0..255, float32 [N, 3, S, S], to normalized pictures of the same shape."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * BYTE_MAX
        scale = 1.0 / (torch.tensor(preprocessing.std).view(1, 3, 1, 1) * BYTE_MAX)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normalized pictures, float32 [N, 3, S, S]."""
        return (pixels - self.mean) * self.scale


class PixelDetector(nn.Module):
    """Maps raw pixels to P(fake): uint8 [N, S, S, 3] RGB 0..255 -> float32 [N]. Every artifact computes this.

    Several modalities: uint8 [N, M, S, S, 3]; clips: uint8 [N, T, (M,) S, S, 3], with ``valid``, bool [N, T].
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.network = network

    def pictures(self, pixels: Tensor) -> Tensor:
        """Return normalized pictures, float32 [..., 3, S, S], for pixels, uint8 [..., S, S, 3]."""
        # Cast before permuting: ExecuTorch permutes bytes in a slow portable kernel, but floats in XNNPACK. This order
        # takes 6.4 ms, the other one 7.6 ms (int8 RepViT-M0.9, one thread).
        last_axis = pixels.ndim - 1
        planar_axes = (*range(last_axis - 2), last_axis, last_axis - 2, last_axis - 1)
        normalized: Tensor = self.normalize(pixels.to(torch.float32).permute(planar_axes))
        return normalized

    def forward(self, pixels: Tensor, *valid: Tensor) -> Tensor:
        """Return P(fake), float32 [N]."""
        return fake_probability(self.network(self.pictures(pixels), *valid))


class ImageDetector(nn.Module):
    """Maps planar pixels to P(fake), for runtimes with image inputs: float32 [N, 3, S, S] RGB 0..255 -> float32 [N]."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return P(fake), float32 [N]."""
        return fake_probability(self.network(self.normalize(image)))
