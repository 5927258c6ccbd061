"""Heads over a clip, which relate the embeddings of its frames over time.

Positions are added to the embeddings, a transformer encoder relates the frames (Vaswani et al., "Attention Is All You
Need", NeurIPS 2017; pre-norm: Xiong et al., ICML 2020), and the frames are pooled and classified.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stage import StageError

POSITION_BASE = 10_000.0
MASKED_LOGIT = -3e4
"""Added to the attention logits of frames that are not valid."""


class EncoderSettings(BaseModel):
    """The size of a transformer encoder over frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(default=2, ge=1, le=256)
    """Attention heads."""
    layers: int = Field(default=1, ge=1, le=256)
    """Encoder layers."""
    feed_forward: int = Field(default=256, ge=1, le=65536)
    """Hidden width of a layer's feed-forward network."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    pooling: Literal["avg", "max"] = "avg"
    """How the features of a clip's valid frames are pooled: mean or maximum."""


class TemporalSettings(EncoderSettings):
    """The size of a clip student's head."""

    width: int = Field(default=128, ge=2, le=65536)
    """Width to which embeddings are projected before the encoder."""


def sinusoidal_positions(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the position encodings of frames, float32 [T, D]: Vaswani et al. 2017, section 3.5.

    ``PE[t, 2i] = sin(t / 10000^(2i / D))`` and ``PE[t, 2i + 1] = cos(t / 10000^(2i / D))``; ``width`` D is even.
    """
    # In NumPy, so that an exported graph holds a constant: a phone's runtime would need a dozen more operators.
    rates = POSITION_BASE ** (-np.arange(0, width, 2) / width)
    angles = np.arange(frames)[:, None] * rates
    positions = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(frames, width)
    return torch.tensor(positions, dtype=torch.float32, device=device)


def check_width(head: str, width: int, heads: int) -> None:
    """Raise StageError if ``width`` is odd, as sinusoidal positions need pairs, or no multiple of ``heads``."""
    if width % 2 or width % heads:
        raise StageError(
            f"{head} cannot take embeddings of width {width}: it must be even, for sine and cosine positions, "
            f"and a multiple of heads ({heads}); take another backbone or another number of heads"
        )


class Encoder(nn.Module):
    """Self-attention over the frames of one modality: float [N, T, D] -> [N, T, D].

    The layers are created one by one: ``nn.TransformerEncoder`` would initialize all of them with the same weights.
    """

    def __init__(self, width: int, settings: EncoderSettings) -> None:
        super().__init__()
        # torch.relu, not "relu": with the name, PyTorch runs a layer in eval mode as one fused operator, which rounds
        # differently, is invisible to FlopCounterMode, and exists in no export target.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                settings.heads,
                settings.feed_forward,
                settings.dropout,
                activation=torch.relu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor, masked: Tensor) -> Tensor:
        """Return the features of each frame, float [N, T, D], without attention to ``masked`` frames, bool [N, T]."""
        # A float mask that is added to the attention logits, because coremltools 9.0 inverts a bool padding mask.
        # Finite, so that no runtime can turn it into NaN; e^-30000 is 0 as well.
        attention_mask = torch.zeros_like(frames[..., 0]).masked_fill(masked, MASKED_LOGIT)
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=attention_mask)
        normed: Tensor = self.norm(frames)
        return normed


def pooled(frames: Tensor, valid: Tensor, pooling: Literal["avg", "max"]) -> Tensor:
    """Return the mean or the maximum, float [N, D], over the valid frames, bool [N, T], of frames, float [N, T, D].

    At least one frame of each clip must be valid.
    """
    valid = valid[..., None]
    if pooling == "max":
        return frames.masked_fill(~valid, float("-inf")).amax(1)
    return frames.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)


def some_valid(valid: Tensor) -> Tensor:
    """Return ``valid``, bool [N, T], with all frames set for clips without a valid one: attention needs one."""
    # Not with |, which coremltools does not support.
    return valid.logical_or(~valid.any(1, keepdim=True))


class ClipHead(nn.Module):
    """A head over a clip's frames: attention among them, features pooled over the valid ones, classified."""

    def __init__(self, width: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.pooling = settings.pooling
        self.classifier = nn.Linear(width, 2)

    def features(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return the features of each frame after attention to all valid frames, float [N, T, width]."""
        raise NotImplementedError

    def pooled(self, features: Tensor, valid: Tensor) -> Tensor:
        """Return pooled features, float [N, width], of those of each frame, float [N, T, width]."""
        return pooled(features, some_valid(valid), self.pooling)

    def forward(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return logits, float [N, 2] (real, fake).

        Frames that are not ``valid``, bool [N, T], are ignored, whatever their embeddings hold; the others keep their
        positions. A clip without a valid frame is treated as frames of zeros: its logits are finite and mean nothing.
        """
        logits: Tensor = self.classifier(self.pooled(self.features(embeddings, valid), valid))
        return logits


class Temporal(ClipHead):
    """The head of a clip student: embeddings float [N, T, D] of one modality, any T >= 1, to logits.

    Raises StageError if the width of its settings is odd or no multiple of the number of heads.
    """

    def __init__(self, embedding_size: int, settings: TemporalSettings) -> None:
        check_width("the clip student", settings.width, settings.heads)
        super().__init__(settings.width, settings)
        self.project = nn.Linear(embedding_size, settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.encoder = Encoder(settings.width, settings)

    def features(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return features, float [N, T, width]."""
        frames = self.project(embeddings.masked_fill(~valid[..., None], 0.0))
        positions = sinusoidal_positions(frames.shape[1], frames.shape[2], frames.device).to(frames)
        features: Tensor = self.encoder(self.dropout(frames + positions), ~some_valid(valid))
        return features
