"""One artifact: written by its runtime's compiler, gated on real inputs, with a threshold of its own."""

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

from compress.runs import pixel_detector, student_of, takes
from compress.scoring import score_split
from data.store import ClipStore
from export import coreml, executorch, onnx
from export.forms import Form
from export.gate import Gated, SourceRun, gate
from export.golden import Inputs
from export.manifest import Absent, Artifact, Validation
from export.parity import UnfitArtifact
from export.programs import Graph, graphs_of, in_torch
from export.runtimes import evaluated_by, program_file, scorer_of
from files import bytes_of, sha256_of
from models.detector import PixelDetector
from models.run import Run, RunInfo
from stage import Scheme, StageError, reason_of

EXECUTORCH = version("executorch")
MINIMUM_OS = {
    "coreml": coreml.MINIMUM_OS,
    "executorch": f"as the ExecuTorch runtime that the app links: {EXECUTORCH} or newer (older ones were not tried), "
    "built with the XNNPACK backend and the operators that the programs name",
    "onnxruntime": f"as the ONNX Runtime that the app links ({onnx.NEEDS})",
    "vulkan": f"Android with Vulkan 1.1, and an ExecuTorch runtime ({EXECUTORCH} or newer) with its Vulkan backend",
}
"""By delegate, or else by runtime."""


@dataclass(frozen=True)
class Job:
    """One artifact to write."""

    source: SourceRun
    form: Form
    store: Path

    @property
    def info(self) -> RunInfo:
        """What the run says of itself."""
        return self.source.run.info

    @property
    def file(self) -> str:
        """Name of the artifact."""
        return self.form.file(self.info)

    def absent(self, reason: str) -> Absent:
        """Return what the manifest says in the artifact's place."""
        return Absent(file=self.file, runtime=self.form.runtime, scheme=self.info.scheme, reason=reason)


@functools.cache
def _detector(run: Path, scheme: Scheme, one_picture: bool) -> PixelDetector:
    """Load a run once a worker process, whatever number of its artifacts that process writes."""
    return pixel_detector(Run(run), dynamic_batch=not one_picture, scheme=scheme)


def _write(graphs: list[Graph], form: Form, path: Path) -> dict[str, Any]:
    """Write programs for a runtime; return what the manifest says of the artifact, and operators by program."""
    if form.runtime == "executorch":
        assert form.delegate is not None
        return executorch.write(graphs, path, form.delegate, form.etrecord)
    if form.runtime == "onnxruntime":
        return onnx.write(graphs, path, form.ort)
    return coreml.write(graphs, path)


@dataclass(frozen=True)
class Written:
    """An artifact on disk."""

    said: dict[str, Any]
    """What the manifest says of its programs."""
    in_torch: NDArray[np.float32]
    """What they gave of the golden inputs while they were in torch, float32 [N]."""


def write_artifact(job: Job, folder: Path, inputs: Inputs, frames: int) -> Written:
    """Write one artifact into ``folder``; ``inputs``: the golden ones; ``frames``: of a clip."""
    info, form = job.info, job.form
    # Core ML converts float32 to float16 itself, and keeps what must not overflow.
    scheme: Scheme = "fp32" if form.runtime == "coreml" and info.scheme in coreml.HALF else info.scheme
    one_picture = form.batch == 1 and form.method != "clip"
    graphs = graphs_of(_detector(job.source.run.path, scheme, one_picture), info, form, frames)
    scores = scorer_of(in_torch(graphs), form.method)(*inputs)
    said = _write(graphs, form, folder / job.file)
    operators = said.pop("operators")
    files = {graph.name: program_file(Path(job.file), form.runtime, graph.name) for graph in graphs}
    programs = [graph.described(folder, files[graph.name], operators[graph.name]) for graph in graphs]
    return Written(said | {"programs": programs}, scores)


def _written(job: Job, folder: Path, inputs: Inputs, frames: int) -> Written:
    """Write an artifact. Raises Unfit where a runtime's compiler fails on it: the others are none the worse."""
    try:
        return write_artifact(job, folder, inputs, frames)
    except (StageError, OSError, MemoryError):
        raise
    except Exception as error:  # compilers raise nearly anything
        raise UnfitArtifact(f"{job.file} cannot be written ({type(error).__name__}: {reason_of(error)})") from error


def _judged(gated: Gated, source: SourceRun, store: ClipStore) -> dict[str, Any]:
    """Return an artifact's threshold, of what scores, and its figures on validation clips, as the manifest has them."""
    if gated.scorer is None:
        origin = f"validation scores of {source.run.path.name} in torch: it cannot run here"
        return {"threshold": source.threshold, "threshold_from": origin, "validation": None}
    val = score_split(gated.scorer, store, "val", takes(source.run.info))
    threshold = val.choose_threshold()
    validation = Validation.of(val, threshold.value)
    return {"threshold": threshold, "threshold_from": "its own validation scores", "validation": validation}


def make_artifact(job: Job, folder: Path, inputs: Inputs) -> tuple[Artifact, list[float]] | Absent:
    """Write one artifact, gate it and set its threshold; return its manifest entry and golden outputs.

    One that must not be in a bundle leaves nothing there, and why is returned. Runs in a process of its own, on one
    thread, beside others that do the same.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy's BLAS
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        try:
            made = _made(job, Path(aside), inputs)
        except UnfitArtifact as error:
            return job.absent(str(error))
        for file in Path(aside).iterdir():
            file.replace(folder / file.name)
    return made


def _made(job: Job, folder: Path, inputs: Inputs) -> tuple[Artifact, list[float]]:
    """Write one artifact into an empty folder, with what belongs to it. Raises Unfit if it must not be in a bundle."""
    store, source, path, runtime = ClipStore(job.store), job.source, folder / job.file, job.form.runtime
    written = _written(job, folder, inputs, store.frames)
    gated = gate(path, job.form, source, written.in_torch, inputs)
    entry = Artifact(
        file=job.file,
        sha256=sha256_of(path),
        bytes=bytes_of(path),
        runtime=runtime,
        scheme=job.info.scheme,
        minimum_os=MINIMUM_OS.get(job.form.delegate or runtime) or MINIMUM_OS[runtime],
        licence=job.info.weights.licence,
        **_judged(gated, source, store),
        parity=gated.parity,
        untold=source.untold,
        not_checked=gated.not_checked,
        evaluated_by=evaluated_by(runtime) if gated.scorer else None,
        source_run=source.run.as_parent(),
        student=student_of(source.run),
        **written.said,
    )
    return entry, gated.scores.astype(float).tolist()
