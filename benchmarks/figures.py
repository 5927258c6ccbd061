"""The compound figures of a report's rows and sessions: latency, profiles, clip budgets, robustness."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from stage import Scheme

RUNS_FOR_P90, RUNS_FOR_P99 = 10, 100
"""Fewest timed runs from which p90 and p99 are given."""


class Latency(BaseModel):
    """Percentiles of the milliseconds per frame, over the repeats after the warm-up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: PositiveFloat
    """The median. On a phone: the mean where the runner reports nothing else, and the sum of the medians where two
    programs are timed one after the other."""
    p90: float | None
    """None in these two cases and below 10 repeats. Over several calls of a runner: the median of the calls' values,
    None if one call made fewer repeats."""
    p99: float | None
    """As p90, but None below 100 repeats."""

    @classmethod
    def of(cls, times_ms: list[float] | NDArray[np.float64]) -> "Latency":
        """Return the percentiles of single times in milliseconds, float [N]."""
        p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
        runs = len(times_ms)
        return cls(p50=p50, p90=p90 if runs >= RUNS_FOR_P90 else None, p99=p99 if runs >= RUNS_FOR_P99 else None)


def spread_of(medians_ms: Sequence[float]) -> float:
    """Return the largest less the smallest of the rounds' medians, as a share of their median."""
    return (max(medians_ms) - min(medians_ms)) / float(np.median(medians_ms))


class MethodFigures(BaseModel):
    """Accuracy on one method of forgery: its fake clips against all real clips."""

    model_config = ConfigDict(extra="forbid")

    fake: int
    """Number of fake clips."""
    auc: float | None
    auc_interval: tuple[float, float] | None


class Operation(BaseModel):
    """Time of one operation of a model, or of the runtime itself outside the operations."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """The runtime's name for it. Runtimes optimize graphs before running them, so one may stand for several."""
    kind: str
    """The runtime's name for its type: ``Conv``, ``Convolution (NHWC, QC8) IGEMM``."""
    ms: float
    """Milliseconds a run: the median over the profiled runs."""
    share: float
    """Share of all profiled time, 0..1; the shares and that of ``Profile.others_ms`` sum to 1."""


class Profile(BaseModel):
    """The slowest operations of a run, which takes a frame, a clip or a batch.

    A profiler costs time of its own, so that sums differ from the row's latency, most where operations are small.
    """

    model_config = ConfigDict(extra="forbid")

    profiler: str
    """Name of the profiler."""
    runs: int
    """Profiled runs; a run is one call of the model."""
    operations: list[Operation]
    """The slowest operations, slowest first."""
    others_ms: float
    """Milliseconds a run of all operations that are not listed."""
    reason: str = ""
    """Why no operation is listed; empty if some are."""


class Sustained(BaseModel):
    """Speed and energy of a model that runs without a pause."""

    model_config = ConfigDict(extra="forbid")

    seconds: float
    frames_per_second: list[float]
    """One figure for each second, or for each run where a run takes longer; the last may be of a shorter time."""
    drop: float | None
    """Share of its speed that is lost: 1 less the median of the last quarter divided by that of the first; None where
    there is one figure alone."""
    joules_per_frame: float | None
    energy: str
    """The counters that were read for ``joules_per_frame``, or why it is not known."""


class ClipStep(BaseModel):
    """Time and memory of one step of a clip's way from the video file to P(fake)."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["decode", "faces", "crop", "depth", "flow", "embed", "score"]
    ms: PositiveFloat
    """Milliseconds a clip: the median over ``Budget.repeats`` runs, or over fewer that take 5 s in all."""
    peak_memory_mb: float | None
    """Largest resident set of the whole process during the step, in MiB; None where the system does not tell."""


class Budget(BaseModel):
    """Cost of a whole clip, from the video file to P(fake), measured step by step in a fresh process."""

    model_config = ConfigDict(extra="forbid")

    row: str
    """``Row.name`` of the artifact or run that scores."""
    runtime: str
    scheme: Scheme
    machine: str
    threads: int
    teacher: bool
    frames: int
    """Frames of a clip."""
    video: str
    """Name of the video file."""
    picture: tuple[int, int]
    """Width and height of the video's frames, in pixels."""
    repeats: int
    stages: list[ClipStep]
    notes: list[str] = Field(default_factory=list)
    """What a reader must know, for example that the depth network has random weights."""
    reason: str = ""
    """Why nothing was measured."""

    @property
    def ms(self) -> float:
        """Milliseconds a clip."""
        return sum(step.ms for step in self.stages)


class Peak(BaseModel):
    """Speed of the fastest matrix products on the cores that rows were timed on."""

    model_config = ConfigDict(extra="forbid")

    threads: int
    fp32_gmacs: float
    """10^9 multiply-accumulates a second in float32."""
    int8_gmacs: float
    """10^9 multiply-accumulates a second of 8-bit integers into int32."""
    drift: float
    """Difference of the float32 figures measured before and after the rows, as a share of the larger."""


class Robustness(BaseModel):
    """Accuracy of an artifact on crops that were cut, or coloured, in another way than the manifest says."""

    model_config = ConfigDict(extra="forbid")

    perturbation: str
    clips: int
    """Number of clips that could be cut this way; the figures are over these."""
    auc: float | None
    delta_auc: float | None
    """AUC less that of the same clips unchanged; for the perturbation ``unchanged``, less that of the stored clips."""
    verdict_flips: float
    """Share of clips whose verdict differs from that of the clip unchanged; for ``unchanged``, of the stored clip."""
    equal_error_flips: float | None
    """``verdict_flips`` at the equal-error threshold of the validation scores; None where that is not known."""
