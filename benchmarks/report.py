"""The report's schema: ``report.json``. One row per artifact or run, device and thread count, against the reference."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.fidelity import Diagnosis
from stage import Scheme, StageError

SCHEMA_VERSION = 5
MOST_SPREAD = 0.05
"""Of medians between rounds: a row whose medians lie further apart is unstable."""


class Latency(BaseModel):
    """Milliseconds per frame over the repeats after warm-up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    """The mean where a phone's runner tells nothing else; the sum where it times two programs one after the other."""
    p90: float | None
    """None in both cases; from several calls of a runner the median of theirs."""
    p99: float | None


class MethodFigures(BaseModel):
    """Accuracy on one method of forgery: its fake clips against all real ones."""

    model_config = ConfigDict(extra="forbid")

    fake: int
    """Fake clips."""
    auc: float | None
    auc_interval: tuple[float, float] | None


class Operation(BaseModel):
    """What one operation of a model takes, or the runtime itself besides them."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """As the runtime names it: it optimizes a graph before it runs it, so that one may stand for several."""
    kind: str
    """As the runtime names it too: ``Conv``, ``Convolution (NHWC, QC8) IGEMM``."""
    ms: float
    """Milliseconds a run: the median over the profiled runs."""
    share: float
    """Of all that was profiled, 0..1: with that of ``Profile.others_ms`` they sum to 1."""


class Profile(BaseModel):
    """Where the time of a run goes: of a whole clip, or batch, where a run takes one.

    A profiler costs time of its own, so that sums differ from the row's latency, most where operations are small.
    """

    model_config = ConfigDict(extra="forbid")

    profiler: str
    """Which one told it."""
    runs: int
    """Profiled runs; a run is one call of the model."""
    operations: list[Operation]
    """The slowest ones, slowest first."""
    others_ms: float
    """Milliseconds a run of all that is not listed."""
    reason: str = ""
    """Why there are none."""


class Sustained(BaseModel):
    """What a model keeps up when it runs without a pause."""

    model_config = ConfigDict(extra="forbid")

    seconds: float
    frames_per_second: list[float]
    """One figure for each second."""
    drop: float
    """Share of its speed that is lost: 1 less the median of the last quarter over that of the first."""
    joules_per_frame: float | None
    energy: str
    """What was read for it, or why it is not known."""


class Stage(BaseModel):
    """One step of a clip's way from the file to P(fake)."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["decode", "faces", "crop", "depth", "flow", "embed", "score"]
    ms: float
    """Milliseconds a clip: the median over ``Budget.repeats``."""
    peak_memory_mb: float | None
    """Largest resident set of the whole process while it ran, in MiB; None where the system does not tell."""


class Budget(BaseModel):
    """What a whole clip costs, from the video file to P(fake), step by step in a fresh process."""

    model_config = ConfigDict(extra="forbid")

    row: str
    """``Row.name`` of what scores."""
    runtime: str
    scheme: Scheme
    machine: str
    threads: int
    teacher: bool
    frames: int
    """Of a clip."""
    video: str
    """Name of the file."""
    picture: tuple[int, int]
    """Width and height of its frames in pixels."""
    repeats: int
    stages: list[Stage]
    notes: list[str] = Field(default_factory=list)
    """What a reader must know: random weights of the depth network, say."""
    reason: str = ""
    """Why nothing was measured."""

    @property
    def ms(self) -> float:
        """Milliseconds a clip."""
        return sum(stage.ms for stage in self.stages)


class Peak(BaseModel):
    """The fastest matrix products that were measured on the cores that rows were timed on."""

    model_config = ConfigDict(extra="forbid")

    threads: int
    fp32_gmacs: float
    """10^9 multiply-accumulates a second in float32."""
    int8_gmacs: float
    """The same of bytes into int32."""
    drift: float
    """By how much the float32 figure differs from before the rows to after them, as a share of the larger."""


class Session(BaseModel):
    """One call of ``bench`` on one machine: rows name it by ``machine``."""

    model_config = ConfigDict(extra="forbid")

    machine: str
    created: str
    """UTC, ISO 8601."""
    command: str
    environment: dict[str, Any]
    """What ``pocketproof doctor`` knows of the machine: processor, cores, versions."""
    peaks: list[Peak] = Field(default_factory=list)


class Robustness(BaseModel):
    """What an artifact makes of crops that were cut, or coloured, other than the manifest says."""

    model_config = ConfigDict(extra="forbid")

    perturbation: str
    clips: int
    """Clips that could be cut so; figures are over these."""
    auc: float | None
    delta_auc: float | None
    """AUC less that of the same clips cut as the manifest says."""
    verdict_flips: float
    """Share of clips whose verdict differs from that of the same clip cut as the manifest says."""
    equal_error_flips: float | None
    """The same at the equal-error threshold of the validation scores."""


class Row(BaseModel):
    """What was measured of one artifact or run. A figure that was not measured is None and ``reason`` says why."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """The artifact's file, or the run's folder."""
    kind: Literal["artifact", "run"]
    model: str
    """The backbone."""
    runtime: Literal["torch", "executorch", "onnxruntime", "coreml"]
    scheme: Scheme
    machine: str
    """The session in which it was measured."""
    device: str
    """``cpu``; on a Mac of Core ML the compute units that it may use; or a phone, which is no part of the session's
    machine."""
    threads: int
    cores: list[int] | None = None
    """Processors that the process was bound to while it was timed; None where the system cannot."""
    batch: int = 1
    """Crops, or clips, that are scored at once."""
    input_size: int
    status: Literal["measured", "evaluated", "not measured", "failed"]
    """``evaluated``: scored by something in the runtime's place, as ``reason`` says; nothing was timed."""
    reason: str = ""
    """Why nothing was measured; or why some figures are missing or mean less than they seem to."""
    bytes: int
    load_ms: float | None = None
    first_run_ms: float | None = None
    latency_ms: Latency | None = None
    repeats: int = 0
    medians_ms: list[float] = Field(default_factory=list)
    """Of each round, a fresh process; of a single round on this machine, those of its thirds."""
    spread: float | None = None
    """Largest less smallest of them, as a share of their median: above 0.05 the row is unstable."""
    throughput: float | None = None
    """Frames per second."""
    peak_memory_mb: float | None = None
    """Largest resident set of the whole process up to the end of the timing."""
    peak_memory_over_idle_mb: float | None = None
    """The same less the process with its runtime imported and nothing loaded."""
    delegated_fraction: float | None = None
    """Share of operations that a delegate runs (ExecuTorch), or that Core ML prefers to run off the CPU."""
    macs: int | None = None
    """Multiply-accumulates a frame."""
    peak_fraction: float | None = None
    """``macs`` a second in the median run, as a share of the fastest matrix product on the same cores."""
    runtime_bytes: int | None = None
    """Of the runtime's own libraries on this machine, which an app ships beside the artifact; 0 where the system has
    them."""
    threshold: float | None = None
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    """95 % bootstrap interval that resamples persons; None below 10 of them."""
    frame_auc: float | None = None
    video_auc: float | None = None
    """Of videos, each the mean over its clips."""
    methods: dict[str, MethodFigures] = Field(default_factory=dict)
    eer: float | None = None
    ap: float | None = None
    accuracy: float | None = None
    tpr_at_fpr: dict[str, float | None] | None = None
    delta_auc: float | None = None
    """AUC less the reference's on the same clips."""
    student: str | None = None
    """The row of the fp32 student that this one was made from, to which verdict flips refer."""
    verdict_flips: float | None = None
    """Share of clips whose verdict differs from the fp32 student's, each at its own threshold."""
    equal_error_flips: float | None = None
    """The same with each at the equal-error threshold of its validation scores."""
    frame_verdict_flips: float | None = None
    """The same as ``verdict_flips`` by single frames."""
    control_auc: float | None = None
    """AUC on forgeries with the identity transform: 0.5 when the forgery was learned and not the file."""
    speedup_over: str | None = None
    """The fp32 teacher on the same machine and threads to which speedup and size ratio refer."""
    speedup: float | None = None
    """Its median latency divided by this row's."""
    size_ratio: float | None = None
    """Its bytes divided by this row's."""
    earned: bool | None = None
    """Whether this scheme is worth its slot here: faster than fp32 of the same student in the same runtime, and as
    accurate. None for fp32 itself, and where one of the two was not measured."""
    earned_because: str = ""
    """By what, or why not, or why it could not be told."""
    robustness: list[Robustness] | None = None
    sustained: Sustained | None = None
    profile: Profile | None = None

    @property
    def unstable(self) -> bool:
        """Whether its medians lie too far apart to be believed."""
        return self.spread is not None and self.spread > MOST_SPREAD


class ReferenceSummary(BaseModel):
    """The teacher that rows are compared with, and where it was measured."""

    model_config = ConfigDict(extra="forbid")

    run: str
    sha256: str
    """Of the run."""
    backbone: str
    device: str
    precision: str
    clips: int
    auc: float | None
    latency_ms: Latency
    throughput: float
    """Frames a second in the batch of the best throughput."""
    best_batch: int
    tf32: bool
    """Whether float32 matrix products might round to TF32 (NVIDIA GPUs only)."""
    peak_memory_mb: float
    device_memory_mb: float | None
    """Largest sum of tensors on the GPU; None on a CPU."""
    notes: list[str]


class Report(BaseModel):
    """``report.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    sessions: list[Session]
    fingerprint: str
    """Of the store that was scored."""
    split: str
    clips: dict[str, int]
    """Real and fake clips on which accuracy was measured."""
    control_clips: int | None = None
    reference: ReferenceSummary
    diagnoses: dict[str, Diagnosis] = Field(default_factory=dict)
    """What int8 cost, and in which layers, by int8 run."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know before believing a figure: corpora, random weights, what could not run here."""
    rows: list[Row]
    budgets: list[Budget] = Field(default_factory=list)


def report_schema() -> str:
    """Return the JSON Schema of ``report.json``."""
    return json.dumps(Report.model_json_schema(), indent=2) + "\n"


def _version(text: str) -> object:
    """Return the schema version that a report states, or None if it cannot be told: rows may be of any version."""
    try:
        return json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError):
        return None


def read_report(path: Path) -> Report:
    """Read a ``report.json``. Raises StageError if it is missing, damaged or of another version."""
    try:
        text = path.read_text(encoding="utf-8")
        if (version := _version(text)) not in (None, SCHEMA_VERSION):
            raise StageError(f"{path} is of schema version {version}, this program reads {SCHEMA_VERSION}")
        return Report.model_validate_json(text)
    except (OSError, UnicodeError) as error:
        raise StageError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        raise StageError(f"{path} is not a report of schema version {SCHEMA_VERSION}: measure it again") from error
