"""All outputs of a detector that a student can imitate: logits, embeddings and feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from models.detector import Detector, classify, per_picture
from models.temporal import ClipHead
from stage import StageError

MOST_STAGES = 4
"""Largest number of stages with feature maps: the last ones of a pyramid, evenly spaced ones of a transformer."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a detector for N frames or clips."""

    logits: Tensor
    """float [N, 2] (real, fake)."""
    embedding: Tensor
    """float [N, D]: pooled over a frame, several modalities concatenated; for clips pooled over the frames."""
    maps: tuple[Tensor, ...] = ()
    """float [N, C, H, W] each: feature maps of frames, stage by stage."""
    frames: Tensor | None = None
    """float [N, T, D]: features of each frame of a clip, after attention to the other frames; None for frames."""
    valid: Tensor | None = None
    """bool [N, T]: the valid frames of a clip; None for frames."""

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Height and width of each feature map."""
        return [(stage.shape[2], stage.shape[3]) for stage in self.maps]


def on_grids(maps: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Return the last maps, float [N, C, H, W], one per grid of ``grids``, averaged to it where their own differs."""
    pairs = zip(maps[len(maps) - len(grids) :], grids, strict=True)
    return tuple(stage if stage.shape[2:] == grid else _averaged(stage, grid) for stage, grid in pairs)


def _averaged(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return maps, float [N, C, H, W], averaged to a grid."""
    if maps.device.type == "mps":  # it lacks this pooling where one grid does not divide the other
        return averaged_by_products(maps, grid)
    return adaptive_avg_pool2d(maps, grid)


def averaged_by_products(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return ``adaptive_avg_pool2d`` of maps, float [N, C, H, W] -> [N, C, H', W'], by products with matrices."""
    row_pooling, column_pooling = (
        adaptive_avg_pool1d(torch.eye(side), cells).to(maps) for side, cells in zip(maps.shape[2:], grid, strict=True)
    )
    return row_pooling.T @ maps @ column_pooling


def stages_of(backbone: nn.Module) -> list[int]:
    """Return the indices of the stages whose feature maps are used, in the order of depth.

    Raises StageError if timm gives no feature maps of the backbone.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise StageError(f"timm gives no feature maps of a {type(backbone).__name__}: choose a --loss without dense")
    feature_info: Any = backbone.feature_info
    info: list[dict[str, Any]] = getattr(feature_info, "info", feature_info)
    count, strides = len(info), {stage["reduction"] for stage in info}
    stages = min(MOST_STAGES, count)
    if len(strides) > 1:
        return list(range(count - stages, count))
    return [count * (stage + 1) // stages - 1 for stage in range(stages)]


def outputs(detector: Detector, pictures: Tensor, valid: Tensor | None = None, *, with_maps: bool = False) -> Outputs:
    """Return a detector's outputs for pictures and valid frames, as ``Detector`` takes them.

    ``with_maps``: include feature maps, which only frame detectors have.
    """
    head: Any = detector.head
    backbone: Any = detector.backbone
    if isinstance(head, ClipHead):
        assert valid is not None
        frames = head.features(of_valid(backbone, pictures, valid), valid)
        embedding = head.pooled(frames, valid)
        return Outputs(head.classifier(embedding), embedding, frames=frames, valid=valid)
    if not with_maps:
        embedding = per_picture(backbone, pictures)
        return Outputs(classify(head, embedding), embedding.flatten(1))
    stages = stages_of(backbone)
    final, maps = backbone.forward_intermediates(pictures.flatten(0, -4), indices=stages)
    embedding = backbone.forward_head(final).reshape(len(pictures), -1)
    logits: Tensor = head(embedding)
    return Outputs(logits, embedding, tuple(_side_by_side(stage, len(pictures)) for stage in maps))


def of_valid(backbone: nn.Module, pictures: Tensor, valid: Tensor) -> Tensor:
    """Return embeddings of clips, float [N, T, ..., D]; zeros for invalid frames, which batch norms must not see."""
    valid_pictures = pictures[valid]
    if valid_pictures.ndim == 4:
        valid_pictures = valid_pictures.contiguous(memory_format=torch.channels_last)
    valid_embeddings = per_picture(backbone, valid_pictures)
    embeddings = valid_embeddings.new_zeros(*valid.shape, *valid_embeddings.shape[1:])
    embeddings[valid] = valid_embeddings
    return embeddings


def _side_by_side(maps: Tensor, samples: int) -> Tensor:
    """Return the maps of each sample's modalities joined as channels: [N * M, C, H, W] -> [N, M * C, H, W]."""
    return maps.reshape(samples, -1, *maps.shape[-2:])


def example_outputs(detector: Detector, frames: int, with_maps: bool) -> Outputs:
    """Return a detector's outputs for one sample of zeros, which show their shapes."""
    training = detector.training
    with torch.no_grad():
        device = next(detector.parameters()).device
        inputs = (tensor.to(device) for tensor in detector.example(frames))
        example = outputs(detector.eval(), *inputs, with_maps=with_maps)
    detector.train(training)
    return example
