"""Runs to a bundle: write each artifact, gate it on real crops, set its threshold, and describe it all."""

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import nn

from compress.metrics import Threshold, choose_threshold
from compress.runs import check_rgb_frames, own_threshold, pixel_detector, torch_scorer
from compress.scoring import Scorer, score_split
from data.store import ClipStore
from export import coreml, executorch, onnx
from export.bundle import Artifact, Bundle, ClipRule, CropGeometry, Golden, Manifest, Tensor
from export.parity import Parity, compare, least_snr_db
from export.runtimes import SUFFIXES, Runtime, cannot_run, load_artifact
from models.detector import BYTE_MAX, ImageDetector, PixelDetector, fake_probability
from models.fusing import fuse
from models.run import DataSource, Run
from stage import StageError, bytes_of, progress, refuse_existing, run_as_script, say, sha256_of, written_whole

FORMATS: dict[str, Runtime] = {"executorch": "executorch", "onnx": "onnxruntime", "coreml": "coreml"}
SUFFIX_OF = {runtime: suffix for suffix, runtime in SUFFIXES.items()}
GOLDEN_CROPS = 32
MINIMUM_OS = {
    "coreml": coreml.MINIMUM_OS,
    "executorch": "as the ExecuTorch runtime that the app links; the file asks for nothing more",
    "onnxruntime": "as the ONNX Runtime that the app links (opset 20: version 1.17 or newer)",
}


@dataclass(frozen=True)
class Job:
    """One artifact to write."""

    run: Path
    scheme: str
    runtime: Runtime
    file: str


def deployable(run: Run, pictures: torch.Tensor | None, dynamic_batch: bool) -> PixelDetector:
    """Return what a run's artifacts compute: fused, raw pixels in, P(fake) out.

    Fusing is verified on ``pictures`` (float32 [N, 3, S, S], normalized) where given.
    """
    if run.info.scheme == "int8":
        return pixel_detector(run, dynamic_batch)
    detector = run.detector()
    size = run.info.architecture.size
    fused = fuse(detector, torch.zeros(1, 3, size, size) if pictures is None else pictures)
    return PixelDetector(fused, run.info.preprocessing)


@functools.cache
def _single_picture_detector(run: Path) -> PixelDetector:
    """Load a run once a worker process, whatever number of its artifacts that process writes."""
    return deployable(Run(run), None, dynamic_batch=False)


def write_artifact(job: Job, folder: Path) -> dict[str, Any]:
    """Write one artifact into ``folder`` and return what its writer says of it."""
    torch.set_num_threads(1)
    info = Run(job.run).info
    detector, size = _single_picture_detector(job.run), info.architecture.size
    if job.runtime == "coreml":
        image_detector = ImageDetector(detector.network, info.preprocessing)
        return coreml.write(image_detector, size, folder / job.file)
    writer = executorch.write if job.runtime == "executorch" else onnx.write
    return writer(detector, size, folder / job.file)


def golden_crops(store: ClipStore) -> NDArray[np.uint8]:
    """Return real crops of both labels from the validation split, uint8 [N, S, S, 3], spread over its clips."""
    clips = store.clips("val")
    chosen: list[NDArray[np.uint8]] = []
    for label in (0, 1):
        of_label = [clip for clip in clips if clip.label == label]
        share = GOLDEN_CROPS // 2
        for k in range(share):
            clip = of_label[k % len(of_label)]
            frames = np.flatnonzero(clip.valid)
            chosen.append(store.pixels(clip, [int(frames[(k // len(of_label)) % len(frames)])]))
    return np.concatenate(chosen)


def _tensors(runtime: Runtime, size: int) -> tuple[Tensor, Tensor]:
    module = {"executorch": executorch, "onnxruntime": onnx, "coreml": coreml}[runtime]
    given = "raw pixels of one crop, RGB, 0..255; normalization is inside the graph"
    planar = runtime == "coreml"
    pixels = Tensor(
        name=module.INPUT,
        dtype="image" if planar else "uint8",
        layout="RGB image" if planar else "NHWC",
        shape=[size, size] if planar else [1, size, size, 3],
        meaning=given,
    )
    return pixels, Tensor(name=module.OUTPUT, dtype="float32", layout="N", shape=[1], meaning="P(fake), 0..1")


def mistaken_scores(detector: PixelDetector, crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Return what a detector gives after the usual mistakes of an integration, float32 [N] each.

    Swapped channels, a transposed picture, a second normalization.
    """
    cpu = torch.device("cpu")
    score = torch_scorer(detector, cpu)
    swapped, transposed = np.ascontiguousarray(crops[..., ::-1]), np.ascontiguousarray(crops.transpose(0, 2, 1, 3))
    return [score(swapped), score(transposed), torch_scorer(NormalizedTwice(detector), cpu)(crops)]


class NormalizedTwice(nn.Module):
    """The commonest mistake on phones: pixels that the app has normalized already are normalized again."""

    def __init__(self, detector: PixelDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return P(fake), float32 [N], of uint8 [N, S, S, 3]."""
        again = self.detector.normalize(self.detector.pictures(pixels) * BYTE_MAX)
        return fake_probability(self.detector.network(again))


@dataclass(frozen=True)
class Source:
    """A run to export with everything its artifacts are compared with."""

    run: Run
    golden: NDArray[np.float32]
    least_snr_db: float
    """What an int8 artifact's logits must reach against ``golden``."""
    threshold: Threshold

    @classmethod
    def load(cls, path: Path, store: ClipStore, crops: NDArray[np.uint8]) -> "Source":
        """Load a run, verify its fusing on the golden crops, and score them."""
        run = Run(path)
        if run.info.architecture.size != store.size:
            raise StageError(f"{path} takes {run.info.architecture.size} px crops, {store.path} holds {store.size} px")
        normalize = PixelDetector(nn.Identity(), run.info.preprocessing)
        detector = deployable(run, normalize.pictures(torch.from_numpy(crops)), dynamic_batch=True)
        golden = torch_scorer(detector, torch.device("cpu"))(crops)
        least = least_snr_db(golden, mistaken_scores(detector, crops))
        return cls(run, golden, least, own_threshold(run))


def gate(job: Job, source: Source, folder: Path, crops: NDArray[np.uint8]) -> tuple[Parity | None, Scorer | None]:
    """Compare an artifact with its source on real crops. Raises StageError if it is beyond its scheme's tolerance.

    Gives ``(None, None)`` for a runtime that cannot run here.
    """
    if cannot_run(job.runtime):
        return None, None
    runner = load_artifact(folder / job.file, job.runtime, os.cpu_count() or 1)
    parity = compare(source.golden, runner(crops), job.scheme, source.least_snr_db)
    if not parity.passed:
        raise StageError(f"{job.file} failed the parity gate on {parity.crops} real crops: {parity.failure}")
    return parity, runner


def _describe(
    job: Job, source: Source, folder: Path, said: dict[str, Any], crops: NDArray[np.uint8], store: ClipStore
) -> tuple[Artifact, list[float]]:
    """Gate one artifact, set its threshold, and return its manifest entry and golden outputs."""
    parity, runner = gate(job, source, folder, crops)
    threshold, origin = source.threshold, f"validation scores of {source.run.path.name} in torch: it cannot run here"
    if runner is not None:
        val = score_split(runner, store, "val")
        threshold, origin = choose_threshold(val.labels, val.clips), "its own validation scores"
    pixels, probability = _tensors(job.runtime, source.run.info.architecture.size)
    path = folder / job.file
    entry = Artifact(
        file=job.file,
        sha256=sha256_of(path),
        bytes=bytes_of(path),
        runtime=job.runtime,
        scheme=source.run.info.scheme,
        minimum_os=MINIMUM_OS[job.runtime],
        licence=source.run.info.weights.licence,
        input=pixels,
        output=probability,
        threshold=threshold,
        threshold_from=origin,
        parity=parity,
        not_checked="" if parity else f"not compared: {cannot_run(job.runtime)}",
        source_run=source.run.as_parent(),
        **said,
    )
    outputs = source.golden if runner is None else runner(crops)
    return entry, [float(score) for score in outputs]


def _jobs(sources: list[Source], formats: list[Runtime]) -> Iterator[Job]:
    """Yield the artifacts to write, the slow ones first: lowering int8 to ExecuTorch takes longest."""
    for runtime in formats:
        for source in sorted(sources, key=lambda source: source.run.info.scheme, reverse=True):
            info = source.run.info
            name = f"{info.architecture.backbone}-{info.scheme}{SUFFIX_OF[runtime]}"
            yield Job(source.run.path, info.scheme, runtime, name)


def _parse_formats(text: str) -> list[Runtime]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise StageError(f"--format {','.join(unknown)!r} is unknown: give some of {','.join(FORMATS)}")
    return [runtime for name, runtime in FORMATS.items() if name in names]


def build_bundle(
    sources: list[Source], formats: list[Runtime], store: ClipStore, crops: NDArray[np.uint8], out: Path
) -> Manifest:
    """Write every artifact, gate it and describe it; ``out`` appears only if all passed."""
    jobs = list(_jobs(sources, formats))
    by_path = {source.run.path: source for source in sources}
    first = sources[0].run.info
    with written_whole(out) as folder:
        (folder / "golden").mkdir(parents=True)
        crops.tofile(folder / "golden" / "pixels.bin")
        with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1, 4), mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(write_artifact, job, folder) for job in jobs]
            said = [future.result() for future in progress(futures, "export")]
        described = [
            _describe(job, by_path[job.run], folder, note, crops, store) for job, note in zip(jobs, said, strict=True)
        ]
        manifest = Manifest(
            backbone=first.architecture.backbone,
            crop=CropGeometry.of(store.info.settings),
            clip=ClipRule(frames=store.frames),
            artifacts=[entry for entry, _ in described],
            golden=Golden(
                pixels="golden/pixels.bin",
                shape=list(crops.shape),
                sha256=sha256_of(folder / "golden" / "pixels.bin"),
                outputs={entry.file: outputs for entry, outputs in described},
            ),
            weights=first.weights,
            data=DataSource(fingerprint=store.info.fingerprint, notes=store.info.notes),
            tools=first.tools,
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def export(
    run: Annotated[list[Path], typer.Argument(help="Runs of one student: its fp32 and its int8 run.")],
    data: Annotated[Path, typer.Option(help="The ClipStore whose real crops the gate compares on.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    format: Annotated[str, typer.Option(help="Runtimes, comma-separated.")] = ",".join(FORMATS),
) -> Bundle:
    """Write runs as artifacts for phones, each compared with its run on real crops before it is handed over.

    Example: **pocketproof export runs/student runs/student-int8 --data store --out bundle**
    """
    refuse_existing(out)
    formats = _parse_formats(format)
    store = ClipStore(data)
    crops = golden_crops(store)
    runs = [Run(path) for path in run]
    for opened in runs:
        check_rgb_frames(opened)
    infos = [opened.info for opened in runs]
    if len({(info.architecture.backbone, info.scheme) for info in infos}) < len(infos):
        raise StageError("two of the runs have the same backbone and scheme: export them into bundles of their own")
    if len({info.architecture.backbone for info in infos}) > 1:
        raise StageError("the runs have different backbones: export them into bundles of their own")
    sources = [Source.load(path, store, crops) for path in run]
    manifest = build_bundle(sources, formats, store, crops, out)
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
