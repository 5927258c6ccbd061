"""The JSON between two processes: the task of a worker, and the measurement that it returns."""

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
    """The task of a worker: the model, how it is timed, and the stores that it scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    runtime: str
    scheme: Scheme
    """The run's own scheme, or the one in which an fp32 run is to compute."""
    device: str = "cpu"
    units: ComputeUnits = "all"
    """Compute units that Core ML may use."""
    threads: int
    cores: list[int] | None = None
    """Processors that the worker is bound to while it times; None where the system cannot."""
    repeats: int
    sustain: float = 0.0
    """Seconds to run without a pause."""
    profiled: bool = False
    """Whether the model's operations are timed too, in further runs that count for nothing else."""
    grown: bool = False
    """Whether growing batches are timed too, to find the best throughput."""
    size: int
    modalities: tuple[Modality, ...] = ("rgb",)
    per: Per = "frame"
    """Whether the model scores frames or whole clips."""
    method: Method = "forward"
    """How an artifact's programs are called to score."""
    batch: int = 1
    """Crops, or clips, in one timed run."""
    frames: int = 1
    """Frames of a clip."""
    crops: Path
    """File of the real crops that the model is timed on, uint8 [N, size, size, 3], or [N, T, M, size, size, 3] where it
    takes T frames or M modalities."""
    scored: dict[str, tuple[Path, str]]
    """Stores to score and their splits, by the name that the scores have in ``Measurement.scores``."""
    timed: bool = True
    """Whether latency and memory are measured."""
    again: bool = False
    """Whether an earlier round has measured everything but the times."""

    @property
    def frames_at_once(self) -> int:
        """Number of frames in one run of the model."""
        return self.batch * (self.frames if self.per == "clip" else 1)

    def inputs(self) -> Callable[[int], Inputs]:
        """Read the timed crops; return a function from the number of a run to its batch."""
        frames_axis = (self.frames,) if self.per == "clip" else ()
        modalities_axis = (len(self.modalities),) if len(self.modalities) > 1 else ()
        crops = np.fromfile(self.crops, np.uint8).reshape(-1, *frames_axis, *modalities_axis, self.size, self.size, 3)
        valid = (np.ones((self.batch, self.frames), np.bool_),) if self.per == "clip" else ()

        def batch(number: int) -> Inputs:
            return crops[(number + np.arange(self.batch)) % len(crops)], *valid

        return batch


class Scores(BaseModel):
    """Scores of the clips of a split: the JSON form of ``compress.scoring.ClipScores``."""

    model_config = ConfigDict(extra="forbid")

    clip_ids: list[str]
    video_ids: list[str]
    labels: list[Literal[0, 1]]
    """1 = fake."""
    methods: list[str]
    identities: list[list[str]]
    frames: list[list[float | None]] | None
    """P(fake) of each frame, [clips, T], None where a frame is not valid; None instead of a list from a clip model."""
    whole: list[float] | None
    """P(fake) of each clip from a clip model; None from a frame model."""

    @model_validator(mode="after")
    def _of_the_same_clips(self) -> "Scores":
        scores = [values for values in (self.frames, self.whole) if values is not None]
        parts = (self.clip_ids, self.video_ids, self.labels, self.methods, self.identities, *scores)
        if len(scores) != 1 or len(set(map(len, parts))) > 1 or len(set(map(len, self.frames or ()))) > 1:
            raise ValueError("scores are of frames, or of clips, and as many as their clips")
        return self

    @classmethod
    def of(cls, scores: ClipScores) -> "Scores":
        """Return scores in their JSON form."""
        frames = None if scores.frames is None else scores.frames.tolist()
        return cls(
            clip_ids=list(scores.clip_ids),
            video_ids=list(scores.video_ids),
            labels=scores.labels.tolist(),
            methods=list(scores.methods),
            identities=[list(persons) for persons in scores.identities],
            frames=frames and [[None if np.isnan(p) else p for p in row] for row in frames],
            whole=None if scores.whole is None else scores.whole.tolist(),
        )

    def to_clip_scores(self) -> ClipScores:
        """Return the ``ClipScores`` of this JSON form (``of``); its scores are float64 arrays."""
        return ClipScores(
            clip_ids=tuple(self.clip_ids),
            video_ids=tuple(self.video_ids),
            labels=np.array(self.labels, np.int64),
            methods=tuple(self.methods),
            identities=tuple(map(tuple, self.identities)),
            frames=None if self.frames is None else np.array(self.frames, np.float64),
            whole=None if self.whole is None else np.array(self.whole, np.float64),
        )


class BatchTiming(BaseModel):
    """Time and memory of runs of one batch size."""

    model_config = ConfigDict(extra="forbid")

    batch: int
    """Frames, or clips, in a run."""
    ms: float
    """Milliseconds per frame: the median run divided by the frames in it."""
    frames_per_second: float
    peak_memory_mb: float
    """Peak of the whole process in MiB; on a GPU, of the tensors there."""


class Timing(BaseModel):
    """Latency in milliseconds, and memory in MiB."""

    model_config = ConfigDict(extra="forbid")

    load_ms: float
    first_run_ms: float
    times_ms: list[float]
    """Milliseconds per frame of each run after the warm-up."""
    peak_memory_mb: float
    idle_memory_mb: float
    runtime_bytes: int | None
    """Bytes of the runtime's libraries in the process; None where the system does not tell."""
    cores: list[int] | None
    """Processors that the process was bound to; None where the system cannot."""
    device_memory_mb: float | None = None
    """Largest sum of tensors on the GPU; None on a CPU."""
    batches: list[BatchTiming] = []
    """Timings of growing batches, up to the one after the batch of the best throughput."""


class Measurement(BaseModel):
    """The result of a worker."""

    model_config = ConfigDict(extra="forbid")

    timing: Timing | None
    """None if the task was not to be timed."""
    scores: dict[str, Scores]
    """Scores by the names in ``Task.scored``."""
    sustained: Sustained | None = None
    profile: Profile | None = None
    macs: int | None = None
    """Multiply-accumulates per frame of a float run in torch; None for everything else."""
    delegated_fraction: float | None = None
    """Share of operations that Core ML prefers to run off the CPU, 0..1; None for other runtimes."""
    reason: str = ""
    """Why ``delegated_fraction`` is missing."""
