"""Inputs of the trained part of a network: cached outputs of the frozen part, or pictures if nothing is frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.caches import CacheKey, FrameCache, shared_cache
from compress.compute import Compute
from data.batches import Batch, read_batch
from data.store import Clip
from data.views import Views
from models.detector import Detector, classify
from models.outputs import of_valid
from models.pixels import PixelDetector, fake_probability
from stage import Modality

PICTURES_AT_ONCE = 32
"""Batch size, in pictures, of a frozen network."""


@dataclass(frozen=True)
class Cut:
    """A detector cut into a frozen and a trained part: logits = classify(head, top(frozen(pictures)))."""

    detector: Detector
    pixels_in: PixelDetector
    frozen: nn.Module
    top: nn.Module
    unfreeze: str
    """The option --unfreeze: a number of blocks, or ``all``."""

    @property
    def cached(self) -> bool:
        """Whether there is a frozen part, whose outputs are cached."""
        return not isinstance(self.frozen, nn.Identity)

    def logits(self, features: Tensor, *valid: Tensor) -> Tensor:
        """Return logits, float [N, 2], of the inputs that ``Features`` returns."""
        architecture = self.detector.architecture
        if architecture.per == "clip" and not self.cached:
            return classify(self.detector.head, of_valid(self.top, features, *valid), *valid)
        leading_axes = 1 + (architecture.per == "clip") + (len(architecture.modalities) > 1)
        embeddings = self.top(features.flatten(0, leading_axes - 1))
        return classify(self.detector.head, embeddings.view(*features.shape[:leading_axes], -1), *valid)


def _normalization(detector: PixelDetector) -> str:
    """Return a detector's normalization of pixels as text, for a cache's key."""
    return f"mean {detector.normalize.mean.flatten().tolist()}, scale {detector.normalize.scale.flatten().tolist()}"


class Features:
    """Computes the inputs of the trained part for the views of a split.

    Frames: float32 [B, ...], or [B, M, ...] of several modalities; clips: float32 [B, T, M, ...] and the mask of valid
    frames, bool [B, T].
    """

    def __init__(self, cut: Cut, views: Views, compute: Compute, cache: Path) -> None:
        self._cut, self._views, self._compute = cut, views, compute
        self._numbers = {view.clip.clip_id: number for number, view in enumerate(views.views)}
        self._caches = [self._cache(name, cache) for name in views.modalities] if cut.cached else []

    def _cache(self, modality: Modality, root: Path) -> FrameCache:
        cut, views = self._cut, self._views
        settings = f"{cut.detector.architecture.backbone}, --unfreeze {cut.unfreeze}, {_normalization(cut.pixels_in)}"
        key = CacheKey.of_views(
            "frozen features", views, (modality,), cut.frozen, settings, precision=self._compute.numbers
        )
        cut.frozen.eval()
        return shared_cache(root, key, views, self._frozen, self._compute)

    def _frozen(self, pixels: NDArray[np.uint8], _valid: NDArray[np.bool_]) -> Tensor:
        """Return the frozen part's outputs, float32 [T, ...], for pictures, uint8 [T, S, S, 3]."""
        with torch.inference_mode(), self._compute.context():
            starts = range(0, len(pixels), PICTURES_AT_ONCE)
            batches = [self._pictures(pixels[start : start + PICTURES_AT_ONCE]) for start in starts]
            return torch.cat([self._cut.frozen(pictures).float() for pictures in batches])

    def _pictures(self, pixels: NDArray[np.uint8]) -> Tensor:
        pictures = self._cut.pixels_in.pictures(torch.from_numpy(pixels).to(self._compute.device))
        return pictures.contiguous(memory_format=torch.channels_last) if pictures.ndim == 4 else pictures

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the inputs of a batch's samples."""
        if self._cut.detector.architecture.per == "clip":
            return self._of_clips(batch)
        if self._caches:
            return (self._cached(batch.rows),)
        return (self._pictures(read_batch(self._views, batch).pixels),)

    def _of_clips(self, batch: Batch) -> tuple[Tensor, ...]:
        device, frames = self._compute.device, self._views.store.frames
        if not self._caches:
            read = read_batch(self._views, batch, "clip")
            return self._pictures(read.pixels), torch.from_numpy(read.valid).to(device)
        features = self._cached(batch.frame_rows(frames))
        valid = np.stack([self._views.views[row].valid for row in batch.rows.tolist()])
        return features.view(len(batch.rows), frames, *features.shape[1:]), torch.from_numpy(valid).to(device)

    def _cached(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the features of frames, float32 [B, ...], or [B, M, ...] of several modalities."""
        features = [cache[rows] for cache in self._caches]
        joined = features[0] if len(features) == 1 else torch.stack(features, dim=1)
        return joined.to(self._compute.device)

    def score(self, clips: Sequence[Clip]) -> list[NDArray[np.float32]]:
        """Return P(fake) of each clip: float32 [valid frames], or [1] of a clip model. The views must be plain."""
        per_clip, frames = self._cut.detector.architecture.per == "clip", self._views.store.frames
        rows = [
            np.array([number]) if per_clip else number * frames + np.flatnonzero(clip.valid)
            for clip, number in ((clip, self._numbers[clip.clip_id]) for clip in clips)
        ]
        all_rows = np.concatenate(rows)
        logits = self._cut.logits(*self(Batch(all_rows, np.zeros(len(all_rows), np.int64))))
        scores: NDArray[np.float32] = fake_probability(logits).cpu().numpy()
        return np.split(scores, np.cumsum([len(clip_rows) for clip_rows in rows])[:-1])
