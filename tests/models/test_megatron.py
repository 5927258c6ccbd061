"""The Megatron head against the same arithmetic in NumPy."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.megatron import Megatron, MegatronSettings
from models.temporal import sinusoidal_positions
from stage import StageError
from tests.models.attention_oracle import AttentionOracle

WIDTH = 8


def _head(pooling: str = "avg", layers: int = 1, heads: int = 2, dropout: float = 0.1) -> Megatron:
    """A head whose every parameter counts: norms and biases, which start at one and zero, are drawn as well."""
    torch.manual_seed(0)
    settings = MegatronSettings(heads=heads, layers=layers, feed_forward=16, dropout=dropout, pooling=pooling)
    head = Megatron(WIDTH, settings)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head.eval()


def _embeddings(clips: int, frames: int) -> torch.Tensor:
    return torch.randn(clips, frames, 2, WIDTH, generator=torch.Generator().manual_seed(1))


class _Oracle(AttentionOracle):
    """One clip through the head; masked frames are not there at all."""

    def logits(self, embeddings: np.ndarray, frames: list[int]) -> np.ndarray:
        """Return logits [2] of embeddings [T, 2, D] when only ``frames`` are there."""
        rgb, depth = (
            np.stack([embeddings[t, which] + self.position(t) for t in frames]).astype(np.float64) for which in (0, 1)
        )
        rgb, depth = self.encoder("rgb_encoder", rgb), self.encoder("depth_encoder", depth)
        answers = np.hstack([self.cross("rgb_asks", rgb, depth), self.cross("depth_asks", depth, rgb)])
        joined = self.linear("join", answers)
        return self.linear("classifier", joined.mean(0) if self.settings.pooling == "avg" else joined.max(0))

    def cross(self, name: str, asking: np.ndarray, asked: np.ndarray) -> np.ndarray:
        normed = self.norm(f"{name}.norm_asking", asking), self.norm(f"{name}.norm_asked", asked)
        return asking + self.attention(f"{name}.attention", *normed)


@pytest.mark.parametrize(("pooling", "layers", "heads"), [("avg", 1, 2), ("max", 1, 1), ("avg", 3, 4), ("max", 2, 2)])
def test_logits_are_those_of_numpy_and_a_masked_frame_is_a_left_out_frame(pooling, layers, heads):
    there = [[0], [0, 1], [0, 1, 2], [1], [0, 2], [1, 3], [0, 1, 2, 3]]
    head, embeddings = _head(pooling, layers, heads), _embeddings(len(there), 4)
    valid = torch.tensor([[t in frames for t in range(4)] for frames in there])
    settings = MegatronSettings(heads=heads, layers=layers, pooling=pooling)
    oracle = _Oracle(head, settings, WIDTH)
    expected = [oracle.logits(clip, frames) for clip, frames in zip(embeddings.numpy(), there, strict=True)]
    for gradient in (True, False):  # without it, PyTorch may take other kernels
        with torch.set_grad_enabled(gradient):
            np.testing.assert_allclose(head(embeddings, valid).detach(), expected, atol=1e-5, rtol=1e-5)
    for clip, count in ((0, 1), (1, 2), (2, 3)):
        alone = head(embeddings[clip : clip + 1, :count], torch.ones(1, count, dtype=torch.bool))
        np.testing.assert_allclose(alone[0].detach(), expected[clip], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_garbage_in_masked_frames_changes_nothing_not_even_gradients(garbage, pooling):
    head, clean = _head(pooling), _embeddings(2, 5)
    valid = torch.tensor([[True, False, True, True, False], [True] * 5])
    spoiled = clean.masked_fill(~valid[..., None, None], garbage).requires_grad_()
    torch.testing.assert_close(head(spoiled, valid), head(clean, valid), atol=0, rtol=0)
    head(spoiled, valid).square().sum().backward()
    assert spoiled.grad[0, 1].count_nonzero() == 0
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_order_of_frames_matters():
    head, embeddings = _head(), _embeddings(1, 3)
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert (head(embeddings, valid) - head(embeddings[:, [1, 0, 2]], valid)).abs().max() > 1e-3


def test_clip_without_a_valid_frame_is_a_clip_of_zeros():
    head = _head()
    valid = torch.tensor([[False, False], [True, True]])
    logits = head(torch.full((2, 2, 2, WIDTH), math.nan).masked_fill(valid[..., None, None], 1.0), valid)
    np.testing.assert_allclose(
        logits[0].detach(),
        _Oracle(head, MegatronSettings(), WIDTH).logits(np.zeros((2, 2, WIDTH)), [0, 1]),
        atol=1e-5,
        rtol=1e-5,
    )
    assert logits[1].isfinite().all()


@pytest.mark.parametrize(("frames", "width"), [(1, 2), (20, 384)])
def test_positions_are_those_of_the_paper(frames, width):
    expected = np.empty((frames, width))
    for t in range(frames):
        for i in range(width // 2):
            angle = t / 10000 ** (2 * i / width)
            expected[t, 2 * i : 2 * i + 2] = math.sin(angle), math.cos(angle)
    np.testing.assert_allclose(sinusoidal_positions(frames, width), expected, atol=2e-6)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_gradient_reaches_every_parameter(pooling):
    head = _head(pooling, layers=2).train()
    head(_embeddings(4, 6), torch.ones(4, 6, dtype=torch.bool)).square().sum().backward()
    assert [name for name, p in head.named_parameters() if not p.grad.abs().max() > 1e-6] == []


def test_layers_start_from_numbers_of_their_own():
    first, second = Megatron(WIDTH, MegatronSettings(layers=2)).rgb_encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_dropout_is_for_training_only():
    head, embeddings, valid = _head(dropout=0.5), _embeddings(1, 3), torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(head(embeddings, valid), head(embeddings, valid), atol=0, rtol=0)
    head.train()
    assert not torch.equal(head(embeddings, valid), head(embeddings, valid))


def test_autocast_is_near_float32():
    head, embeddings = _head(layers=2), _embeddings(8, 5)
    valid = torch.rand(8, 5, generator=torch.Generator().manual_seed(2)) > 0.4
    with torch.inference_mode():
        expected = head(embeddings, valid)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(embeddings, valid)
    assert logits.dtype == torch.bfloat16
    noise = (logits.float() - expected).square().mean() / expected.square().mean()
    assert -10 * noise.log10() > 30


def test_exported_program_is_the_head():
    head, embeddings = _head("max"), _embeddings(5, 4)
    valid = torch.tensor([[True] * 4, [True, False, True, True], [False, True, False, False], [False] * 4, [True] * 4])
    batch = torch.export.Dim("batch")
    program = torch.export.export(head, (embeddings[:2], valid[:2]), dynamic_shapes=({0: batch}, {0: batch}))
    torch.testing.assert_close(program.module()(embeddings, valid), head(embeddings, valid), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("width", "heads"), [(7, 1), (9, 3), (8, 3)])
def test_width_that_does_not_fit_is_refused(width, heads):
    message = rf"embeddings of width {width}: it must be even, .* multiple of heads \({heads}\); take another backbone"
    with pytest.raises(StageError, match=message):
        Megatron(width, MegatronSettings(heads=heads))


@pytest.mark.parametrize("setting", [{"heads": 0}, {"layers": 0}, {"dropout": 1.0}, {"pooling": "mean"}, {"more": 1}])
def test_settings_are_checked(setting):
    with pytest.raises(ValidationError, match=next(iter(setting))):
        MegatronSettings(**setting)
