"""The report's schema: ``report.json``. One row per artifact or run, device and thread count, against the reference."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from benchmarks.figures import Budget, Latency, MethodFigures, Peak, Profile, Robustness, Sustained
from compress.fidelity import Diagnosis
from export.runtimes import ComputeUnits
from parsing import read_json
from stage import PALETTES, STATIC_INT8, Scheme

SCHEMA_VERSION = 5
Share = Annotated[float, Field(ge=0, le=1)]
MOST_SPREAD = 0.05
"""Largest spread of a stable row: the largest median of a round less the smallest, as a share of their median."""
MOST_LOST = 0.005
"""AUC that a scheme may lose against fp32."""
LEAST_BOUND = -0.01
"""Lowest allowed lower bound of the 95 % interval of the AUC difference (scheme less fp32)."""
MOST_FLIPS = 0.03
"""Share of verdicts, 0..1, that may differ between a scheme and fp32, or between two runtimes."""


class Session(BaseModel):
    """One call of ``bench`` on one machine; rows refer to it by ``machine``."""

    model_config = ConfigDict(extra="forbid")

    machine: str
    created: str
    """UTC, ISO 8601."""
    command: str
    environment: dict[str, Any]
    """The fields of ``benchmarks.machine.Machine``: processor, cores, versions; with the phone's properties, if any."""
    peaks: list[Peak] = Field(default_factory=list)


class Row(BaseModel):
    """The figures of one artifact or run. A figure that was not measured is None, and ``reason`` says why."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Name of the artifact's file or the run's folder, with its parent folders where other rows have the same name."""
    kind: Literal["artifact", "run"]
    model: str
    """The backbone."""
    runtime: Literal["torch", "executorch", "onnxruntime", "coreml"]
    scheme: Scheme
    machine: str
    """The session in which it was measured."""
    device: str
    """``cpu``; for Core ML on a Mac, the compute units that it may use; or the name of a phone, which is not part of
    the session's machine."""
    threads: PositiveInt
    cores: list[int] | None = None
    """Processors that the process was bound to while it was timed; None where the system cannot."""
    batch: PositiveInt = 1
    """Number of crops, or clips, that are scored at once."""
    whole_clip: bool = False
    """Whether one program takes all frames of a clip. Where clips overlap, it runs a frame once for every clip that the
    frame is in; a model in two steps runs it once."""
    input_size: PositiveInt
    status: Literal["measured", "evaluated", "not measured", "failed"]
    """``evaluated``: scored by a substitute for the runtime, which ``reason`` names; nothing was timed."""
    reason: str = ""
    """Why nothing was measured; or why some figures are missing or mean less than they seem to."""
    bytes: PositiveInt
    sha256: str | None = None
    """Hash of the artifact or run; None in reports that are older than this field."""
    load_ms: float | None = None
    first_run_ms: float | None = None
    latency_ms: Latency | None = None
    repeats: int = 0
    medians_ms: list[float] = Field(default_factory=list)
    """Median of each round, a fresh process; of a single round on this machine, the medians of its three thirds."""
    spread: float | None = None
    """Largest less smallest of ``medians_ms``, as a share of their median: above 0.05 the row is unstable."""
    throughput: float | None = None
    """Frames per second."""
    peak_memory_mb: float | None = None
    """Largest resident set of the whole process up to the end of the timing, in MiB."""
    peak_memory_over_idle_mb: float | None = None
    """``peak_memory_mb`` less the resident set of the process with its runtime imported and no model loaded."""
    delegated_fraction: Share | None = None
    """Share of operations that a delegate runs (ExecuTorch), or that Core ML prefers to run off the CPU."""
    macs: int | None = None
    """Multiply-accumulates per frame."""
    peak_fraction: float | None = None
    """``macs`` a second in the median run, as a share of the fastest matrix product on the same cores."""
    runtime_bytes: int | None = None
    """Bytes of the runtime's own libraries on this machine, which an app ships beside the artifact; 0 where the system
    brings them."""
    threshold: float | None = None
    auc: Share | None = None
    auc_interval: tuple[float, float] | None = None
    """95 % bootstrap interval that resamples persons; None below 10 of each label, and where all draws agree."""
    frame_auc: Share | None = None
    video_auc: Share | None = None
    """AUC over videos, each scored by the mean over its valid frames; for clip models, over its clips."""
    methods: dict[str, MethodFigures] = Field(default_factory=dict)
    eer: Share | None = None
    ap: Share | None = None
    accuracy: Share | None = None
    tpr_at_fpr: dict[str, float | None] | None = None
    delta_auc: float | None = None
    """AUC less that of the reference on the same clips."""
    student: str | None = None
    """The row of the fp32 run that this one was made from, a student or an exported teacher: flips refer to it."""
    verdict_flips: Share | None = None
    """Share of clips whose verdict differs from the fp32 run's, each at its own threshold."""
    equal_error_flips: Share | None = None
    """``verdict_flips`` with each model at the equal-error threshold of its validation scores."""
    frame_verdict_flips: Share | None = None
    """``verdict_flips`` over single frames."""
    control_auc: Share | None = None
    """AUC on forgeries with the identity transform: 0.5 when the forgery was learned and not the file."""
    speedup_over: str | None = None
    """The fp32 teacher on the same machine and threads to which speedup and size ratio refer."""
    speedup: PositiveFloat | None = None
    """Median latency of that teacher divided by this row's."""
    size_ratio: PositiveFloat | None = None
    """Bytes of that teacher divided by this row's."""
    earned: bool | None = None
    """Whether this scheme is worth its slot here: faster than fp32 of the same student in the same runtime by more than
    their spreads, and as accurate. None for fp32 itself, and where one of the two was not measured."""
    earned_because: str = ""
    """The gain, what speaks against it, or why ``earned`` is not known."""
    robustness: list[Robustness] | None = None
    sustained: Sustained | None = None
    profile: Profile | None = None

    @property
    def own_threads(self) -> bool:
        """Whether Core ML runs it, which chooses its number of threads."""
        return self.runtime == "coreml" or self.device == "all"

    @property
    def on_phone(self) -> bool:
        """Whether it was timed on a phone."""
        return self.device not in ("cpu", *get_args(ComputeUnits))

    @property
    def place(self) -> str:
        """Where it was timed: the phone, on whichever machine, or the session's machine (``X (2)``: again)."""
        return self.device if self.on_phone else self.machine

    @property
    def unstable(self) -> bool:
        """Whether its medians lie too far apart for its latency to be believed."""
        return self.spread is not None and self.spread > MOST_SPREAD

    @property
    def simulated(self) -> bool:
        """Whether torch computes in float32 what a phone computes in fewer bits: time and bytes then say nothing."""
        return self.kind == "run" and self.scheme in (*STATIC_INT8, *PALETTES)

    @property
    def as_teacher(self) -> str:
        """The text of ``speedup_over`` in rows that are compared with this teacher."""
        return f"{self.name} ({self.model}, torch fp32)"


class ReferenceSummary(BaseModel):
    """The teacher that rows are compared with, and where it was measured."""

    model_config = ConfigDict(extra="forbid")

    run: str
    sha256: str
    """Hash of the run."""
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
    """Whether float32 convolutions or matrix products might round to TF32 (NVIDIA GPUs only)."""
    peak_memory_mb: float
    device_memory_mb: float | None
    """Largest sum of tensors on the GPU, in MiB; None on a CPU."""
    notes: list[str]


class Report(BaseModel):
    """The content of ``report.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    sessions: list[Session]
    fingerprint: str
    """Fingerprint of the store that was scored."""
    split: str
    clips: dict[str, int]
    """Number of clips on which accuracy was measured, by label: ``real`` and ``fake``."""
    control_clips: int | None = None
    control_fingerprint: str | None = None
    """Fingerprint of the store of controls."""
    reference: ReferenceSummary
    diagnoses: dict[str, Diagnosis] = Field(default_factory=dict)
    """Cost of int8, and the layers that cause it, by the name of the int8 run."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know before believing a figure: corpora, random weights, what could not run here."""
    rows: list[Row]
    budgets: list[Budget] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_its_sessions(self) -> Self:
        names = [session.machine for session in self.sessions]
        if len(set(names)) < len(names):
            raise ValueError("two sessions have one name")
        named = {*(row.machine for row in self.rows), *(budget.machine for budget in self.budgets)}
        if unknown := named - set(names):
            raise ValueError(f"no session is named {min(unknown)!r}")
        return self


def machine_of(session: str) -> str:
    """Return the machine of a session: its name without the number that tells several sessions on one machine apart."""
    return re.sub(r" \(\d+\)$", "", session)


def report_schema() -> str:
    """Return the JSON Schema of ``report.json``."""
    return json.dumps(Report.model_json_schema(), indent=2) + "\n"


def read_report(path: Path) -> Report:
    """Read a ``report.json``. Raises StageError if it is missing, damaged or of another version."""
    missing = f"{path} cannot be read: make it with pocketproof bench"
    return read_json(path, Report, SCHEMA_VERSION, missing, "measure it again")
