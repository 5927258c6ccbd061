"""Runs to a bundle: write each artifact, gate it on real inputs, set its threshold, and describe it all."""

import functools
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from compress.runs import check_rgb, check_store, data_source, diagnosis_of, pixel_detector, student_of, takes
from compress.scoring import score_split
from data.store import ClipStore
from export import coreml, executorch, onnx
from export.bundle import Bundle, write_sums
from export.forms import FORMATS, Form, forms_of, parse_forms
from export.gate import Gated, SourceRun, gate
from export.golden import Inputs, golden_inputs
from export.manifest import Absent, Artifact, Golden, Manifest, Validation, manifest_schema
from export.parity import Unfit
from export.programs import Graph, graphs_of, in_torch
from export.readme import readme
from export.rules import ClipRule, CropGeometry, CropPixels
from export.runtimes import evaluated_by, program_file, runner_of
from files import alone, bytes_of, refuse_existing, sha256_of, shortest_names, written_whole
from models.detector import Architecture, PixelDetector
from models.run import TOOLS as RUN_TOOLS
from models.run import Run, RunInfo, versions_of
from stage import Scheme, StageError, in_processes, reason_of, run_as_script, say

TOOLS = (*RUN_TOOLS, "onnx", "onnxruntime", "coremltools")
ONLY_TORCH: tuple[Scheme, ...] = ("autocast", "int8-dynamic")
"""Schemes that the runtimes of phones do not have."""
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
    scores = runner_of(in_torch(graphs), form.method)(*inputs)
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
        raise Unfit(f"{job.file} cannot be written ({type(error).__name__}: {reason_of(error)})") from error


def _judged(gated: Gated, source: SourceRun, store: ClipStore) -> dict[str, Any]:
    """Return an artifact's threshold, of what scores, and its figures on validation clips, as the manifest has them."""
    if gated.runner is None:
        origin = f"validation scores of {source.run.path.name} in torch: it cannot run here"
        return {"threshold": source.threshold, "threshold_from": origin, "validation": None}
    val = score_split(gated.runner, store, "val", takes(source.run.info))
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
        except Unfit as error:
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
        evaluated_by=evaluated_by(runtime) if gated.runner else None,
        source_run=source.run.as_parent(),
        student=student_of(source.run),
        **written.said,
    )
    return entry, gated.scores.astype(float).tolist()


def build_bundle(
    sources: list[SourceRun], forms: list[Form], store: ClipStore, inputs: Inputs, out: Path
) -> tuple[Manifest, list[Absent]]:
    """Write every artifact, gate it and describe it; return also what must not be in the bundle.

    ``out`` appears only if something may be.
    """
    # The slow ones first: lowering int8 to ExecuTorch takes longest.
    slow_first = sorted(sources, key=lambda source: source.run.info.scheme, reverse=True)
    asked = [Job(source, form, store.path) for source in slow_first for form in forms_of(source.run.info, forms)]
    jobs = [job for job in asked if not job.form.lacks(job.info.scheme)]
    for source in sources:
        if all(job.source is not source for job in jobs):
            raise StageError(
                f"{source.run.path} is in {source.run.info.scheme}, which only Core ML has: add coreml to --format"
            )
    with written_whole(out) as folder:
        (folder / "golden").mkdir(parents=True)
        inputs[0].tofile(folder / "golden" / "pixels.bin")
        crop = CropGeometry.of(store.info.settings)
        CropPixels.cut(crop.rule, crop.pixels.boxes).tofile(folder / crop.pixels.crops)
        tasks = [(job, folder, inputs) for job in jobs]
        found = in_processes(make_artifact, tasks, min(len(jobs), os.cpu_count() or 1, 4), "export")
        made = [own for own in found if isinstance(own, tuple)]
        unfit = [own for own in found if isinstance(own, Absent)]
        if not made:
            raise StageError(unfit[0].reason)
        golden = Golden(
            shape=list(inputs[0].shape),
            sha256=sha256_of(folder / "golden" / "pixels.bin"),
            valid=inputs[1].tolist() if len(inputs) > 1 else None,
            outputs={entry.file: outputs for entry, outputs in made},
        )
        lacking = [job.absent(reason) for job in asked if (reason := job.form.lacks(job.info.scheme))]
        manifest = _manifest(asked, store, crop, [entry for entry, _ in made], lacking + unfit, golden)
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "manifest.schema.json").write_text(manifest_schema(), encoding="utf-8")
        (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
        write_sums(folder)
    return manifest, unfit


def _manifest(
    asked: list[Job],
    store: ClipStore,
    crop: CropGeometry,
    artifacts: list[Artifact],
    absent: list[Absent],
    golden: Golden,
) -> Manifest:
    first = asked[0].info
    runs = {job.source.run.path: job.source.run for job in asked}
    names = shortest_names(runs)
    return Manifest(
        backbone=first.architecture.backbone,
        crop=crop,
        clip=ClipRule.of(store.frames, first.architecture.per),
        artifacts=artifacts,
        absent=absent,
        golden=golden,
        weights=first.weights,
        data=data_source(store, *runs.values()),
        diagnoses={names[path]: diagnosis for path, run in runs.items() if (diagnosis := diagnosis_of(run))},
        tools=versions_of(TOOLS),
    )


def _one_student(runs: list[Run], store: ClipStore) -> Architecture:
    """Return the architecture that all runs share, but for fusing.

    Raises StageError if a bundle cannot hold them, or if the student cannot score the store.
    """
    for run in runs:
        check_rgb(run)
        check_store(run, store)
        if run.info.scheme in ONLY_TORCH:
            raise StageError(
                f"{run.path} is in {run.info.scheme}, which no runtime of a phone has: bench the run itself, and "
                "export the run that it came from, or its fp16 or int8 run"
            )
    architectures = [run.info.architecture.model_copy(update={"fused": True}) for run in runs]
    if any(architecture != architectures[0] for architecture in architectures):
        raise StageError("the runs hold different students: export them into bundles of their own")
    if len({student_of(run) for run in runs}) > 1:
        raise StageError("the runs come from different fp32 runs: export them into bundles of their own")
    if len({run.info.scheme for run in runs}) < len(runs):
        raise StageError("two of the runs have the same student and scheme: export them into bundles of their own")
    return architectures[0]


def export(
    run: Annotated[list[Path], typer.Argument(help="Runs of one student: its fp32, fp16 and int8 run.")],
    data: Annotated[Path, typer.Option(help="The ClipStore whose real crops or clips the gate compares on.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    format: Annotated[str, typer.Option(help="Runtimes, comma-separated.")] = ",".join(FORMATS),
    batch: Annotated[
        str, typer.Option(help="onnx, for servers: crops or clips at once, a number or dynamic. Others take one.")
    ] = "1",
    ort: Annotated[
        bool, typer.Option("--ort", help="onnx: also as .ort, with the operators that a build for it must have.")
    ] = False,
    delegate: Annotated[
        str, typer.Option(help="executorch: xnnpack, coreml, vulkan, comma-separated; a file for each.")
    ] = "xnnpack",
    etrecord: Annotated[
        bool, typer.Option("--etrecord", help="executorch: also what names operations in its profiler.")
    ] = False,
) -> Bundle:
    """Write runs as artifacts for phones, each compared with its run on real crops before it is handed over.

    Example: **pocketproof export runs/student runs/student-int8 --data store --out bundle**
    """
    refuse_existing(out)
    forms = parse_forms(format, batch, delegate, etrecord, ort)
    store = ClipStore(data)
    inputs = golden_inputs(store, _one_student([Run(path) for path in run], store).per)
    with alone(out):
        sources = [SourceRun.load(path, inputs) for path in run]
        manifest, unfit = build_bundle(sources, forms, store, inputs, out)
    for artifact in manifest.artifacts:
        say(f"{out / artifact.file}: {artifact.bytes / 1e6:.2f} MB, {artifact.near()}")
        if artifact.untold:
            say(f"{out / artifact.file}: its golden outputs would not reveal {', '.join(artifact.untold)}")
        if artifact.phone_check:
            say(f"{out / artifact.file}: {artifact.phone_check}")
    for absent in manifest.absent:
        say(f"{out}: no {absent.file}: {absent.reason}")
    if unfit:
        raise StageError(f"{out} is written without {', '.join(own.file for own in unfit)}: the reasons are above")
    return Bundle(out)


if __name__ == "__main__":
    run_as_script(export)
