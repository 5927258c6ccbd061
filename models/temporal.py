"""Heads over a clip: what the embeddings of its frames say of each other over time.

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
UNHEARD = -3e4
"""Added to the logits of attention to a frame that does not count."""


class EncoderSettings(BaseModel):
    """The size of a transformer encoder over frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(default=2, ge=1, le=256)
    """Attention heads."""
    layers: int = Field(default=1, ge=1, le=256)
    feed_forward: int = Field(default=256, ge=1, le=65536)
    """Hidden width of a layer's feed-forward network."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    pooling: Literal["avg", "max"] = "avg"
    """How a clip's valid frames become one."""


class TemporalSettings(EncoderSettings):
    """The size of a clip student's head."""

    width: int = Field(default=128, ge=2, le=65536)
    """To which embeddings are projected before the encoder."""


def sinusoidal_positions(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the positions of frames, float32 [T, D]: Vaswani et al. 2017, section 3.5.

    ``PE[t, 2i] = sin(t / 10000^(2i / D))`` and ``PE[t, 2i + 1] = cos(t / 10000^(2i / D))``; ``width`` D is even.
    """
    # In NumPy, so that an exported graph holds them as a constant: a phone's runtime would need a dozen operators more.
    rates = POSITION_BASE ** (-np.arange(0, width, 2) / width)
    angles = np.arange(frames)[:, None] * rates
    positions = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(frames, width)
    return torch.tensor(positions, dtype=torch.float32, device=device)


def check_width(head: str, width: int, heads: int) -> None:
    """Raise StageError if frames of a width can have no sinusoidal positions, or cannot be cut into ``heads``."""
    if width % 2 or width % heads:
        raise StageError(
            f"{head} cannot take embeddings of width {width}: it must be even, for sine and cosine positions, "
            f"and a multiple of heads ({heads}); take another backbone or another number of heads"
        )


class Encoder(nn.Module):
    """Self-attention over the frames of one modality: float [N, T, D] -> [N, T, D].

    The layers are made one by one: ``nn.TransformerEncoder`` would start them all from the same numbers.
    """

    def __init__(self, width: int, settings: EncoderSettings) -> None:
        super().__init__()
        # torch.relu, not "relu": for the names it knows, PyTorch runs a layer in eval mode by a fused operator, which
        # rounds differently, is invisible to a counter of operations, and which no export target has.
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
        """Return what each frame has heard; nobody hears a frame that is ``masked``, bool [N, T]."""
        # Added to attention's logits, not handed over as bool: coremltools 9.0 turns a padding mask that is bool into
        # its opposite. Finite, so that no runtime can make a NaN of it; e^-30000 is 0 as well.
        added = torch.zeros_like(frames[..., 0]).masked_fill(masked, UNHEARD)
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=added)
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
    """Return ``valid``, bool [N, T], with all frames of a clip that has no valid one: attention needs something."""
    # Not with |, which coremltools does not know.
    return valid.logical_or(~valid.any(1, keepdim=True))


class ClipHead(nn.Module):
    """A head over a clip's frames: fused features per frame, pooled over the valid ones, classified."""

    def __init__(self, width: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.pooling = settings.pooling
        self.classifier = nn.Linear(width, 2)

    def fused(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return features that have heard of all frames, float [N, T, width], of the frames' embeddings."""
        raise NotImplementedError

    def pooled(self, fused: Tensor, valid: Tensor) -> Tensor:
        """Return one feature per clip, float [N, width], of fused ones."""
        return pooled(fused, some_valid(valid), self.pooling)

    def forward(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return logits, float [N, 2] (real, fake).

        Frames that are not ``valid``, bool [N, T], count as if they were left out, whatever their embeddings hold, and
        the others keep their positions. A clip without a valid frame is read as frames of zeros: its logits are finite
        and mean nothing.
        """
        logits: Tensor = self.classifier(self.pooled(self.fused(embeddings, valid), valid))
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

    def fused(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return features, float [N, T, width]."""
        frames = self.project(embeddings.masked_fill(~valid[..., None], 0.0))
        positions = sinusoidal_positions(frames.shape[1], frames.shape[2], frames.device).to(frames)
        features: Tensor = self.encoder(self.dropout(frames + positions), ~some_valid(valid))
        return features
