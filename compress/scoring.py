"""Scores of clips by anything that turns pixels into P(fake): a run in torch or an artifact in its runtime.

Imports neither torch nor scikit-learn: a worker that measures an artifact needs neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from data.store import Clip, ClipStore
from stage import Modality, Per, Scorer, StageError, progress

if TYPE_CHECKING:
    from compress.metrics import Metrics, Threshold

CHUNK_FRAMES = 32
"""Frames that are scored together, or one clip's where it has more."""

ClipScorer = Callable[[Sequence[Clip]], Sequence[NDArray[np.float32]]]
"""Clips to P(fake): for each clip float32 [valid frames] by a frame model, float32 [1] by a clip model."""


def probability(p: float) -> str:
    """Return a probability with 3 decimals, or as many as tell it from 0 and from 1: students can be very sure.

    Also a threshold, which may lie a little beyond.
    """
    if 0 < p < 1e-6:
        return f"{p:.2e}"
    rest = min(abs(p), abs(1 - p)) or 1.0
    return f"{p:.{min(9, max(3, 2 - math.floor(math.log10(rest))))}f}"


@dataclass(frozen=True)
class Takes:
    """What a model looks at."""

    modalities: tuple[Modality, ...] = ("rgb",)
    """In the order of its input."""
    per: Per = "frame"
    """Whether one score belongs to a frame or to a whole clip."""


class PictureSource(Protocol):
    """Where pictures come from: a ClipStore, or one whose pictures are changed on the way."""

    @property
    def frames(self) -> int:
        """Frames of a clip, T."""

    def pixels(self, clip: Clip, frames: list[int] | None = None, modality: Modality = "rgb") -> NDArray[np.uint8]:
        """Return a clip's pictures, uint8 [T, S, S, 3] RGB, or only those of the given frame numbers."""


def video_of(clip: Clip) -> str:
    """Return the name of what an app would see as one video: a file, or as many as it has forgeries of each clip.

    ``prepare --forge 4`` draws four forgeries of a clip, each by itself: their mean is nothing that an app sees.
    """
    return f"{clip.video_id} forgery {clip.draw}" if clip.draw else clip.video_id


@dataclass(frozen=True)
class ClipScores:
    """Scores of N clips, and what is known of the clips."""

    clip_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    """What each clip is of (``video_of``)."""
    labels: NDArray[np.int64]
    """int64 [N], 1 = fake."""
    methods: tuple[str, ...]
    identities: tuple[tuple[str, ...], ...]
    """The persons of each clip; empty where they are not known."""
    frames: NDArray[np.float64] | None = None
    """float64 [N, T], P(fake) per frame, NaN where the frame is not valid; None from a clip model."""
    whole: NDArray[np.float64] | None = None
    """float64 [N], P(fake) per clip, from a clip model."""

    @property
    def clips(self) -> NDArray[np.float64]:
        """float64 [N]: what a clip model gave, or the mean over a clip's valid frames."""
        if self.whole is not None:
            return self.whole
        assert self.frames is not None
        mean: NDArray[np.float64] = np.nanmean(self.frames, axis=1)
        return mean

    @property
    def auc(self) -> float:
        """AUC of the clips, which are of both labels."""
        from compress.auc import auc

        return auc(self.labels, self.clips)

    @property
    def persons(self) -> list[tuple[str, ...]]:
        """Each clip's identities; a video of which none is known counts as a person of its own."""
        named = zip(self.identities, self.video_ids, strict=True)
        return [identities or (f"\0{video}",) for identities, video in named]

    @property
    def real_videos(self) -> int:
        """How many videos the real clips are of."""
        return len({video for video, label in zip(self.video_ids, self.labels.tolist(), strict=True) if not label})

    def by_video(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return one clip of each video, int64 [V], and the video's score, float64 [V].

        That is the mean over the valid frames of its clips here, or of a clip model over these clips.
        """
        clips: dict[str, list[int]] = {}
        for clip, video in enumerate(self.video_ids):
            clips.setdefault(video, []).append(clip)
        scores = self.frames if self.whole is None else self.whole
        assert scores is not None
        first = np.array([own[0] for own in clips.values()], np.int64)
        return first, np.array([np.nanmean(scores[own]) for own in clips.values()])

    def choose_threshold(self) -> "Threshold":
        """Set a threshold on these scores, which must be a model's own of validation clips of both labels."""
        from compress.metrics import choose_threshold

        return choose_threshold(self.labels, self.clips, self.real_videos)

    def metrics(self, threshold: float, intervals: bool = True) -> "Metrics":
        """Compute all accuracy figures; ``accuracy`` and ``f1`` are at ``threshold``."""
        from compress.metrics import compute_metrics

        return compute_metrics(self, threshold, intervals)


def _arranged(found: Sequence[NDArray[np.float32]], clips: Sequence[Clip], frames: int) -> NDArray[np.float64]:
    """Put the scores of each clip's valid frames in their places: float64 [N, T], NaN elsewhere."""
    scores = np.full((len(clips), frames), np.nan)
    for row, clip, own in zip(scores, clips, found, strict=True):
        row[clip.valid] = own
    return scores


def collect(score: ClipScorer, clips: Sequence[Clip], frames: int, description: str, per: Per = "frame") -> ClipScores:
    """Score clips of T = ``frames`` frames, a chunk at a time, however ``score`` comes by their pictures or features.

    Raises StageError for a score that is not a number.
    """
    step = max(1, CHUNK_FRAMES // frames)
    chunks = [clips[start : start + step] for start in range(0, len(clips), step)]
    found = [own for chunk in progress(chunks, description) for own in score(chunk)]
    for clip, own in zip(clips, found, strict=True):
        if not np.isfinite(own).all():
            raise StageError(f"{description}: the score of clip {clip.clip_id} is not a number: its model is damaged")
    return ClipScores(
        clip_ids=tuple(clip.clip_id for clip in clips),
        video_ids=tuple(map(video_of, clips)),
        labels=np.array([clip.label for clip in clips], np.int64),
        methods=tuple(clip.method for clip in clips),
        identities=tuple(clip.identities for clip in clips),
        frames=_arranged(found, clips, frames) if per == "frame" else None,
        whole=np.array([float(own.item()) for own in found]) if per == "clip" else None,
    )


def pictures_of(source: PictureSource, clip: Clip, frames: list[int] | None, takes: Takes) -> NDArray[np.uint8]:
    """Return a clip's frames, uint8 [T, S, S, 3], or [T, M, S, S, 3] of several modalities."""
    pictures = [source.pixels(clip, frames, modality) for modality in takes.modalities]
    return pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=1)


def _score_frames(
    scorer: Scorer, source: PictureSource, takes: Takes, chunk: Sequence[Clip]
) -> list[NDArray[np.float32]]:
    """Score the valid frames of a chunk in one call."""
    valid = [np.flatnonzero(clip.valid) for clip in chunk]
    pixels = [pictures_of(source, clip, own.tolist(), takes) for clip, own in zip(chunk, valid, strict=True)]
    scores = scorer(np.concatenate(pixels))
    return np.split(scores, np.cumsum([len(own) for own in valid])[:-1])


def _score_whole(
    scorer: Scorer, source: PictureSource, takes: Takes, chunk: Sequence[Clip]
) -> list[NDArray[np.float32]]:
    """Score the clips of a chunk in one call, with all their frames."""
    pixels = np.stack([pictures_of(source, clip, None, takes) for clip in chunk])
    return list(scorer(pixels, np.stack([clip.valid for clip in chunk]))[:, None])


def from_pixels(scorer: Scorer, source: PictureSource, takes: Takes) -> ClipScorer:
    """Return how to score chunks of clips from their pictures."""
    way = _score_frames if takes.per == "frame" else _score_whole
    return lambda chunk: way(scorer, source, takes, chunk)


def score_clip_list(
    scorer: Scorer, source: PictureSource, clips: Sequence[Clip], description: str, takes: Takes | None = None
) -> ClipScores:
    """Score the given clips: every valid frame, or each clip as a whole, as ``takes`` says (RGB frames if None).

    Raises StageError for a clip model and photos.
    """
    takes = takes or Takes()
    if takes.per == "clip" and source.frames == 1:
        raise StageError(f"{description}: a clip model cannot score photos: give clips of 2 frames or more")
    return collect(from_pixels(scorer, source, takes), clips, source.frames, description, takes.per)


def score_split(scorer: Scorer, store: ClipStore, split: str, takes: Takes | None = None) -> ClipScores:
    """Score a split that holds both labels. Raises StageError if it does not, and as ``score_clip_list``."""
    return score_clip_list(scorer, store, store.clips(split), f"score {split}", takes)
