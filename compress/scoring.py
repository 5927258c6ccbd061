"""Scores clips with any model from pixels to P(fake): a run in torch or an artifact in its runtime.

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
"""Number of frames that are scored together; a clip with more frames is scored alone."""


class NotANumber(StageError):
    """A model gave a score that is not a finite number."""


ClipScorer = Callable[[Sequence[Clip]], Sequence[NDArray[np.float32]]]
"""From clips to P(fake) per clip: float32 [valid frames] by a frame model, float32 [1] by a clip model."""


def probability(p: float) -> str:
    """Return a probability with 3 decimals, or as many as distinguish it from 0 and 1: students can be very sure.

    ``p`` may also be a threshold slightly outside of 0..1.
    """
    if 0 < p < 1e-6:
        return f"{p:.2e}"
    distance = min(abs(p), abs(1 - p)) or 1.0
    decimals = min(9, max(3, 2 - math.floor(math.log10(distance))))
    return f"{p:.{decimals}f}"


@dataclass(frozen=True)
class Takes:
    """The kind of input that a model takes."""

    modalities: tuple[Modality, ...] = ("rgb",)
    """The modalities, in the order of the model's input."""
    per: Per = "frame"
    """Whether one score belongs to a frame or to a whole clip."""


class PictureSource(Protocol):
    """A source of clips' pictures: a ClipStore, or one that changes the pictures of a store."""

    @property
    def frames(self) -> int:
        """Frames of a clip, T."""

    def pixels(self, clip: Clip, frames: list[int] | None = None, modality: Modality = "rgb") -> NDArray[np.uint8]:
        """Return a clip's pictures, uint8 [T, S, S, 3] RGB, 0..255, or only those of the given frame numbers."""


def video_of(clip: Clip) -> str:
    """Return the name of the video that a clip counts for: its file, or for forgeries one video per draw.

    ``prepare --forge 4`` draws four independent forgeries of each clip: an app would see them as four videos, so that
    their scores must not be averaged.
    """
    return f"{clip.video_id} forgery {clip.draw}" if clip.draw else clip.video_id


@dataclass(frozen=True)
class ClipScores:
    """Scores of N clips, with the labels, methods and persons of the clips."""

    clip_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    """The video that each clip counts for (``video_of``)."""
    labels: NDArray[np.int64]
    """int64 [N], 1 = fake."""
    methods: tuple[str, ...]
    """The forgery method of each clip."""
    identities: tuple[tuple[str, ...], ...]
    """The persons of each clip; empty where they are not known."""
    frames: NDArray[np.float64] | None = None
    """float64 [N, T], P(fake) per frame, NaN where the frame is not valid; None from a clip model."""
    whole: NDArray[np.float64] | None = None
    """float64 [N], P(fake) per clip, from a clip model."""

    @property
    def clips(self) -> NDArray[np.float64]:
        """P(fake) of each clip, float64 [N]: the score of a clip model, or the mean over the valid frames."""
        if self.whole is not None:
            return self.whole
        assert self.frames is not None
        mean: NDArray[np.float64] = np.nanmean(self.frames, axis=1)
        return mean

    @property
    def auc(self) -> float:
        """AUC of the clips, which must be of both labels."""
        from compress.auc import auc

        return auc(self.labels, self.clips)

    @property
    def persons(self) -> list[tuple[str, ...]]:
        """The identities of each clip; a video without known identities counts as one person."""
        pairs = zip(self.identities, self.video_ids, strict=True)
        return [identities or (f"\0{video}",) for identities, video in pairs]

    @property
    def real_videos(self) -> int:
        """Number of videos of the real clips."""
        return len({video for video, label in zip(self.video_ids, self.labels.tolist(), strict=True) if not label})

    def by_video(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the index of each video's first clip, int64 [V], and the video's score, float64 [V].

        The score is the mean over the valid frames of the video's clips, or over its clips for a clip model.
        """
        indices: dict[str, list[int]] = {}
        for index, video in enumerate(self.video_ids):
            indices.setdefault(video, []).append(index)
        scores = self.frames if self.whole is None else self.whole
        assert scores is not None
        first = np.array([of_video[0] for of_video in indices.values()], np.int64)
        return first, np.array([np.nanmean(scores[of_video]) for of_video in indices.values()])

    def choose_threshold(self) -> "Threshold":
        """Choose a model's threshold on these scores, which must be its own on validation clips of both labels."""
        from compress.metrics import choose_threshold

        return choose_threshold(self.labels, self.clips, self.real_videos)

    def metrics(self, threshold: float, intervals: bool = True) -> "Metrics":
        """Return all accuracy figures; ``accuracy`` and ``f1`` are at ``threshold``."""
        from compress.metrics import compute_metrics

        return compute_metrics(self, threshold, intervals)


def _by_frame(scores: Sequence[NDArray[np.float32]], clips: Sequence[Clip], frames: int) -> NDArray[np.float64]:
    """Return the scores of valid frames at their positions in the clips: float64 [N, T], NaN elsewhere."""
    table = np.full((len(clips), frames), np.nan)
    for row, clip, clip_scores in zip(table, clips, scores, strict=True):
        row[clip.valid] = clip_scores
    return table


def collect(score: ClipScorer, clips: Sequence[Clip], frames: int, description: str, per: Per = "frame") -> ClipScores:
    """Return the scores of clips of T = ``frames`` frames; ``score`` is called on some clips at a time.

    Raises NotANumber for a score that is none.
    """
    step = max(1, CHUNK_FRAMES // frames)
    chunks = [clips[start : start + step] for start in range(0, len(clips), step)]
    scores = [clip_scores for chunk in progress(chunks, description) for clip_scores in score(chunk)]
    for clip, clip_scores in zip(clips, scores, strict=True):
        if not np.isfinite(clip_scores).all():
            raise NotANumber(f"{description}: the score of clip {clip.clip_id} is not a number: its model is damaged")
    return ClipScores(
        clip_ids=tuple(clip.clip_id for clip in clips),
        video_ids=tuple(map(video_of, clips)),
        labels=np.array([clip.label for clip in clips], np.int64),
        methods=tuple(clip.method for clip in clips),
        identities=tuple(clip.identities for clip in clips),
        frames=_by_frame(scores, clips, frames) if per == "frame" else None,
        whole=np.array([float(clip_score.item()) for clip_score in scores]) if per == "clip" else None,
    )


def pictures_of(source: PictureSource, clip: Clip, frames: list[int] | None, takes: Takes) -> NDArray[np.uint8]:
    """Return a clip's frames, uint8 [T, S, S, 3], or [T, M, S, S, 3] of several modalities."""
    pictures = [source.pixels(clip, frames, modality) for modality in takes.modalities]
    return pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=1)


def _score_frames(
    scorer: Scorer, source: PictureSource, takes: Takes, chunk: Sequence[Clip]
) -> list[NDArray[np.float32]]:
    """Score the valid frames of a chunk of clips in one call: float32 [valid frames] per clip."""
    numbers = [np.flatnonzero(clip.valid) for clip in chunk]
    pixels = [pictures_of(source, clip, valid.tolist(), takes) for clip, valid in zip(chunk, numbers, strict=True)]
    scores = scorer(np.concatenate(pixels))
    return np.split(scores, np.cumsum([len(valid) for valid in numbers])[:-1])


def _score_whole(
    scorer: Scorer, source: PictureSource, takes: Takes, chunk: Sequence[Clip]
) -> list[NDArray[np.float32]]:
    """Score the clips of a chunk in one call, with all their frames: float32 [1] per clip."""
    pixels = np.stack([pictures_of(source, clip, None, takes) for clip in chunk])
    return list(scorer(pixels, np.stack([clip.valid for clip in chunk]))[:, None])


def from_pixels(scorer: Scorer, source: PictureSource, takes: Takes) -> ClipScorer:
    """Return a function that scores chunks of clips from their pictures."""
    score = _score_frames if takes.per == "frame" else _score_whole
    return lambda chunk: score(scorer, source, takes, chunk)


def score_clip_list(
    scorer: Scorer, source: PictureSource, clips: Sequence[Clip], description: str, takes: Takes | None = None
) -> ClipScores:
    """Return the scores of clips: of every valid frame or of whole clips, as ``takes`` says (RGB frames if None).

    Raises StageError if photos are given to a clip model, or for a score that is not a number.
    """
    takes = takes or Takes()
    if takes.per == "clip" and source.frames == 1:
        raise StageError(f"{description}: a clip model cannot score photos: give clips of 2 frames or more")
    return collect(from_pixels(scorer, source, takes), clips, source.frames, description, takes.per)


def score_split(scorer: Scorer, store: ClipStore, split: str, takes: Takes | None = None) -> ClipScores:
    """Return the scores of a split. Raises StageError if it lacks a label, and as ``score_clip_list``."""
    return score_clip_list(scorer, store, store.clips(split), f"score {split}", takes)
