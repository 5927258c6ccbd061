"""Make one artifact: its runtime's compiler writes it, the gate compares it on real inputs, its threshold is set."""

import functools
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from compress.provenance import student_of
from compress.runs import pixel_detector, takes, torch_scorer
from compress.scoring import NotANumber, score_split
from data.store import ClipStore
from export import coreml, executorch, onnx
from export.forms import Form
from export.gate import Gated, SourceRun, gate
from export.golden import Inputs
from export.manifest import OWN_SCORES, Absent, Artifact, Validation
from export.programs import TorchProgram, in_torch, programs_of
from export.runtimes import Delegate, Runtime, UnfitArtifact, evaluated_by, program_file, scorer_of
from files import bytes_of, sha256_of
from models.pixels import PixelDetector
from models.run import Run, RunInfo
from stage import Scheme, StageError, reason_of

MINIMUM_OS: dict[Runtime, str] = {
    "coreml": coreml.MINIMUM_OS,
    "onnxruntime": f"as the ONNX Runtime that the app links ({onnx.NEEDS})",
}
EXECUTORCH = (
    f"as the ExecuTorch runtime that the app links, {version('executorch')} or newer (older ones were not tried), "
    "built with the {} backend and the operators that the programs name"
)
MINIMUM_OS_BY_DELEGATE: dict[Delegate, str] = {
    "xnnpack": EXECUTORCH.format("XNNPACK"),
    "coreml": f"{coreml.MINIMUM_OS}, and {EXECUTORCH.format('Core ML')}",
    "vulkan": f"Android with Vulkan 1.1, and {EXECUTORCH.format('Vulkan')}",
}
"""Least system and runtime that an artifact needs: a ``.pte`` by its delegate, others by their runtime."""


@dataclass(frozen=True)
class Job:
    """One artifact to write."""

    source: SourceRun
    form: Form
    store: Path

    @property
    def info(self) -> RunInfo:
        """The description of the source run."""
        return self.source.run.info

    @property
    def file(self) -> str:
        """File name of the artifact."""
        return self.form.file(self.info)

    def absent(self, reason: str) -> Absent:
        """Return the manifest's entry for an artifact that is not in the bundle."""
        return Absent(file=self.file, runtime=self.form.runtime, scheme=self.info.scheme, reason=reason)


@functools.cache
def _detector(run: Path, scheme: Scheme) -> PixelDetector:
    """Load a run once per worker process, however many of its artifacts that process writes."""
    return pixel_detector(Run(run), scheme)


def _write(torch_programs: list[TorchProgram], form: Form, path: Path) -> dict[str, Any]:
    """Write programs for a runtime; return fields of the manifest's entry, and ``operators`` by program."""
    if form.runtime == "executorch":
        assert form.delegate is not None
        return executorch.write(torch_programs, path, form.delegate, form.etrecord)
    if form.runtime == "onnxruntime":
        return onnx.write(torch_programs, path, form.ort)
    return coreml.write(torch_programs, path)


@dataclass(frozen=True)
class Written:
    """An artifact on disk."""

    fields: dict[str, Any]
    """Fields of the manifest's entry that come from its programs."""
    in_torch: NDArray[np.float32]
    """P(fake) of the golden inputs by the same programs in torch, float32 [N]."""


def write_artifact(job: Job, folder: Path, inputs: Inputs, frames: int) -> Written:
    """Write one artifact into ``folder``; ``inputs`` are the golden inputs, ``frames`` the length of a clip."""
    info, form = job.info, job.form
    # Core ML converts float32 to float16 itself, and keeps what must not overflow.
    scheme: Scheme = "fp32" if form.runtime == "coreml" and info.scheme in coreml.HALF else info.scheme
    torch_programs = programs_of(_detector(job.source.run.path, scheme), info, form, frames)
    scores = scorer_of(in_torch(torch_programs), form.method)(*inputs)
    fields = _write(torch_programs, form, folder / job.file)
    operators = fields.pop("operators")
    files = {
        torch_program.name: program_file(Path(job.file), form.runtime, torch_program.name)
        for torch_program in torch_programs
    }
    programs = [
        torch_program.described(folder, files[torch_program.name], operators[torch_program.name])
        for torch_program in torch_programs
    ]
    return Written(fields | {"programs": programs}, scores)


def _write_or_refuse(job: Job, folder: Path, inputs: Inputs, frames: int) -> Written:
    """Write an artifact. Raises UnfitArtifact if a compiler fails on it: other artifacts can still be exported."""
    try:
        return write_artifact(job, folder, inputs, frames)
    except (StageError, OSError, MemoryError):
        raise
    except Exception as error:  # compilers raise exceptions of any class
        raise UnfitArtifact(f"{job.file} cannot be written ({type(error).__name__}: {reason_of(error)})") from error


def _threshold_fields(file: str, gated: Gated, source: SourceRun, store: ClipStore) -> dict[str, Any]:
    """Return the manifest's fields for an artifact's threshold, its origin, and the figures on validation clips.

    Raises UnfitArtifact if it gives a validation clip a score that is not a number.
    """
    run, scorer = source.run, gated.scorer
    origin = OWN_SCORES if scorer else f"validation scores of {run.name} in torch: it cannot run where it was exported"
    if scorer is None and run.info.data.fingerprint == store.info.fingerprint:
        return {"threshold": source.threshold, "threshold_from": origin, "validation": None}
    try:
        scoring = scorer or torch_scorer(_detector(run.path, run.info.scheme), torch.device("cpu"))
        val = score_split(scoring, store, "val", takes(run.info))
    except NotANumber as error:
        raise UnfitArtifact(f"{file}: {error}") from error
    threshold = val.choose_threshold()
    validation = Validation.of(val, threshold.value) if scorer else None
    return {"threshold": threshold, "threshold_from": origin, "validation": validation}


def make_artifact(job: Job, folder: Path, inputs: Inputs) -> tuple[Artifact, list[float]] | Absent:
    """Write one artifact, gate it and set its threshold; return its manifest entry and golden outputs, P(fake) [N].

    If the artifact must not be in a bundle, no file of it is left there, and the reason is returned as ``Absent``. Runs
    in a process of its own, on one thread, beside others that do the same.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)  # for NumPy's BLAS
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        try:
            entry_and_outputs = _make(job, Path(aside), inputs)
        except UnfitArtifact as error:
            return job.absent(str(error))
        for file in Path(aside).iterdir():
            file.replace(folder / file.name)
    return entry_and_outputs


def _make(job: Job, folder: Path, inputs: Inputs) -> tuple[Artifact, list[float]]:
    """Write one artifact and its companions into an empty folder. Raises UnfitArtifact if no bundle may hold it."""
    store = ClipStore(job.store)
    source, runtime = job.source, job.form.runtime
    path = folder / job.file
    written = _write_or_refuse(job, folder, inputs, store.frames)
    gated = gate(path, job.form, source, written.in_torch, inputs)
    entry = Artifact(
        file=job.file,
        sha256=sha256_of(path),
        bytes=bytes_of(path),
        runtime=runtime,
        scheme=job.info.scheme,
        minimum_os=MINIMUM_OS_BY_DELEGATE[job.form.delegate] if job.form.delegate else MINIMUM_OS[runtime],
        licence=job.info.weights.licence,
        **_threshold_fields(job.file, gated, source, store),
        parity=gated.parity,
        untold=source.untold,
        not_checked=gated.not_checked,
        evaluated_by=evaluated_by(runtime) if gated.scorer else None,
        source_run=source.run.as_parent(),
        student=student_of(source.run),
        **written.fields,
    )
    return entry, gated.scores.astype(float).tolist()
