"""Re-parameterization: the branches of a RepViT folded into single convolutions, and the proof that nothing changed."""

import torch
from timm.utils import reparameterize_model
from torch import Tensor

from models.detector import Detector
from stage import StageError

OUTPUT_TOLERANCE = 1e-3
"""Largest change of an output, absolute and relative to the largest one: float32 rounding over a hundred layers."""


def fuse(detector: Detector, pictures: Tensor, *valid: Tensor) -> Detector:
    """Return the fused detector, in eval mode, after comparing its logits on ``pictures`` (float32 [N, 3, S, S]).

    A clip detector takes [N, T, 3, S, S] and which frames are ``valid``, bool [N, T]. A fused detector comes back as it
    is. Raises StageError if a logit moves by more than rounding explains.
    """
    if detector.architecture.fused:
        return detector.eval()
    detector.eval()
    fused = Detector(
        detector.architecture.model_copy(update={"fused": True}), reparameterize_model(detector.backbone).eval()
    ).eval()
    fused.head.load_state_dict(detector.head.state_dict())
    with torch.inference_mode():
        before, after = detector(pictures, *valid), fused(pictures, *valid)
    check_unmoved(before, after, f"fusing {detector.architecture.backbone}", "clips" if valid else "crops")
    return fused


def check_unmoved(before: Tensor, after: Tensor, change: str, samples: str = "crops") -> None:
    """Raise StageError unless outputs, float32 [N, ...], are after a change what they were, but for rounding."""
    difference = float((before - after).abs().max())
    if not difference <= OUTPUT_TOLERANCE * max(1.0, float(before.abs().max())):
        raise StageError(
            f"{change} moves outputs by {difference:.2g} on {len(before)} real {samples}: it must not be exported or "
            "quantized"
        )
