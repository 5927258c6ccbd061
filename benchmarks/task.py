"""What a worker is asked to measure, and what it answers: the JSON between two processes."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from benchmarks.figures import Profile, Sustained
from compress.scoring import ClipScores
from export.golden import Inputs
from export.runtimes import ComputeUnits, Method
from stage import Modality, Per, Scheme


class Task(BaseModel):
    """What a worker measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    runtime: str
    scheme: Scheme
    """The run's own, or one in which an fp32 run is to compute."""
    device: str = "cpu"
    units: ComputeUnits = "all"
    """What Core ML may use."""
    threads: int
    cores: list[int] | None = None
    """Processors to be bound to while it is timed."""
    repeats: int
    sustain: float = 0.0
    """Seconds to run without a pause."""
    profiled: bool = False
    """Whether its operations are timed too, in runs that count for nothing else."""
    grown: bool = False
    """Whether ever larger batches are timed too, for the best throughput."""
    size: int
    modalities: tuple[Modality, ...] = ("rgb",)
    per: Per = "frame"
    """Whether the model scores frames or whole clips."""
    method: Method = "forward"
    """How an artifact scores."""
    batch: int = 1
    """Crops, or clips, that it is timed on at once."""
    frames: int = 1
    """Frames of a clip."""
    crops: Path
    """File of real crops to time on, uint8 [N, size, size, 3], of each modality and of all frames where it takes them.
    """
    scored: dict[str, tuple[Path, str]]
    """Stores to score and their splits, by the name under which the scores come back."""
    timed: bool = True
    again: bool = False
    """Whether all but its times was measured in a round before."""

    @property
    def frames_at_once(self) -> int:
        """Frames that one run of the model takes."""
        return self.batch * (self.frames if self.per == "clip" else 1)

    def inputs(self) -> Callable[[int], Inputs]:
        """Read what the model is timed on; return how a run's batch is made from its number."""
        of_clip = (self.frames,) if self.per == "clip" else ()
        several = (len(self.modalities),) if len(self.modalities) > 1 else ()
        crops = np.fromfile(self.crops, np.uint8).reshape(-1, *of_clip, *several, self.size, self.size, 3)
        valid = (np.ones((self.batch, self.frames), np.bool_),) if self.per == "clip" else ()

        def batch(number: int) -> Inputs:
            return crops[(number + np.arange(self.batch)) % len(crops)], *valid

        return batch


class Scores(BaseModel):
    """Scores of the clips of a split, as ``compress.scoring.ClipScores``."""

    model_config = ConfigDict(extra="forbid")

    clip_ids: list[str]
    video_ids: list[str]
    labels: list[Literal[0, 1]]
    """1 = fake."""
    methods: list[str]
    identities: list[list[str]]
    frames: list[list[float | None]] | None
    """None where a frame is not valid; no list at all from a clip model."""
    whole: list[float] | None

    @model_validator(mode="after")
    def _of_the_same_clips(self) -> "Scores":
        scores = [by for by in (self.frames, self.whole) if by is not None]
        parts = (self.clip_ids, self.video_ids, self.labels, self.methods, self.identities, *scores)
        if len(scores) != 1 or len(set(map(len, parts))) > 1 or len(set(map(len, self.frames or ()))) > 1:
            raise ValueError("scores are of frames, or of clips, and as many as their clips")
        return self


def end_with_parent() -> None:
    """In a process that answers: end when the one that asked has ended, which closes this one's standard input."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock a thread must not hold when Python ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def clip_scores(scores: Scores) -> ClipScores:
    """Return scores as arrays."""
    return ClipScores(
        clip_ids=tuple(scores.clip_ids),
        video_ids=tuple(scores.video_ids),
        labels=np.array(scores.labels, np.int64),
        methods=tuple(scores.methods),
        identities=tuple(map(tuple, scores.identities)),
        frames=None if scores.frames is None else np.array(scores.frames, np.float64),
        whole=None if scores.whole is None else np.array(scores.whole, np.float64),
    )


class BatchTiming(BaseModel):
    """What a run of several samples at once takes."""

    model_config = ConfigDict(extra="forbid")

    batch: int
    """Frames, or clips, at once."""
    ms: float
    """Median of a run, divided by the frames in it."""
    frames_per_second: float
    peak_memory_mb: float
    """Of the whole process; on a GPU of the tensors there."""


class Timing(BaseModel):
    """Latency and memory."""

    model_config = ConfigDict(extra="forbid")

    load_ms: float
    first_run_ms: float
    times_ms: list[float]
    """Of each run after the warm-up, divided by the frames in it."""
    peak_memory_mb: float
    idle_memory_mb: float
    runtime_bytes: int | None
    """Of the runtime's libraries in the process."""
    cores: list[int] | None
    """To which it was bound."""
    device_memory_mb: float | None = None
    """Largest sum of tensors on the GPU; None on a CPU."""
    batches: list[BatchTiming] = []
    """Of growing batches, up to the one after that of the best throughput."""


class Measurement(BaseModel):
    """What a worker found."""

    model_config = ConfigDict(extra="forbid")

    timing: Timing | None
    """None of what was not to be timed."""
    scores: dict[str, Scores]
    sustained: Sustained | None = None
    profile: Profile | None = None
    macs: int | None = None
    """A frame's, of a float run in torch."""
    delegated_fraction: float | None = None
    """Of Core ML's operations, those off the CPU."""
    reason: str = ""
    """Why that is missing."""
