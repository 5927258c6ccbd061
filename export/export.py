"""Export runs into a bundle: every artifact that passes the gate, and the manifest that describes them."""

from pathlib import Path
from typing import Annotated

import typer

from command import run_as_script
from compress.provenance import check_crops, data_source, student_of, with_notes_of
from compress.runs import check_rgb, check_store, diagnosis_of
from data.store import ClipStore
from export.artifact import Job, make_artifact
from export.bundle import MANIFEST, Bundle, write_sums
from export.forms import FORMATS, Form, forms_of, parse_forms
from export.gate import SourceRun
from export.golden import Inputs, golden_inputs
from export.manifest import PIXELS, Absent, Artifact, Golden, Manifest, manifest_schema
from export.readme import readme
from export.rules import ClipRule, CropGeometry, CropPixels
from files import refuse_existing, sha256_of, shortest_names, write_raw, written_whole
from models.detector import Architecture
from models.run import TOOLS as RUN_TOOLS
from models.run import Run
from processes import in_processes
from resuming import alone, versions_of
from stage import Scheme, StageError, say, usable_cores

TOOLS = (*RUN_TOOLS, "onnx", "onnxruntime", "coremltools")
ONLY_TORCH: tuple[Scheme, ...] = ("autocast", "int8-dynamic")
"""Schemes that no runtime for phones has."""


def _requested(sources: list[SourceRun], forms: list[Form], store: ClipStore) -> list[Job]:
    """Return every artifact that is asked for. Raises StageError if a run has none that exists.

    The slowest come first: lowering int8 to ExecuTorch takes longest.
    """
    slow_first = sorted(sources, key=lambda source: source.run.info.scheme, reverse=True)
    requested = [Job(source, form, store.path) for source in slow_first for form in forms_of(source.run.info, forms)]
    for source in sources:
        if all(job.form.lacks(job.info.scheme) for job in requested if job.source is source):
            raise StageError(
                f"{source.run.path} is in {source.run.info.scheme}, which only Core ML has: add coreml to --format"
            )
    return requested


def build_bundle(
    sources: list[SourceRun], forms: list[Form], store: ClipStore, inputs: Inputs, out: Path
) -> tuple[Manifest, list[Absent]]:
    """Write every artifact, gate it and describe it; return the manifest, and what must not be in the bundle.

    Raises StageError if a run has no form in ``forms``, or if no artifact passes: then ``out`` is not written.
    """
    requested = _requested(sources, forms, store)
    jobs = [job for job in requested if not job.form.lacks(job.info.scheme)]
    with written_whole(out) as folder:
        (folder / PIXELS).parent.mkdir(parents=True)
        write_raw(folder / PIXELS, inputs[0])
        crop = CropGeometry.of(store.info.settings)
        write_raw(folder / crop.pixels.crops, CropPixels.cut(crop.rule, crop.pixels.boxes))
        tasks = [(job, folder, inputs) for job in jobs]
        results = in_processes(make_artifact, tasks, min(len(jobs), usable_cores(), 4), "export")
        entries = [result for result in results if isinstance(result, tuple)]
        unfit = [result for result in results if isinstance(result, Absent)]
        if not entries:
            raise StageError(unfit[0].reason)
        golden = Golden(
            shape=list(inputs[0].shape),
            sha256=sha256_of(folder / PIXELS),
            valid=inputs[1].tolist() if len(inputs) > 1 else None,
            outputs={artifact.file: outputs for artifact, outputs in entries},
        )
        lacking = [job.absent(reason) for job in requested if (reason := job.form.lacks(job.info.scheme))]
        artifacts = [artifact for artifact, _ in entries]
        manifest = _manifest(requested, store, crop, artifacts, lacking + unfit, golden)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "manifest.schema.json").write_text(manifest_schema(), encoding="utf-8")
        (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
        write_sums(folder)
    return manifest, unfit


def _manifest(
    jobs: list[Job],
    store: ClipStore,
    crop: CropGeometry,
    artifacts: list[Artifact],
    absent: list[Absent],
    golden: Golden,
) -> Manifest:
    """Describe the bundle of one student's runs: ``jobs`` are all artifacts requested, in whatever way they ended."""
    first = jobs[0].info
    runs = {job.source.run.path: job.source.run for job in jobs}
    names = shortest_names(runs)
    return Manifest(
        backbone=first.architecture.backbone,
        crop=crop,
        clip=ClipRule.of(store.frames, first.architecture.per, store.frame_rate),
        artifacts=artifacts,
        absent=absent,
        golden=golden,
        weights=first.weights,
        data=with_notes_of(runs.values(), data_source(store, first.architecture.modalities, *runs.values())),
        diagnoses={names[path]: diagnosis for path, run in runs.items() if (diagnosis := diagnosis_of(run))},
        tools=versions_of(TOOLS),
    )


def _one_student(runs: list[Run], store: ClipStore) -> Architecture:
    """Return the architecture that all runs share, as it is when fused.

    Raises StageError if one bundle cannot hold the runs, or if the student cannot score the store.
    """
    for run in runs:
        check_rgb(run)
        check_store(run, store)
        check_crops(run, store)
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
    data: Annotated[Path, typer.Option(help="The ClipStore on which artifacts are compared and get their thresholds.")],
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
        raise StageError(f"{out} is written without {', '.join(entry.file for entry in unfit)}: the reasons are above")
    return Bundle(out)


if __name__ == "__main__":
    run_as_script(export)
