"""Score one video or photo by an artifact: find faces, cut crops and score them as the manifest tells an app to."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data.clips import FaceClip, face_clips
from data.faces import DETECTORS
from data.layouts import is_photo
from data.photo import Photo
from data.presence import unchanged
from data.remote import fetched
from data.tracks import Seen, Tracker
from data.video import Video, flaws
from export.bundle import Bundle
from export.manifest import Artifact, Manifest
from export.runtimes import Loaded, ProgramName, Programs, evaluated_by, scorer_of
from export.stopwatch import Stopwatch
from parsing import shown
from stage import Scorer, StageError


class NothingToScore(StageError):
    """A video has no face, or too few frames for a clip (``status``); ``what`` says it without the path."""

    def __init__(self, path: str, status: Literal["no_face", "too_short"], what: str) -> None:
        super().__init__(f"{what} in {path}: there is nothing to score")
        self.status, self.what = status, what


class ScoredClip(BaseModel):
    """Score of one clip of a video."""

    model_config = ConfigDict(extra="forbid")

    start_frame: int
    """Number of its first frame in the video, from 0."""
    score: float
    """P(fake); for an artifact that scores frames, the mean over those that count."""
    frames: int
    """Number of frames that count, all of which were scored."""


class Milliseconds(BaseModel):
    """Milliseconds that each step took for a video: on one thread, except decoding, whose threads FFmpeg chooses.

    Building the face detector, once in each process, and fetching a URL are in none of them; the program's first run is
    in those of the first video. A step that was evaluated in a runtime's place has None, and is not part of ``whole``.
    """

    model_config = ConfigDict(extra="forbid")

    decode: float
    faces: float
    """Finding and tracking faces."""
    crop: float
    """Converting colours, cutting and resizing crops."""
    embed: float | None = None
    """The program ``embed`` of a clip student, which runs once for each crop."""
    score: float | None = None
    """The program that gives P(fake)."""
    whole: float
    """Sum of all steps and of what lies between them."""


class Detection(BaseModel):
    """Result of ``detect`` for one video."""

    model_config = ConfigDict(extra="forbid")

    video: str
    score: float
    """P(fake): the mean over the frames that count, or for a clip student over the clips."""
    verdict: Literal["real", "fake"]
    threshold: float
    artifact: str
    evaluated_by: str | None
    frames_read: int
    frames_used: int
    """Number of frames that were scored."""
    faces_missed: int
    """Number of frames in which no face was found."""
    clips_left_out: int
    """Number of clips in which less than half of the frames count: a clip student does not score them."""
    reason: str
    """What is to be known of its frames: damaged, interlaced, HDR, of another rate than clips; empty if nothing."""
    clips: list[ScoredClip]
    milliseconds: Milliseconds


OnClip = Callable[[FaceClip, NDArray[np.float32]], None]
"""Called with every clip that is scored and its scores, float32 [frames that count], or [1] for a clip student."""


class EmbeddingCache:
    """The program ``embed``, with the embeddings of the previous call kept: clips overlap."""

    def __init__(self, embed: Loaded) -> None:
        self._embed = embed
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, float32 [N, D], of crops uint8 [N, S, S, 3]."""
        keys = [hashlib.blake2b(crop.tobytes(), digest_size=16).digest() for crop in crops]
        missing = [index for index, key in enumerate(keys) if key not in self._known]
        if missing:
            self._known |= dict(zip([keys[index] for index in missing], self._embed(crops[missing]), strict=True))
        self._known = {key: self._known[key] for key in keys}
        return np.stack([self._known[key] for key in keys])


@dataclass(frozen=True)
class VideoScorer:
    """A loaded artifact with its manifest, which states how crops and clips are cut, and the threshold."""

    manifest: Manifest
    artifact: Artifact
    programs: Programs

    @classmethod
    def load(cls, bundle: Bundle, file: str | None = None) -> "VideoScorer":
        """Load the bundle's face detector, and its named artifact, or ``Bundle.chosen``'s, on one thread.

        Raises StageError if one of them cannot be loaded on this machine.
        """
        artifact = bundle.chosen(file)
        DETECTORS[bundle.manifest.crop.detector]().load()  # else the first video's time has that in it
        return cls(bundle.manifest, artifact, bundle.open(artifact))

    def _scorer(self, watch: Stopwatch) -> Scorer:
        """Return a scorer of frames or clips that times each program."""

        def timed(name: ProgramName) -> Loaded:
            program = watch.timed("embed" if name == "embed" else "score", self.programs(name))
            return EmbeddingCache(program) if name == "embed" else program

        return scorer_of(timed, self.artifact.method)

    def _inputs(self, clip: FaceClip, watch: Stopwatch) -> tuple[NDArray[np.generic], ...]:
        """Return an artifact's inputs for a clip.

        Crops of the valid frames, uint8 [N, S, S, 3]; or for a clip student all crops, uint8 [1, T, S, S, 3], and which
        are valid, bool [1, T], both zero beyond the clip's end.
        """
        rule, length = self.manifest.crop.rule, self.manifest.clip.frames
        with watch.step("crop"):
            crops = rule.cut_clip([picture.rgb for picture in clip.pictures], clip.boxes)
            if self.manifest.clip.per == "frame":
                return (crops[clip.valid],)
            padding = (0, length - len(clip))
            return tuple(np.pad(array, [padding, *[(0, 0)] * (array.ndim - 1)])[None] for array in (crops, clip.valid))

    def detect(self, path: Path, on_clip: OnClip | None = None) -> Detection:
        """Score every clip of a video's largest face. Holds one clip in memory, whatever the video's length.

        Raises UnreadableVideo if the file cannot be read or changes meanwhile, NothingToScore if no clip has enough
        faces, StageError for a photo if the artifact scores clips.
        """
        cv2.setNumThreads(1)
        if is_photo(path) and self.manifest.clip.per == "clip":
            raise StageError(f"{shown(path)} is a photo, and {self.artifact.file} scores clips of frames: give videos")
        watch = Stopwatch()
        tally = _Tally()
        opened = Photo if is_photo(path) else Video
        with fetched(path) as file, unchanged(file), watch.step("whole"), opened(file) as video:
            self._score_clips(path, video, watch, tally, on_clip)
            of_rate = self.manifest.clip.other_rate(video.info.fps)
            tally.flaws = flaws(video.damaged, [*video.remarks, *filter(None, [of_rate])])
        if not tally.clips:
            raise self._nothing(path, tally)
        return self._detection(path, tally, watch)

    def _nothing(self, path: Path, tally: "_Tally") -> NothingToScore:
        """Return the error of a video without a clip that can be scored."""
        frames, read = self.manifest.clip.frames, tally.frames_read
        if not tally.left_out:
            return NothingToScore(shown(path), "no_face", "no face was found")
        if 2 * read < frames:
            return NothingToScore(shown(path), "too_short", f"there are only {read} of a clip's {frames} frames")
        there = f", of which there are {read}" if read < frames else ""
        return NothingToScore(shown(path), "no_face", f"no face was found in half of {frames} frames on end{there}")

    def _score_clips(
        self, path: Path, video: Video | Photo, watch: Stopwatch, tally: "_Tally", on_clip: OnClip | None
    ) -> None:
        """Score the clips of a video and add them to ``tally``. Raises StageError if a score is not finite."""
        rule, scorer = self.manifest.clip, self._scorer(watch)
        tracker = Tracker(DETECTORS[self.manifest.crop.detector]())

        def counted_frames() -> Iterator[Seen]:
            for frame in tracker.follow(watch.each("decode", video.pictures())):
                tally.frames_read += 1
                tally.faces_missed += not frame.faces
                yield frame

        for clip, *_ in watch.each("faces", face_clips(counted_frames(), rule.frames, rule.hop)):
            if rule.per == "clip" and not clip.steady:
                tally.left_out += 1
                continue
            scores = scorer(*self._inputs(clip, watch))
            if not np.isfinite(scores).all():
                raise StageError(f"{self.artifact.file} gives no number for frames of {shown(path)}: export it again")
            frames = clip.start + np.flatnonzero(clip.valid)
            tally.used.update(frames.tolist())
            tally.clips.append(ScoredClip(start_frame=clip.start, score=float(scores.mean()), frames=len(frames)))
            if on_clip:
                on_clip(clip, scores)

    def _detection(self, path: Path, tally: "_Tally", watch: Stopwatch) -> Detection:
        """Return the result for a video, all of whose clips were scored."""
        weights = [clip.frames if self.manifest.clip.per == "frame" else 1 for clip in tally.clips]
        score = float(np.average([clip.score for clip in tally.clips], weights=weights))
        evaluator, threshold = evaluated_by(self.artifact.runtime), self.artifact.threshold.value
        milliseconds = {name: 1e3 * seconds for name, seconds in watch.seconds.items()}
        if evaluator:
            milliseconds = {name: value for name, value in milliseconds.items() if name not in ("embed", "score")}
        milliseconds["whole"] = sum(milliseconds.values())
        return Detection(
            video=shown(path),
            score=score,
            verdict="fake" if score > threshold else "real",
            threshold=threshold,
            artifact=self.artifact.file,
            evaluated_by=evaluator,
            frames_read=tally.frames_read,
            frames_used=len(tally.used),
            faces_missed=tally.faces_missed,
            clips_left_out=tally.left_out,
            reason=tally.flaws,
            clips=tally.clips,
            milliseconds=Milliseconds(**milliseconds),
        )


@dataclass
class _Tally:
    """Frames counted and clips scored in a video so far."""

    frames_read: int = 0
    faces_missed: int = 0
    left_out: int = 0
    flaws: str = ""
    clips: list[ScoredClip] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    """Numbers of the frames that were scored."""
