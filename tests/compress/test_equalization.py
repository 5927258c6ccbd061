"""Equalization changes weights and not what a network computes."""

import pytest
import torch

from compress.equalization import equalize
from compress.graph import layers_of, traced
from models.fusing import fuse
from models.run import Run
from tests.compress.small_network import small_detector, some_pictures


def _reach(detector, layer, pictures):
    """Return how far each channel of a layer's output reaches, by a hook, float [C]."""
    seen = []
    handle = detector.backbone.get_submodule(layer).register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.inference_mode():
        detector(pictures)
    handle.remove()
    return seen[0].abs().amax((0, 2, 3))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_network_computes_what_it_did(strength):
    detector, pictures = small_detector(), some_pictures(8)
    equal = equalize(detector, [pictures], strength)
    with torch.inference_mode():
        torch.testing.assert_close(equal(pictures), detector(pictures), rtol=1e-5, atol=1e-5)
    assert not torch.equal(equal.backbone.stem.weight, detector.backbone.stem.weight)


def test_a_real_student_computes_what_it_did(student_run, real_crops):
    run = Run(student_run)
    pictures = torch.from_numpy(real_crops).permute(0, 3, 1, 2) / 128.0 - 1.0
    fused = fuse(run.detector(), pictures)
    with torch.inference_mode():
        torch.testing.assert_close(equalize(fused, [pictures])(pictures), fused(pictures), rtol=1e-4, atol=1e-4)


def test_at_full_strength_all_channels_of_a_free_tensor_reach_equally_far():
    detector, pictures = small_detector(), some_pictures(8)
    with torch.no_grad():
        detector.backbone.stem.weight[2] *= 20
        detector.backbone.stem.weight[5] /= 20
    sums = [
        (d.backbone.stem(pictures), d.backbone.blocks(d.backbone.stem(pictures)))
        for d in (detector, equalize(detector, [pictures], 1.0))
    ]
    before, after = (torch.stack([t.abs().amax((0, 2, 3)) for t in pair]).amax(0) for pair in sums)
    assert before.max() > 30 * before.min()
    torch.testing.assert_close(after, torch.full_like(after, float(before.max())))


def test_a_channel_that_is_nearly_always_zero_is_multiplied_by_a_thousand_at_most():
    detector, pictures = small_detector(), some_pictures(8)
    with torch.no_grad():
        detector.backbone.stem.weight[5], detector.backbone.stem.bias[5] = 1e-7, 0.0
        detector.backbone.blocks[0].project.weight[5] = 0.0
        detector.backbone.blocks[0].project.bias[5] = 0.0
    before, after = (d.backbone.stem.weight[5] for d in (detector, equalize(detector, [pictures], 1.0)))
    torch.testing.assert_close(after / before, torch.full_like(before, 1000.0))


def test_what_no_factor_may_pass_is_left_alone():
    detector, pictures = small_detector(), some_pictures(8)
    equal = equalize(detector, [pictures], 1.0)
    # Before GELU, before ReLU6 (through its batch norm), before a sigmoid, and behind a GELU.
    for layer in ("mix", "blocks.0.gate"):
        torch.testing.assert_close(_reach(equal, layer, pictures), _reach(detector, layer, pictures))
    assert torch.equal(equal.backbone.blocks[0].norm.weight, detector.backbone.blocks[0].norm.weight)
    assert torch.equal(equal.head.weight, detector.head.weight)


def test_a_layer_that_is_used_twice_is_left_alone():
    detector, pictures = small_detector(), some_pictures(4)
    detector.backbone.mix = detector.backbone.blocks[0].project
    assert len(set(layers_of(traced(detector)).values())) == 4
    equal = equalize(detector, [pictures], 1.0)
    with torch.inference_mode():
        torch.testing.assert_close(equal(pictures), detector(pictures), rtol=1e-5, atol=1e-5)
