"""Fine-tune a teacher: a timm backbone, frozen except for its last blocks, and a head over frames or whole clips."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import typer
from torch import Tensor, nn

from command import run_as_script, takes_options
from compress import losses
from compress.caches import CacheFolder, default_cache
from compress.checkpoints import asked_of
from compress.compute import Compute, prepare_compute, samples_of_part
from compress.features import Cut, Features
from compress.provenance import crops_notes, data_source, say_notes
from compress.runs import check_length, check_measured_splits, finish_run
from compress.schedule import BatchSize, Schedule, class_weights
from compress.training import Task, fit
from data.batches import Batch
from data.store import ClipStore
from data.views import ViewRule, Views
from files import refuse_existing
from models.detector import Architecture, check_backbone
from models.freezing import freeze
from models.megatron import MegatronSettings
from models.pixels import PixelDetector
from models.run import UnfinishedRun
from models.start import Start
from stage import Modality, Seed, StageError, WrongArgument

HEAD_HIDDEN = 256
"""Width of the hidden layer in the head over single frames."""


@dataclass(frozen=True)
class Family:
    """Default settings of a kind of teacher."""

    backbone: str
    modality: str
    unfreeze: str
    head_hidden: int | None
    epochs: int
    batch_size: int
    weight_decay: float
    clip_norm: float


FAMILIES = {
    "dino": Family(
        "vit_base_patch14_dinov2", "rgb", "1", HEAD_HIDDEN, epochs=5, batch_size=16, weight_decay=0.05, clip_norm=5
    ),
    # As in the Megatron study: Adam without weight decay, gradient norm 1, 32 clips, early stopping.
    "megatron": Family("repvit_m0_9", "rgb+depth", "0", None, epochs=100, batch_size=32, weight_decay=0, clip_norm=1),
}


class TeacherObjective(nn.Module):
    """The loss of a teacher's trained part: labels, int64 [B], and inputs as ``Features`` returns them -> scalar."""

    def __init__(self, cut: Cut, weights: Tensor | None) -> None:
        super().__init__()
        self.top, self.head, self._cut = cut.top, cut.detector.head, cut
        self.register_buffer("class_weights", weights)
        self.class_weights: Tensor | None

    def forward(self, labels: Tensor, features: Tensor, *valid: Tensor) -> Tensor:
        """Return the mean loss over the batch."""
        return losses.classification(self._cut.logits(features, *valid), labels, self.class_weights)


def teacher_task(cut: Cut, views: Views, compute: Compute, balance: str, cache: Path) -> Task:
    """Return the training task of a detector's upper part; the frozen part runs once per frame, into ``cache``."""
    per = cut.detector.architecture.per
    features = Features(cut, views, compute, cache)
    val_features = Features(cut, Views(views.store, ViewRule(), "val", views.modalities), compute, cache)

    def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
        return torch.from_numpy(batch.labels).to(compute.device), *features(batch)

    objective = TeacherObjective(cut, class_weights(balance, views, per))
    return Task(objective.to(compute.device), inputs_of, val_features.score, views, per)


def modalities_of(family: str, text: str | None) -> tuple[Modality, ...]:
    """Return a teacher's modalities in the order rgb, depth, flow. Raises WrongArgument for those it cannot take."""
    default = FAMILIES[family].modality
    names = (text or default).split("+")
    if not set(names) <= set(get_args(Modality)) or len(set(names)) < len(names):
        raise WrongArgument(f"--modality {text}: give rgb, depth or flow, or several as depth+flow")
    if family == "megatron" and set(names) != {"rgb", "depth"}:
        raise WrongArgument(f"--modality {text}: megatron looks at {default}; teach dino takes any")
    return tuple(name for name in get_args(Modality) if name in names)


def _architecture(
    family: str, backbone: str | None, modality: str | None, pooling: str | None, size: int
) -> Architecture:
    defaults = FAMILIES[family]
    if pooling and family != "megatron":
        raise WrongArgument("--pooling joins the frames of a clip, which megatron does: leave it out")
    return Architecture(
        backbone=check_backbone(backbone or defaults.backbone),
        size=size,
        modalities=modalities_of(family, modality),
        head_hidden=defaults.head_hidden,
        megatron=MegatronSettings.model_validate({"pooling": pooling or "avg"}) if family == "megatron" else None,
    )


@takes_options
def teach(
    family: Annotated[
        Literal["dino", "megatron"],
        typer.Argument(help="dino: single frames, any timm backbone; megatron: clips of rgb and depth."),
    ],
    data: Annotated[Path, typer.Option(help="The ClipStore to train on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    modality: Annotated[str | None, typer.Option(help="rgb, depth, flow, or several: rgb+depth+flow.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Any timm backbone; vit_base_patch14_dinov2, for megatron repvit_m0_9.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Backbone weights: a run, .safetensors, a state dict, or a folder from the hub.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Start from random weights; said in the run and every report.")
    ] = False,
    unfreeze: Annotated[
        str | None, typer.Option(help="Last blocks that train: a number, 0 (head only) or all; 1, for megatron 0.")
    ] = None,
    pooling: Annotated[Literal["avg", "max"] | None, typer.Option(help="Megatron: how frames are joined; avg.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Times that every view of a clip is seen; 5, for megatron 100. 0 trains nothing.", min=0),
    ] = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0)] = 1e-3,
    schedule: Schedule = Schedule(),
    rule: ViewRule = ViewRule(),
    cache: CacheFolder = None,
    seed: Seed = 0,
) -> None:
    """Fine-tune a teacher. An interrupted one goes on when it is called again.

    Example: **pocketproof teach dino --data store --out runs/dino --unfreeze 1**

    On several processes: **torchrun --nproc_per_node 2 -m compress.teach dino --data store --out runs/dino**
    """
    refuse_existing(out)
    store, defaults = ClipStore(data), FAMILIES[family]
    architecture = _architecture(family, backbone, modality, pooling, store.size)
    if architecture.per == "clip" and store.frames == 1:
        raise StageError(f"{data} holds single pictures, and {family} looks at clips: prepare videos, or teach dino")
    rule = rule.seeded(seed)
    training = Views(store, rule, modalities=architecture.modalities)
    check_measured_splits(store)
    schedule = replace(
        schedule,
        epochs=defaults.epochs if epochs is None else epochs,
        batch_size=batch_size or defaults.batch_size,
        learning_rate=learning_rate,
        weight_decay=defaults.weight_decay,
        clip_norm=defaults.clip_norm,
    )
    start = Start.of(architecture, weights, random_weights, seed)
    cut = _cut(start, unfreeze or defaults.unfreeze)
    if cache and (cut.unfreeze == "all" or not schedule.epochs):
        raise WrongArgument(
            "--cache keeps what frozen layers say: leave it out where none is frozen, or nothing trains"
        )
    parents = [start.run] if start.run else []
    source = data_source(store, architecture.modalities, *parents)
    if start.run and start.trained_steps and not schedule.epochs:  # it was trained on these, and is not on others
        trained_on = start.run.info.data
        if architecture.per == "clip":
            check_length(start.run.path, trained_on.frames or store.frames, store)
        say_notes(crops_notes([str(start.run.path)], trained_on.crops, architecture.modalities, store))
        source = source.model_copy(update={"crops": trained_on.crops})
    info = start.info("teacher", source, seed, *parents)
    compute = prepare_compute(schedule.precision)
    asked = asked_of(info, training, compute) | {"schedule": schedule.asked(), "unfreeze": cut.unfreeze}
    samples_of_part(schedule.batch_size, schedule.accumulate, compute.processes)
    with UnfinishedRun(out, asked) as unfinished:
        cut.pixels_in.to(compute.device).to(memory_format=torch.channels_last)
        history: dict[str, Any] = {"steps": 0, "passes": []}
        if schedule.epochs:
            task = teacher_task(cut, training, compute, schedule.balance, cache or default_cache(data))
            history = fit(compute, task, schedule, seed, unfinished)
        finish_run(unfinished, info, cut.pixels_in, store, history)


def _cut(start: Start, unfreeze: str) -> Cut:
    """Freeze a detector except for its last blocks and its head, and return it as a frozen and a trained part."""
    frozen, top = freeze(start.detector.backbone, unfreeze)
    pixels_in = PixelDetector(start.detector, start.preprocessing)
    return Cut(start.detector, pixels_in, frozen, top, unfreeze)


if __name__ == "__main__":
    run_as_script(teach)
