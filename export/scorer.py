"""One video or photo through an artifact: faces found, crops cut and scored as the manifest tells an app to."""

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
from data.layouts import is_photo, shown
from data.photo import Photo
from data.remote import fetched
from data.tracks import Seen, Tracker
from data.video import Video
from export.bundle import Bundle
from export.manifest import Artifact, Manifest
from export.runtimes import Loaded, ProgramName, Programs, evaluated_by, scorer_of
from export.stopwatch import Stopwatch
from stage import Scorer, StageError


class NoFace(StageError):
    """A video in which there is nothing to score; ``what`` says why, without the path."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{what} in {path}: there is nothing to score")
        self.what = what


class ScoredClip(BaseModel):
    """What one clip of a video got."""

    model_config = ConfigDict(extra="forbid")

    start_frame: int
    score: float
    frames: int
    """Frames that count, all of which were looked at."""


class Milliseconds(BaseModel):
    """Where the time of a video went: on one thread, but for decoding, whose threads FFmpeg chooses.

    None of what was evaluated in a runtime's place.
    """

    model_config = ConfigDict(extra="forbid")

    decode: float
    faces: float
    """Finding and following them."""
    crop: float
    """Colours converted, crops cut and resized."""
    embed: float | None = None
    """Of a clip student, once for each crop."""
    score: float | None = None
    whole: float


class Detection(BaseModel):
    """What ``detect`` says of a video."""

    model_config = ConfigDict(extra="forbid")

    video: str
    score: float
    """P(fake): the mean over the frames that count, or of a clip student over the clips."""
    verdict: Literal["real", "fake"]
    threshold: float
    artifact: str
    evaluated_by: str | None
    frames_read: int
    frames_used: int
    """Frames that were scored."""
    faces_missed: int
    """Frames in which no face was found."""
    clips_left_out: int
    """Clips of which less than half of the frames count, which a clip student does not score."""
    clips: list[ScoredClip]
    milliseconds: Milliseconds


OnClip = Callable[[FaceClip, NDArray[np.float32]], None]
"""Told of every clip that is scored, and its scores: float32 [frames that count], or of a clip student [1]."""


class EmbeddingCache:
    """``embed``, which does not run again on the crops of the call before: clips overlap."""

    def __init__(self, embed: Loaded) -> None:
        self._embed = embed
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, float32 [N, D], of crops uint8 [N, S, S, 3]."""
        keys = [hashlib.blake2b(crop.tobytes(), digest_size=16).digest() for crop in crops]
        new = [number for number, key in enumerate(keys) if key not in self._known]
        if new:
            self._known |= dict(zip([keys[number] for number in new], self._embed(crops[new]), strict=True))
        self._known = {key: self._known[key] for key in keys}
        return np.stack([self._known[key] for key in keys])


@dataclass(frozen=True)
class VideoScorer:
    """An artifact that was loaded, and what its manifest says of crops, clips and the threshold."""

    manifest: Manifest
    artifact: Artifact
    programs: Programs

    @classmethod
    def load(cls, bundle: Bundle, file: str | None = None) -> "VideoScorer":
        """Load the named artifact of a bundle, or the smallest that runs here, on one thread."""
        artifact = bundle.chosen(file)
        return cls(bundle.manifest, artifact, bundle.open(artifact))

    def _scorer(self, watch: Stopwatch) -> Scorer:
        """Return what scores frames or clips, with the time of each program."""

        def timed(name: ProgramName) -> Loaded:
            program = watch.timed("embed" if name == "embed" else "score", self.programs(name))
            return EmbeddingCache(program) if name == "embed" else program

        return scorer_of(timed, self.artifact.method)

    def _inputs(self, clip: FaceClip, watch: Stopwatch) -> tuple[NDArray[np.generic], ...]:
        """Return what an artifact takes of a clip: the crops of its valid frames, or all and which are valid."""
        rule, length = self.manifest.crop.rule, self.manifest.clip.frames
        with watch.stage("crop"):
            crops = rule.cut_clip([picture.rgb for picture in clip.pictures], clip.boxes)
            if self.manifest.clip.per == "frame":
                return (crops[clip.valid],)
            missing = length - len(clip)
            return tuple(
                np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])[None] for array in (crops, clip.valid)
            )

    def detect(self, path: Path, on_clip: OnClip | None = None) -> Detection:
        """Score every clip of a video's largest face. Holds one clip in memory, whatever the video's length.

        Raises UnreadableVideo if the file cannot be read, NoFace if there is no face to score, StageError for a photo
        and a clip student.
        """
        cv2.setNumThreads(1)
        if is_photo(path) and self.manifest.clip.per == "clip":
            raise StageError(f"{shown(path)} is a photo, and {self.artifact.file} scores clips of frames: give videos")
        watch = Stopwatch()
        found = _Found()
        with watch.stage("whole"), fetched(path) as file, Photo(file) if is_photo(path) else Video(file) as video:
            self._score_clips(path, video, watch, found, on_clip)
        if not found.clips:
            frames, read = self.manifest.clip.frames, found.frames_read
            seen = f" in half of {frames} frames on end" if found.left_out else ""
            seen += f", of which there are {read}" if found.left_out and read < frames else ""
            raise NoFace(shown(path), f"no face was found{seen}")
        return self._detection(path, found, watch)

    def _score_clips(
        self, path: Path, video: Video | Photo, watch: Stopwatch, found: "_Found", on_clip: OnClip | None
    ) -> None:
        rule, scorer = self.manifest.clip, self._scorer(watch)
        tracker = Tracker(DETECTORS[self.manifest.crop.detector]())

        def counted() -> Iterator[Seen]:
            for seen in tracker.follow(watch.each("decode", video.pictures())):
                found.frames_read += 1
                found.faces_missed += not seen.faces
                yield seen

        for clip, *_ in watch.each("faces", face_clips(counted(), rule.frames, rule.hop)):
            if rule.per == "clip" and 2 * int(clip.valid.sum()) < rule.frames:
                found.left_out += 1
                continue
            scores = scorer(*self._inputs(clip, watch))
            if not np.isfinite(scores).all():
                raise StageError(f"{self.artifact.file} gives no number for frames of {shown(path)}: export it again")
            counts = clip.start + np.flatnonzero(clip.valid)
            found.used.update(counts.tolist())
            found.clips.append(ScoredClip(start_frame=clip.start, score=float(scores.mean()), frames=len(counts)))
            if on_clip:
                on_clip(clip, scores)

    def _detection(self, path: Path, found: "_Found", watch: Stopwatch) -> Detection:
        weights = [clip.frames if self.manifest.clip.per == "frame" else 1 for clip in found.clips]
        score = float(np.average([clip.score for clip in found.clips], weights=weights))
        by, threshold = evaluated_by(self.artifact.runtime), self.artifact.threshold.value
        spent = {name: 1e3 * seconds for name, seconds in watch.seconds.items()}
        if by:
            spent = {name: value for name, value in spent.items() if name not in ("embed", "score")}
        spent["whole"] = sum(spent.values())
        return Detection(
            video=shown(path),
            score=score,
            verdict="fake" if score > threshold else "real",
            threshold=threshold,
            artifact=self.artifact.file,
            evaluated_by=by,
            frames_read=found.frames_read,
            frames_used=len(found.used),
            faces_missed=found.faces_missed,
            clips_left_out=found.left_out,
            clips=found.clips,
            milliseconds=Milliseconds(**spent),
        )


@dataclass
class _Found:
    """What was found of a video so far."""

    frames_read: int = 0
    faces_missed: int = 0
    left_out: int = 0
    clips: list[ScoredClip] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
