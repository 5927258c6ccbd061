"""Runs to a bundle: write each artifact, gate it on real inputs, set its threshold, and describe it all."""

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from compress.metrics import choose_threshold
from compress.runs import check_clips, check_rgb, data_source, diagnosis_of, pixel_detector, student_of, takes
from compress.scoring import score_split
from data.store import ClipStore
from export import coreml, executorch, onnx
from export.bundle import Artifact, Bundle, ClipRule, CropGeometry, Golden, Manifest
from export.gate import Source, gate
from export.golden import Inputs, golden_inputs
from export.programs import graphs_of
from export.runtimes import SUFFIX_OF, Runtime, cannot_run, program_file
from models.detector import Architecture, PixelDetector
from models.run import Run, RunInfo
from stage import Scheme, StageError, bytes_of, progress, refuse_existing, run_as_script, say, sha256_of, written_whole

FORMATS: dict[str, Runtime] = {"executorch": "executorch", "onnx": "onnxruntime", "coreml": "coreml"}
FORMAT_OF = {runtime: name for name, runtime in FORMATS.items()}
WRITERS = {"executorch": executorch.write, "onnxruntime": onnx.write, "coreml": coreml.write}
ONLY_TORCH: tuple[Scheme, ...] = ("autocast", "int8-dynamic")
"""Schemes that the runtimes of phones do not have."""
MINIMUM_OS = {
    "coreml": coreml.MINIMUM_OS,
    "executorch": "as the ExecuTorch runtime that the app links; the file asks for nothing more",
    "onnxruntime": "as the ONNX Runtime that the app links (opset 20: version 1.17 or newer)",
}


@dataclass(frozen=True)
class Job:
    """One artifact to write."""

    run: Path
    runtime: Runtime
    file: str
    frames: int
    """Frames of a clip."""


@functools.cache
def _single_picture_detector(run: Path, scheme: Scheme) -> PixelDetector:
    """Load a run once a worker process, whatever number of its artifacts that process writes."""
    return pixel_detector(Run(run), dynamic_batch=False, scheme=scheme)


def write_artifact(job: Job, folder: Path) -> dict[str, Any]:
    """Write one artifact into ``folder`` and return what the manifest says of its programs."""
    torch.set_num_threads(1)
    info = Run(job.run).info
    # Core ML converts float32 to float16 itself, and keeps what must not overflow.
    scheme: Scheme = "fp32" if (job.runtime, info.scheme) == ("coreml", "fp16") else info.scheme
    graphs = graphs_of(_single_picture_detector(job.run, scheme), info, job.runtime, job.frames)
    said = WRITERS[job.runtime](graphs, folder / job.file)
    operators = said.pop("operators")
    files = {graph.name: program_file(Path(job.file), job.runtime, graph.name) for graph in graphs}
    return said | {"programs": [graph.described(folder, files[graph.name], operators[graph.name]) for graph in graphs]}


def _describe(
    job: Job, source: Source, folder: Path, said: dict[str, Any], inputs: Inputs, store: ClipStore
) -> tuple[Artifact, list[float]]:
    """Gate one artifact, set its threshold, and return its manifest entry and golden outputs."""
    path, info = folder / job.file, source.run.info
    parity, runner = gate(path, job.runtime, source, inputs)
    threshold, origin = source.threshold, f"validation scores of {source.run.path.name} in torch: it cannot run here"
    if runner is not None:
        val = score_split(runner, store, "val", takes(info))
        threshold, origin = choose_threshold(val.labels, val.clips), "its own validation scores"
    entry = Artifact(
        file=job.file,
        sha256=sha256_of(path),
        bytes=bytes_of(path),
        runtime=job.runtime,
        scheme=info.scheme,
        minimum_os=MINIMUM_OS[job.runtime],
        licence=info.weights.licence,
        threshold=threshold,
        threshold_from=origin,
        parity=parity,
        not_checked="" if parity else f"not compared: {cannot_run(job.runtime)}",
        source_run=source.run.as_parent(),
        student=student_of(source.run),
        **said,
    )
    outputs = source.golden if runner is None else runner(*inputs)
    return entry, [float(score) for score in outputs]


def artifact_name(info: RunInfo, runtime: Runtime) -> str:
    """Return the file name of a run's artifact: its student, scheme and runtime."""
    architecture = info.architecture
    marks = [architecture.backbone, architecture.activation, "clip" if architecture.per == "clip" else None]
    name = "-".join(mark for mark in (*marks, info.scheme) if mark)
    if architecture.per == "clip" and runtime != "executorch":
        return f"{name}-{FORMAT_OF[runtime]}"
    return f"{name}{SUFFIX_OF[runtime]}"


def _jobs(sources: list[Source], formats: list[Runtime], frames: int) -> Iterator[Job]:
    """Yield the artifacts to write, the slow ones first: lowering int8 to ExecuTorch takes longest."""
    for runtime in formats:
        for source in sorted(sources, key=lambda source: source.run.info.scheme, reverse=True):
            yield Job(source.run.path, runtime, artifact_name(source.run.info, runtime), frames)


def _parse_formats(text: str) -> list[Runtime]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise StageError(f"--format {','.join(unknown)!r} is unknown: give some of {','.join(FORMATS)}")
    return [runtime for name, runtime in FORMATS.items() if name in names]


def build_bundle(
    sources: list[Source], formats: list[Runtime], store: ClipStore, inputs: Inputs, out: Path
) -> Manifest:
    """Write every artifact, gate it and describe it; ``out`` appears only if all passed."""
    jobs = list(_jobs(sources, formats, store.frames))
    by_path = {source.run.path: source for source in sources}
    first = sources[0].run.info
    with written_whole(out) as folder:
        (folder / "golden").mkdir(parents=True)
        inputs[0].tofile(folder / "golden" / "pixels.bin")
        with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1, 4), mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(write_artifact, job, folder) for job in jobs]
            said = [future.result() for future in progress(futures, "export")]
        described = [
            _describe(job, by_path[job.run], folder, note, inputs, store) for job, note in zip(jobs, said, strict=True)
        ]
        manifest = Manifest(
            backbone=first.architecture.backbone,
            crop=CropGeometry.of(store.info.settings),
            clip=ClipRule.of(store.frames, first.architecture.per),
            artifacts=[entry for entry, _ in described],
            golden=Golden(
                pixels="golden/pixels.bin",
                shape=list(inputs[0].shape),
                sha256=sha256_of(folder / "golden" / "pixels.bin"),
                valid=inputs[1].tolist() if len(inputs) > 1 else None,
                outputs={entry.file: outputs for entry, outputs in described},
            ),
            weights=first.weights,
            data=data_source(store),
            diagnoses={
                source.run.path.name: diagnosis for source in sources if (diagnosis := diagnosis_of(source.run))
            },
            tools=first.tools,
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _one_student(runs: list[Run], store: ClipStore) -> Architecture:
    """Return the architecture that all runs share, but for fusing.

    Raises StageError if a bundle cannot hold them, or if the student cannot score the store.
    """
    for run in runs:
        check_rgb(run)
        check_clips(run, store)
        if run.info.scheme in ONLY_TORCH:
            raise StageError(
                f"{run.path} is in {run.info.scheme}, which no runtime of a phone has: bench the run itself, and "
                "export the run that it came from, or its fp16 or int8 run"
            )
    architectures = [run.info.architecture.model_copy(update={"fused": True}) for run in runs]
    if any(architecture != architectures[0] for architecture in architectures):
        raise StageError("the runs hold different students: export them into bundles of their own")
    if len({run.info.scheme for run in runs}) < len(runs):
        raise StageError("two of the runs have the same student and scheme: export them into bundles of their own")
    return architectures[0]


def export(
    run: Annotated[list[Path], typer.Argument(help="Runs of one student: its fp32, fp16 and int8 run.")],
    data: Annotated[Path, typer.Option(help="The ClipStore whose real crops or clips the gate compares on.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    format: Annotated[str, typer.Option(help="Runtimes, comma-separated.")] = ",".join(FORMATS),
) -> Bundle:
    """Write runs as artifacts for phones, each compared with its run on real crops before it is handed over.

    Example: **pocketproof export runs/student runs/student-int8 --data store --out bundle**
    """
    refuse_existing(out)
    formats = _parse_formats(format)
    store = ClipStore(data)
    inputs = golden_inputs(store, _one_student([Run(path) for path in run], store).per)
    sources = [Source.load(path, store, inputs) for path in run]
    manifest = build_bundle(sources, formats, store, inputs, out)
    for artifact in manifest.artifacts:
        checked = artifact.not_checked or (
            f"max difference {artifact.parity.max_difference:.2g}, {artifact.parity.logit_snr_db:.0f} dB"
            if artifact.parity
            else ""
        )
        say(f"{out / artifact.file}: {artifact.bytes / 1e6:.2f} MB, {checked}")
    return Bundle(out)


if __name__ == "__main__":
    run_as_script(export)
