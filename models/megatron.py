"""Megatron: what the RGB and the depth embeddings of a clip's frames say of each other over time.

Positions are added to the embeddings; each modality has a transformer encoder of its own over the frames; each then
asks the other by cross-attention; both answers are joined, pooled over the frames and classified (Vaswani et al.,
"Attention Is All You Need", NeurIPS 2017; pre-norm: Xiong et al., ICML 2020).
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stage import StageError

POSITION_BASE = 10_000.0


class MegatronSettings(BaseModel):
    """The size of a Megatron head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(2, ge=1)
    """Attention heads, of the encoders and of the cross-attention."""
    layers: int = Field(1, ge=1)
    """Encoder layers of each modality."""
    feed_forward: int = Field(1024, ge=1)
    """Hidden width of an encoder layer's feed-forward network."""
    dropout: float = Field(0.1, ge=0, lt=1)
    pooling: Literal["avg", "max"] = "avg"
    """How a clip's valid frames become one."""


def sinusoidal_positions(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the positions of frames, float32 [T, D]: Vaswani et al. 2017, section 3.5.

    ``PE[t, 2i] = sin(t / 10000^(2i / D))`` and ``PE[t, 2i + 1] = cos(t / 10000^(2i / D))``; ``width`` D is even.
    """
    rates = POSITION_BASE ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(frames, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Encoder(nn.Module):
    """Self-attention over the frames of one modality: float [N, T, D] -> [N, T, D].

    The layers are made one by one: ``nn.TransformerEncoder`` would start them all from the same numbers.
    """

    def __init__(self, width: int, settings: MegatronSettings) -> None:
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
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=masked)
        normed: Tensor = self.norm(frames)
        return normed


class CrossAttention(nn.Module):
    """The frames of one modality ask those of the other: float [N, T, D] twice -> [N, T, D]."""

    def __init__(self, width: int, settings: MegatronSettings) -> None:
        super().__init__()
        self.norm_asking = nn.LayerNorm(width)
        self.norm_asked = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, settings.heads, settings.dropout, batch_first=True)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, asking: Tensor, asked: Tensor, masked: Tensor) -> Tensor:
        """Return ``asking`` with the answers added; frames that are ``masked``, bool [N, T], are not asked."""
        keys = self.norm_asked(asked)
        answers, _ = self.attention(self.norm_asking(asking), keys, keys, key_padding_mask=masked, need_weights=False)
        answered: Tensor = asking + self.dropout(answers)
        return answered


def pooled(frames: Tensor, valid: Tensor, pooling: Literal["avg", "max"]) -> Tensor:
    """Return the mean or the maximum, float [N, D], over the valid frames, bool [N, T], of frames, float [N, T, D].

    At least one frame of each clip must be valid.
    """
    valid = valid[..., None]
    if pooling == "max":
        return frames.masked_fill(~valid, float("-inf")).amax(1)
    return frames.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)


class Megatron(nn.Module):
    """The head of the Megatron teacher: a clip's embeddings to logits.

    Raises StageError if the embeddings' width is odd or no multiple of the number of heads.
    """

    def __init__(self, width: int, settings: MegatronSettings) -> None:
        super().__init__()
        if width % 2 or width % settings.heads:
            raise StageError(
                f"Megatron cannot take embeddings of width {width}: it must be even, for sine and cosine positions, "
                f"and a multiple of heads ({settings.heads}); take another backbone or another number of heads"
            )
        self.settings = settings
        self.dropout = nn.Dropout(settings.dropout)
        self.rgb_encoder, self.depth_encoder = Encoder(width, settings), Encoder(width, settings)
        self.rgb_asks, self.depth_asks = CrossAttention(width, settings), CrossAttention(width, settings)
        self.join = nn.Linear(2 * width, width)
        self.classifier = nn.Linear(width, 2)

    def forward(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return logits, float [N, 2] (real, fake), of embeddings, float [N, T, 2, D] (rgb, depth), any T >= 1.

        Frames that are not ``valid``, bool [N, T], count as if they were left out, whatever their embeddings hold, and
        the others keep their positions. A clip without a valid frame is read as frames of zeros: its logits are finite
        and mean nothing.
        """
        embeddings = embeddings.masked_fill(~valid[..., None, None], 0.0)
        valid = valid | ~valid.any(1, keepdim=True)  # attention and pooling over no frame at all would be NaN
        positions = sinusoidal_positions(embeddings.shape[1], embeddings.shape[3], embeddings.device)
        frames = self.dropout(embeddings + positions[:, None].to(embeddings))
        rgb = self.rgb_encoder(frames[:, :, 0], ~valid)
        depth = self.depth_encoder(frames[:, :, 1], ~valid)
        answers = self.rgb_asks(rgb, depth, ~valid), self.depth_asks(depth, rgb, ~valid)
        logits: Tensor = self.classifier(pooled(self.join(torch.cat(answers, dim=-1)), valid, self.settings.pooling))
        return logits
