"""All that a detector says of a sample: what a student imitates."""

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
"""Of a backbone, whose feature maps can be had: the last ones of a pyramid, evenly spaced ones of a transformer."""


@dataclass(frozen=True)
class Outputs:
    """What a detector says of N frames or clips."""

    logits: Tensor
    """float [N, 2]."""
    embedding: Tensor
    """float [N, D]: pooled over a frame, and of several modalities side by side; of a clip pooled over its frames."""
    maps: tuple[Tensor, ...] = ()
    """float [N, C, H, W] each: a frame's feature maps, stage by stage."""
    frames: Tensor | None = None
    """float [N, T, D]: what each frame of a clip came to, having heard of the others."""
    valid: Tensor | None = None
    """bool [N, T]: which frames of a clip count."""

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Height and width of each feature map."""
        return [(stage.shape[2], stage.shape[3]) for stage in self.maps]


def on_grids(maps: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Return the last of the maps, float [N, C, H, W], one for each of ``grids``, averaged where it is another."""
    pairs = zip(maps[len(maps) - len(grids) :], grids, strict=True)
    return tuple(stage if stage.shape[2:] == grid else _averaged(stage, grid) for stage, grid in pairs)


def _averaged(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if maps.device.type == "mps":  # which has no such pooling where one grid does not divide the other
        return averaged_by_products(maps, grid)
    return adaptive_avg_pool2d(maps, grid)


def averaged_by_products(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what ``adaptive_avg_pool2d`` gives, float [N, C, H', W'], as products with matrices of shares."""
    down, across = (
        adaptive_avg_pool1d(torch.eye(side), cells).to(maps) for side, cells in zip(maps.shape[2:], grid, strict=True)
    )
    return down.T @ maps @ across


def stages_of(backbone: nn.Module) -> list[int]:
    """Return the numbers of the stages whose feature maps are looked at, ever deeper.

    Raises StageError if a backbone gives none.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise StageError(f"timm gives no feature maps of a {type(backbone).__name__}: choose a --loss without dense")
    said: Any = backbone.feature_info
    info: list[dict[str, Any]] = getattr(said, "info", said)
    count, strides = len(info), {stage["reduction"] for stage in info}
    wanted = min(MOST_STAGES, count)
    if len(strides) > 1:
        return list(range(count - wanted, count))
    return [count * (place + 1) // wanted - 1 for place in range(wanted)]


def outputs(detector: Detector, pictures: Tensor, valid: Tensor | None = None, *, with_maps: bool = False) -> Outputs:
    """Return what a detector says of pictures and valid frames, as ``Detector`` takes them; maps only of frames."""
    head: Any = detector.head
    backbone: Any = detector.backbone
    if isinstance(head, ClipHead):
        assert valid is not None
        frames = head.fused(of_valid(backbone, pictures, valid), valid)
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
    """Return embeddings of clips, [N, T, ..., D]; zeros for frames not valid, which batch norms must not see."""
    shown = pictures[valid]
    seen = per_picture(backbone, shown.contiguous(memory_format=torch.channels_last) if shown.ndim == 4 else shown)
    embeddings = seen.new_zeros(*valid.shape, *seen.shape[1:])
    embeddings[valid] = seen
    return embeddings


def _side_by_side(maps: Tensor, samples: int) -> Tensor:
    """Return the maps of a sample's modalities as channels of one: [N * M, C, H, W] -> [N, M * C, H, W]."""
    return maps.reshape(samples, -1, *maps.shape[-2:])


def example_outputs(detector: Detector, frames: int, with_maps: bool) -> Outputs:
    """Return what a detector says of one sample of zeros: the shapes that it gives."""
    training = detector.training
    with torch.no_grad():
        device = next(detector.parameters()).device
        given = (tensor.to(device) for tensor in detector.example(frames))
        found = outputs(detector.eval(), *given, with_maps=with_maps)
    detector.train(training)
    return found
