"""Megatron: a head that relates the RGB and the depth embeddings of a clip's frames over time.

Each modality has its own transformer encoder over the frames; then each attends to the other by cross-attention; both
results are joined, pooled over the frames and classified (models/temporal.py names the papers).
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from models.temporal import ClipHead, Encoder, EncoderSettings, check_width, sinusoidal_positions, some_valid


class MegatronSettings(EncoderSettings):
    """The size of a Megatron head; ``heads`` also of the cross-attention, ``layers`` per modality."""

    feed_forward: int = Field(default=1024, ge=1, le=65536)


class CrossAttention(nn.Module):
    """Cross-attention from the frames of one modality to those of the other: float [N, T, D] twice -> [N, T, D]."""

    def __init__(self, width: int, settings: MegatronSettings) -> None:
        super().__init__()
        self.norm_asking = nn.LayerNorm(width)
        self.norm_asked = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, settings.heads, settings.dropout, batch_first=True)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, asking: Tensor, asked: Tensor, masked: Tensor) -> Tensor:
        """Return ``asking`` plus its attention to ``asked``; frames that are ``masked``, bool [N, T], are left out."""
        keys = self.norm_asked(asked)
        attended, _ = self.attention(self.norm_asking(asking), keys, keys, key_padding_mask=masked, need_weights=False)
        result: Tensor = asking + self.dropout(attended)
        return result


class Megatron(ClipHead):
    """The head of the Megatron teacher: embeddings float [N, T, 2, D] (rgb, depth), any T >= 1, to logits.

    Raises StageError if the embeddings' width is odd or no multiple of the number of heads.
    """

    def __init__(self, width: int, settings: MegatronSettings) -> None:
        check_width("Megatron", width, settings.heads)
        super().__init__(width, settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.rgb_encoder, self.depth_encoder = Encoder(width, settings), Encoder(width, settings)
        self.rgb_asks, self.depth_asks = CrossAttention(width, settings), CrossAttention(width, settings)
        self.join = nn.Linear(2 * width, width)

    def features(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Return the features of each frame, float [N, T, D], for embeddings, float [N, T, 2, D]."""
        embeddings = embeddings.masked_fill(~valid[..., None, None], 0.0)
        masked = ~some_valid(valid)
        positions = sinusoidal_positions(embeddings.shape[1], embeddings.shape[3], embeddings.device)
        frames = self.dropout(embeddings + positions[:, None].to(embeddings))
        rgb, depth = self.rgb_encoder(frames[:, :, 0], masked), self.depth_encoder(frames[:, :, 1], masked)
        attended = self.rgb_asks(rgb, depth, masked), self.depth_asks(depth, rgb, masked)
        joined: Tensor = self.join(torch.cat(attended, dim=-1))
        return joined
