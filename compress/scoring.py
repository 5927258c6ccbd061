"""Scores of clips by anything that turns pixels into P(fake): a run in torch or an artifact in its runtime.

Imports neither torch nor scikit-learn: a worker that measures an artifact needs neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.store import Clip, ClipStore
from stage import progress

if TYPE_CHECKING:
    from compress.metrics import Metrics

Scorer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Crops, uint8 [N, S, S, 3] RGB 0..255, to P(fake), float32 [N]."""


@dataclass(frozen=True)
class ClipScores:
    """Scores of the clips of a split."""

    clip_ids: tuple[str, ...]
    labels: NDArray[np.int64]
    """int64 [N], 1 = fake."""
    frames: NDArray[np.float64]
    """float64 [N, T], P(fake) per frame; NaN where the frame is not valid."""

    @property
    def clips(self) -> NDArray[np.float64]:
        """float64 [N]: a clip's score is the mean over its valid frames."""
        mean: NDArray[np.float64] = np.nanmean(self.frames, axis=1)
        return mean

    def metrics(self, threshold: float) -> "Metrics":
        """Compute all accuracy figures; ``accuracy`` is at ``threshold``."""
        from compress.metrics import compute_metrics

        return compute_metrics(self.labels, self.clips, self.frames, threshold)


def score_clip_list(scorer: Scorer, store: ClipStore, clips: Sequence[Clip], description: str) -> ClipScores:
    """Score every valid frame of the given clips."""
    frames = np.full((len(clips), store.frames), np.nan)
    for index, clip in enumerate(progress(clips, description)):
        valid = np.flatnonzero(clip.valid)
        frames[index, valid] = scorer(store.pixels(clip, valid.tolist()))
    labels = np.array([clip.label for clip in clips], np.int64)
    return ClipScores(tuple(clip.clip_id for clip in clips), labels, frames)


def score_split(scorer: Scorer, store: ClipStore, split: str) -> ClipScores:
    """Score every valid frame of a split."""
    return score_clip_list(scorer, store, store.clips(split), f"score {split}")
