"""Re-parameterization and its proof."""

import pytest
import torch

from models.detector import Architecture, Detector
from models.fusing import check_unmoved, fuse
from stage import StageError


def _trained_looking(backbone: str) -> Detector:
    """A network whose batch norms have seen data, so that folding them is not the identity."""
    torch.manual_seed(0)
    detector = Detector(Architecture(backbone=backbone, size=64)).train()
    for _ in range(2):
        detector(torch.randn(8, 3, 64, 64) * 2 + 0.5)
    return detector.eval()


def test_fused_repvit_gives_the_same_logits_with_fewer_layers():
    detector = _trained_looking("repvit_m0_9")
    pictures = torch.randn(4, 3, 64, 64)
    fused = fuse(detector, pictures)
    with torch.inference_mode():
        torch.testing.assert_close(fused(pictures), detector(pictures), atol=1e-4, rtol=1e-4)
    assert fused.architecture.fused
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.backbone.modules())


def test_what_has_nothing_to_fold_is_not_copied():
    detector = Detector(Architecture(backbone="test_vit", size=64))
    fused = fuse(detector, torch.zeros(1, 3, 64, 64))
    assert fused.backbone is detector.backbone and fused.architecture.fused and not detector.architecture.fused


def test_fusing_twice_changes_nothing():
    fused = fuse(_trained_looking("repvit_m0_9"), torch.randn(1, 3, 64, 64))
    assert fuse(fused, torch.randn(1, 3, 64, 64)) is fused


def test_difference_is_refused():
    detector = _trained_looking("repvit_m0_9")
    norm = next(module for module in detector.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_var[0] = -norm.eps / 2  # eval divides by a root that the folded weight cannot hold
    norm.running_var[1] = float("nan")
    with pytest.raises(StageError, match=r"fusing repvit_m0_9 moves outputs by .* on 2 crops"):
        fuse(detector, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(("largest", "rounding", "mistake"), [(0.5, 9e-4, 2e-3), (10.0, 9e-3, 2e-2)])
def test_outputs_move_by_a_thousandth_at_most(largest, rounding, mistake):
    before = torch.linspace(-largest, largest, 6).reshape(3, 2)
    check_unmoved(before, before + rounding, "fusing")
    with pytest.raises(StageError, match=rf"fusing moves outputs by {mistake:.2g} on 3 crops: it must not be exported"):
        check_unmoved(before, before + mistake, "fusing")
