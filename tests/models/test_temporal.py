"""The clip student's head against the same arithmetic in NumPy; what no megatron test says of both."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.detector import Architecture, Detector
from models.megatron import MegatronSettings
from models.temporal import Temporal, TemporalSettings
from stage import StageError
from tests.models.attention_oracle import AttentionOracle

GIVEN, WIDTH = 5, 8


def _head(pooling: str = "avg", layers: int = 1, heads: int = 2, dropout: float = 0.1) -> Temporal:
    """A head whose every parameter counts: norms and biases, which start at one and zero, are drawn as well."""
    torch.manual_seed(0)
    settings = TemporalSettings(
        width=WIDTH, heads=heads, layers=layers, feed_forward=16, dropout=dropout, pooling=pooling
    )
    head = Temporal(GIVEN, settings)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head.eval()


def _embeddings(clips: int, frames: int) -> torch.Tensor:
    return torch.randn(clips, frames, GIVEN, generator=torch.Generator().manual_seed(1))


class _Oracle(AttentionOracle):
    """One clip through the head; masked frames are not there at all."""

    def logits(self, embeddings: np.ndarray, frames: list[int]) -> np.ndarray:
        """Return logits [2] of embeddings [T, D] when only ``frames`` are there."""
        x = np.stack([self.linear("project", embeddings[t].astype(np.float64)) + self.position(t) for t in frames])
        x = self.encoder("encoder", x)
        return self.linear("classifier", x.mean(0) if self.settings.pooling == "avg" else x.max(0))


@pytest.mark.parametrize(("pooling", "layers", "heads"), [("avg", 1, 2), ("max", 1, 1), ("avg", 2, 4)])
def test_logits_are_those_of_numpy_and_a_masked_frame_is_a_left_out_frame(pooling, layers, heads):
    there = [[0], [0, 1], [0, 1, 2], [1], [0, 2]]
    head, embeddings = _head(pooling, layers, heads), _embeddings(len(there), 3)
    settings = TemporalSettings(width=WIDTH, heads=heads, layers=layers, pooling=pooling)
    valid = torch.tensor([[t in frames for t in range(3)] for frames in there])
    oracle = _Oracle(head, settings, WIDTH)
    expected = [oracle.logits(clip, frames) for clip, frames in zip(embeddings.numpy(), there, strict=True)]
    for gradient in (True, False):  # without it, PyTorch may take other kernels
        with torch.set_grad_enabled(gradient):
            np.testing.assert_allclose(head(embeddings, valid).detach(), expected, atol=1e-5, rtol=1e-5)
    for clip, count in ((0, 1), (1, 2)):  # masked at the end: as if the clip were shorter
        alone = head(embeddings[clip : clip + 1, :count], torch.ones(1, count, dtype=torch.bool))
        np.testing.assert_allclose(alone[0].detach(), expected[clip], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_garbage_in_masked_frames_changes_nothing_not_even_gradients(garbage):
    head, clean = _head(), _embeddings(2, 4)
    valid = torch.tensor([[True, False, True, True], [True] * 4])
    spoiled = clean.masked_fill(~valid[..., None], garbage).requires_grad_()
    torch.testing.assert_close(head(spoiled, valid), head(clean, valid), atol=0, rtol=0)
    head(spoiled, valid).square().sum().backward()
    assert spoiled.grad[0, 1].count_nonzero() == 0
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_clip_without_a_valid_frame_is_a_clip_of_zeros():
    head = _head()
    logits = head(torch.full((1, 2, GIVEN), math.nan), torch.zeros(1, 2, dtype=torch.bool))
    expected = _Oracle(head, TemporalSettings(width=WIDTH), WIDTH).logits(np.zeros((2, GIVEN)), [0, 1])
    np.testing.assert_allclose(logits[0].detach(), expected, atol=1e-5, rtol=1e-5)


def test_order_of_frames_matters():
    head, embeddings = _head(), _embeddings(1, 3)
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert (head(embeddings, valid) - head(embeddings[:, [1, 0, 2]], valid)).abs().max() > 1e-3


@pytest.mark.parametrize(("width", "heads"), [(7, 1), (9, 3), (8, 3)])
def test_width_that_does_not_fit_is_refused(width, heads):
    message = rf"the clip student cannot take embeddings of width {width}: it must be even, .* of heads \({heads}\)"
    with pytest.raises(StageError, match=message):
        Temporal(GIVEN, TemporalSettings(width=width, heads=heads))


def test_a_temporal_head_takes_one_modality_and_stands_alone():
    message = "a temporal head takes one modality, and stands alone"
    settings = TemporalSettings()
    with pytest.raises(ValidationError, match=message):
        Architecture(backbone="test_vit", size=64, modalities=("rgb", "depth"), temporal=settings)
    with pytest.raises(ValidationError, match=message):
        Architecture(
            backbone="test_vit", size=64, modalities=("rgb", "depth"), temporal=settings, megatron=MegatronSettings()
        )
    architecture = Architecture(backbone="test_vit", size=64, modalities=("depth",), temporal=settings)
    assert architecture.per == "clip"
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture


def test_a_clip_detector_is_its_backbone_frame_by_frame_and_its_head():
    torch.manual_seed(0)
    settings = TemporalSettings(width=WIDTH, feed_forward=16)
    detector = Detector(Architecture(backbone="test_byobnet", size=64, temporal=settings)).eval()
    pictures, valid = torch.randn(2, 3, 3, 64, 64), torch.tensor([[True, True, False], [True, True, True]])
    each = torch.stack([detector.backbone(clip) for clip in pictures])
    torch.testing.assert_close(detector(pictures, valid), detector.head(each, valid))
    pictures, valid = detector.example(5)
    assert (pictures.shape, valid.shape) == ((1, 5, 3, 64, 64), (1, 5))
