"""Fine-tune a teacher: a timm backbone, frozen but for its last blocks, and a head."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import nn

from compress import losses
from compress.caches import CacheFolder, CacheKey, FrameCache, default_cache, weights_fingerprint
from compress.runs import data_source, final_metrics, torch_scorer
from compress.training import Precision, Schedule, fit, prepare_compute
from data.augment import DEFAULT_POLICY
from data.batches import Batch, batch_pixels
from data.store import ClipStore
from data.views import Forge, Policy, ViewCount, ViewRule, Views
from models.detector import Architecture, Detector, PixelDetector, Preprocessing, check_backbone
from models.freezing import freeze
from models.run import RunInfo, save_run
from models.weights import backbone_with_weights
from stage import Seed, refuse_existing, run_as_script, say

HEAD_HIDDEN = 256


def train_teacher(
    detector: Detector,
    pixels_in: PixelDetector,
    views: Views,
    unfreeze: str,
    schedule: Schedule,
    seed: int,
    cache: Path,
) -> dict[str, Any]:
    """Train ``detector`` in place and return its metrics. What is frozen is computed once per frame, into ``cache``."""
    compute = prepare_compute(schedule.precision)
    device = compute.device
    pixels_in.to(device).to(memory_format=torch.channels_last)
    frozen, top = freeze(detector.backbone, unfreeze)
    trained = nn.ModuleDict({"top": top, "head": detector.head})
    cached = not isinstance(frozen, nn.Identity)
    if cached and schedule.epochs:
        with torch.inference_mode():
            key = CacheKey(
                of="frozen features",
                store=views.store.info.fingerprint,
                weights=weights_fingerprint(frozen),
                network=f"{detector.architecture.backbone}, --unfreeze {unfreeze}",
                precision="fp32",
                rule=views.rule,
            )
            frozen.eval()
            features = FrameCache.fill(
                cache, key, views, lambda pixels: frozen(pixels_in.pictures(torch.from_numpy(pixels).to(device)))
            )

    def loss_of(batch: Batch) -> torch.Tensor:
        if cached:
            inputs = features[batch.rows].to(device)
        else:
            inputs = pixels_in.pictures(torch.from_numpy(batch_pixels(views, batch)).to(device))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits = trained["head"](trained["top"](inputs))
        return losses.classification(logits, torch.from_numpy(batch.labels).to(device))

    scorer = torch_scorer(pixels_in, device, autocast=compute.autocast)
    return fit(compute, trained, loss_of, scorer, views, schedule, seed)


def teach(
    family: Annotated[Literal["dino"], typer.Argument(help="dino: one picture, any timm backbone.")],  # noqa: ARG001
    data: Annotated[Path, typer.Option(help="The ClipStore to train on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    backbone: Annotated[str, typer.Option(help="Any timm backbone.")] = "vit_base_patch14_dinov2",
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (.safetensors or a state dict).")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Start from random weights; said in the run and every report.")
    ] = False,
    unfreeze: Annotated[str, typer.Option(help="Last blocks that train: a number, 0 (head only) or all.")] = "1",
    epochs: Annotated[int, typer.Option(help="Passes over every training frame; 0 trains nothing.", min=0)] = 5,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0)] = 1e-3,
    precision: Annotated[Precision, typer.Option(help="fp32, or autocast to bfloat16 where it pays.")] = "autocast",
    views: ViewCount = 1,
    augment: Policy = DEFAULT_POLICY,
    forge: Forge = False,
    cache: CacheFolder = None,
    seed: Seed = 0,
) -> None:
    """Fine-tune a teacher.

    Example: **pocketproof teach dino --data store --out runs/dino --unfreeze 1**
    """
    refuse_existing(out)
    store = ClipStore(data)
    training = Views(store, ViewRule(views=views, augment=augment, forge=forge, seed=seed))
    store.clips("val"), store.clips("test")
    check_backbone(backbone)
    torch.manual_seed(seed)
    body, source = backbone_with_weights(backbone, store.size, weights, random_weights)
    if source.source == "random":
        say(f"{backbone} starts from random weights, as asked for: its run and every report say so")
    architecture = Architecture(backbone=backbone, size=store.size, head_hidden=HEAD_HIDDEN)
    detector = Detector(architecture, body)
    preprocessing = Preprocessing.of(backbone)
    pixels_in = PixelDetector(detector, preprocessing)
    schedule = Schedule(epochs, learning_rate=learning_rate, precision=precision)
    history = train_teacher(detector, pixels_in, training, unfreeze, schedule, seed, cache or default_cache(data))
    info = RunInfo(
        kind="teacher",
        architecture=architecture,
        preprocessing=preprocessing,
        weights=source,
        trained_steps=history["steps"],
        data=data_source(store),
        seed=seed,
    )
    if info.meaningless:
        metrics: dict[str, Any] = {"training": history, "val": None, "test": None, "reason": info.meaningless}
    else:
        device = next(detector.parameters()).device
        metrics = final_metrics(torch_scorer(pixels_in.eval(), device), store, history)
        say(f"{out}: test AUC {metrics['test']['auc']:.3f}, val AUC {metrics['val']['auc']:.3f} (clips)")
    save_run(out, info, detector, metrics)


if __name__ == "__main__":
    run_as_script(teach)
