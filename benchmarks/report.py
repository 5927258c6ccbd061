"""The report's schema: ``report.json``. One row per artifact or run and thread count, against the reference."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.fidelity import Diagnosis
from stage import Scheme, StageError

SCHEMA_VERSION = 4


class Latency(BaseModel):
    """Milliseconds per frame over the repeats after warm-up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p90: float
    p99: float


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
    device: str
    threads: int
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
    throughput: float | None = None
    """Frames per second."""
    peak_memory_mb: float | None = None
    """Largest resident set of the whole process up to the end of the timing."""
    peak_memory_over_idle_mb: float | None = None
    """The same less the process with its runtime imported and nothing loaded."""
    delegated_fraction: float | None = None
    """Share of operations that the accelerated backend runs (ExecuTorch)."""
    threshold: float | None = None
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    """95 % bootstrap interval that resamples persons; None below 10 of them."""
    frame_auc: float | None = None
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
    speedup: float | None = None
    """Median latency of the row named in ``Report.speedup_over`` divided by this row's."""
    size_ratio: float | None = None
    """Bytes of that row divided by this row's."""
    earned: bool | None = None
    """Whether this scheme is worth its slot here: faster than fp32 of the same student in the same runtime, and as
    accurate. None for fp32 itself, and where one of the two was not measured."""
    earned_because: str = ""
    """By what, or why not, or why it could not be told."""
    robustness: list[Robustness] | None = None


class ReferenceSummary(BaseModel):
    """The teacher that rows are compared with, and where it was measured."""

    model_config = ConfigDict(extra="forbid")

    run: str
    backbone: str
    device: str
    precision: str
    clips: int
    auc: float | None
    latency_ms: Latency
    peak_memory_mb: float
    notes: list[str]


class Report(BaseModel):
    """``report.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    created: str
    """UTC, ISO 8601."""
    command: str
    machine: dict[str, Any]
    """What ``pocketproof doctor`` knows of this machine: processor, cores, versions."""
    split: str
    clips: dict[str, int]
    """Real and fake clips on which accuracy was measured."""
    control_clips: int | None = None
    reference: ReferenceSummary
    speedup_over: str | None
    """The row of the fp32 teacher to which speedup and size ratio refer."""
    diagnoses: dict[str, Diagnosis] = Field(default_factory=dict)
    """What int8 cost, and in which layers, by int8 run."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know before believing a figure: corpora, random weights, what could not run here."""
    rows: list[Row]


def read_report(path: Path) -> Report:
    """Read a ``report.json``. Raises StageError if it is missing, damaged or of another version."""
    try:
        report = Report.model_validate_json(path.read_text(encoding="utf-8"))
        if report.schema_version != SCHEMA_VERSION:
            raise StageError(
                f"{path} is of schema version {report.schema_version}, this program reads {SCHEMA_VERSION}"
            )
    except (OSError, UnicodeError) as error:
        raise StageError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        raise StageError(f"{path} is not a report of schema version {SCHEMA_VERSION}") from error
    return report
