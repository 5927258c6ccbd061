"""Re-parameterization: folds the branches of a RepViT into single convolutions, and checks that outputs stay equal."""

import torch
from timm.utils import reparameterize_model
from torch import Tensor

from models.detector import Detector
from stage import StageError

FOLDING = ("fuse", "reparameterize", "switch_to_deploy")
"""Names of the methods with which timm's modules fold themselves."""
OUTPUT_TOLERANCE = 1e-3
"""Largest change of outputs, relative to the largest output or to 1: float32 rounding over a hundred layers."""


def fuse(detector: Detector, pictures: Tensor, *valid: Tensor) -> Detector:
    """Return the fused detector, in eval mode, after comparing its logits on ``pictures`` (float32 [N, 3, S, S]).

    A clip detector takes [N, T, 3, S, S] and the mask of ``valid`` frames, bool [N, T]. Parts without anything to fold,
    as the head and a transformer's backbone, are shared with ``detector``. Raises StageError if a logit changes by more
    than rounding explains.
    """
    detector.eval()
    if detector.architecture.fused:
        return detector
    fused = detector.with_parts()
    fused.architecture = detector.architecture.model_copy(update={"fused": True})
    if not any(hasattr(module, name) for module in detector.backbone.modules() for name in FOLDING):
        return fused
    fused.backbone = reparameterize_model(detector.backbone).eval()
    with torch.inference_mode():
        before, after = detector(pictures, *valid), fused(pictures, *valid)
    check_unmoved(before, after, f"fusing {detector.architecture.backbone}", "clips" if valid else "crops")
    return fused


def check_unmoved(before: Tensor, after: Tensor, change: str, samples: str = "crops") -> None:
    """Raise StageError if outputs, float32 [N, ...], before and after a ``change`` differ by more than rounding."""
    difference = float((before - after).abs().max())
    if not difference <= OUTPUT_TOLERANCE * max(1.0, float(before.abs().max())):
        raise StageError(
            f"{change} moves outputs by {difference:.2g} on {len(before)} {samples}: it must not be exported or "
            "quantized"
        )
