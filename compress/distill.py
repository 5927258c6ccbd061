"""Distill a teacher into a student: classification + KL on logits + KL between embeddings."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import nn

from compress import losses
from compress.caches import CacheFolder, CacheKey, FrameCache, default_cache, weights_fingerprint
from compress.runs import data_source, final_metrics, torch_scorer
from compress.training import Compute, Precision, Schedule, fit, prepare_compute
from data.augment import DEFAULT_POLICY
from data.batches import Batch, batch_pixels
from data.store import ClipStore
from data.views import Forge, Policy, ViewCount, ViewRule, Views
from models.detector import Architecture, Detector, PixelDetector, Preprocessing, check_backbone
from models.run import Run, RunInfo, save_run
from models.weights import backbone_with_weights
from stage import Seed, StageError, refuse_existing, run_as_script, say


def load_teacher(path: Path, store: ClipStore) -> tuple[Run, Detector]:
    """Load the run to learn from. Raises StageError if it is not one, or takes pictures of another size."""
    run = Run(path)
    if run.info.meaningless:
        raise StageError(f"{path} has nothing to teach: {run.info.meaningless}")
    if run.info.scheme != "fp32":
        raise StageError(f"{path} is quantized ({run.info.scheme}): distill from the run that it came from")
    if run.info.architecture.size != store.size:
        raise StageError(f"{path} takes {run.info.architecture.size} px crops, {store.path} holds {store.size} px")
    return run, run.detector()


def cache_teacher(
    teacher: Detector, preprocessing: Preprocessing, views: Views, compute: Compute, cache: Path
) -> FrameCache:
    """Compute the teacher once per training frame: rows are its embedding followed by its two logits."""
    device = compute.device
    pixels_in = PixelDetector(teacher, preprocessing).to(device).to(memory_format=torch.channels_last).eval()

    def outputs(pixels: NDArray[np.uint8]) -> torch.Tensor:
        pictures = pixels_in.pictures(torch.from_numpy(pixels).to(device))
        with torch.inference_mode(), compute.context():
            embedding = teacher.backbone(pictures.contiguous(memory_format=torch.channels_last))
            return torch.cat([embedding.float(), teacher.head(embedding).float()], dim=-1)

    key = CacheKey(
        of="teacher outputs",
        store=views.store.info.fingerprint,
        weights=weights_fingerprint(teacher),
        network=teacher.architecture.model_dump_json(),
        precision=compute.precision,
        rule=views.rule,
    )
    return FrameCache.fill(cache, key, views, outputs)


def train_student(
    student: Detector,
    pixels_in: PixelDetector,
    teacher: tuple[Run, Detector],
    views: Views,
    schedule: Schedule,
    seed: int,
    cache: Path,
) -> dict[str, Any]:
    """Train ``student`` in place on the cached outputs of the teacher and return its history."""
    compute = prepare_compute(schedule.precision)
    device = compute.device
    run, network = teacher
    taught = cache_teacher(network, run.info.preprocessing, views, compute, cache)
    projector = nn.Linear(network.embedding_size, student.embedding_size)
    trained = nn.ModuleDict({"student": student, "projector": projector})
    pixels_in.to(device).to(memory_format=torch.channels_last)
    projector.to(device)

    def loss_of(batch: Batch) -> torch.Tensor:
        pixels = torch.from_numpy(batch_pixels(views, batch)).to(device)
        pictures = pixels_in.pictures(pixels).contiguous(memory_format=torch.channels_last)
        outputs = taught[batch.rows].to(device)
        embedding = student.backbone(pictures)
        logits = student.head(embedding)
        return (
            losses.classification(logits, torch.from_numpy(batch.labels).to(device))
            + losses.kl_logits(logits, outputs[:, -2:])
            + losses.kl_embeddings(embedding, projector(outputs[:, :-2]))
        )

    scorer = torch_scorer(pixels_in, device, autocast=compute.autocast)
    return fit(compute, trained, loss_of, scorer, views, schedule, seed)


def distill(
    teacher: Annotated[Path, typer.Option(help="The run to learn from.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to train on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    student: Annotated[str, typer.Option(help="Any timm backbone.")] = "repvit_m0_9",
    kind: Annotated[Literal["frame"], typer.Option(help="frame: one crop -> P(fake).")] = "frame",  # noqa: ARG001
    weights: Annotated[Path | None, typer.Option(help="Starting weights (.safetensors or a state dict).")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over every training frame.", min=1)] = 20,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0)] = 2e-3,
    precision: Annotated[Precision, typer.Option(help="fp32, or autocast to bfloat16 where it pays.")] = "autocast",
    views: ViewCount = 1,
    augment: Policy = DEFAULT_POLICY,
    forge: Forge = False,
    cache: CacheFolder = None,
    seed: Seed = 0,
) -> None:
    """Distill a teacher into a student small enough for a phone.

    Without --weights the student starts from scratch; the run says so.

    Example: **pocketproof distill --teacher runs/dino --data store --out runs/student**
    """
    refuse_existing(out)
    store = ClipStore(data)
    training = Views(store, ViewRule(views=views, augment=augment, forge=forge, seed=seed))
    store.clips("val"), store.clips("test")
    check_backbone(student)
    teacher_run, teacher_network = load_teacher(teacher, store)
    torch.manual_seed(seed)
    body, source = backbone_with_weights(student, store.size, weights, random=weights is None)
    architecture = Architecture(backbone=student, size=store.size)
    network = Detector(architecture, body)
    pixels_in = PixelDetector(network, Preprocessing.of(student))
    schedule = Schedule(epochs, learning_rate=learning_rate, precision=precision)
    taught_by, kept = (teacher_run, teacher_network), cache or default_cache(data)
    history = train_student(network, pixels_in, taught_by, training, schedule, seed, kept)
    device = next(network.parameters()).device
    metrics = final_metrics(torch_scorer(pixels_in.eval(), device), store, history)
    info = RunInfo(
        kind="student",
        architecture=architecture,
        preprocessing=Preprocessing.of(student),
        weights=source,
        trained_steps=history["steps"],
        parents=[teacher_run.as_parent()],
        data=data_source(store),
        seed=seed,
    )
    save_run(out, info, network, metrics)
    say(f"{out}: test AUC {metrics['test']['auc']:.3f}, val AUC {metrics['val']['auc']:.3f} (clips)")


if __name__ == "__main__":
    run_as_script(distill)
