"""The training loop of teachers and students: AdamW, warm-up and cosine, best on validation kept."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from compress.scoring import Scorer, score_split
from data.batches import Batch, balanced_batches
from data.store import ClipStore
from data.views import Views
from stage import progress, say

Precision = Literal["fp32", "autocast"]
SETTLING_BATCHES = 10
"""Batches over which batch norms take their final statistics after each epoch."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 5.0
    precision: Precision = "autocast"

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate's factor at a step: linear warm-up, then cosine to 0 (arXiv 1608.03983)."""
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether autocast to bfloat16 pays on this device: a GPU, or a CPU with instructions for it."""
    return device.type != "cpu" or bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


@dataclass(frozen=True)
class Compute:
    """Where and in which numbers a run trains."""

    accelerator: Accelerator
    autocast: bool
    precision: str
    """What was computed, with the reason where it is not what was asked for."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self.accelerator.device)

    def context(self) -> torch.autocast:
        """Return the context in which a forward pass runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)


def prepare_compute(precision: Precision) -> Compute:
    """Choose device and numbers. Autocast without bfloat16 instructions is slower than fp32: then fp32, and said so."""
    # Accelerator keeps one process-wide precision, which stages run one after another would fight over; the casting
    # is therefore done here.
    accelerator = Accelerator(mixed_precision="no")
    if precision == "autocast" and not has_fast_bf16(accelerator.device):
        say("this CPU has no bfloat16 instructions: training in fp32 instead of autocast")
        return Compute(accelerator, False, "fp32 (autocast asked for; no bfloat16 instructions)")
    return Compute(accelerator, precision == "autocast", precision)


def fit(
    compute: Compute,
    trained: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    scorer: Scorer,
    views: Views,
    schedule: Schedule,
    seed: int,
) -> dict[str, Any]:
    """Train the parameters of ``trained`` that require gradients, and leave it with the best epoch's weights.

    loss_of: scalar loss of a batch, computed under ``compute``'s autocast. scorer: the current detector on raw
    pixels; its clip AUC on the validation split chooses the epoch, the loss on its scores breaks ties. Returns the
    history for ``metrics.json``.
    """
    steps = schedule.epochs * sum(1 for _ in balanced_batches(views, schedule.batch_size, (seed, 0)))
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    curve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, max(1, steps)))
    history: list[dict[str, float]] = []
    best, best_state = (-1.0, 0.0), {}
    for epoch in range(schedule.epochs):
        started, losses = time.perf_counter(), []
        trained.train()
        batches = list(balanced_batches(views, schedule.batch_size, (seed, epoch)))
        for batch in progress(batches, f"epoch {epoch + 1} of {schedule.epochs}"):
            with compute.context():
                loss = loss_of(batch)
            compute.accelerator.backward(loss)
            compute.accelerator.clip_grad_norm_(parameters, schedule.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            curve.step()
            losses.append(float(loss))
        with compute.context():
            settle_batch_norms(trained, loss_of, batches[:SETTLING_BATCHES])
        seconds = time.perf_counter() - started
        trained.eval()
        auc, log_loss = _validate(scorer, views.store)
        train_loss = sum(losses) / len(losses)
        history.append({"loss": train_loss, "val_auc": auc, "val_loss": log_loss, "seconds": round(seconds, 2)})
        say(f"epoch {epoch + 1} of {schedule.epochs}: loss {train_loss:.3f}, val AUC {auc:.3f}, {seconds:.0f} s")
        if (auc, -log_loss) > best:
            best = (auc, -log_loss)
            best_state = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
    if best_state:
        trained.load_state_dict(best_state)
    trained.eval()
    how = {"precision": compute.precision, "device": str(compute.device), "views": views.summary()}
    return how | {"steps": steps, "epochs": history}


def settle_batch_norms(trained: nn.Module, forward: Callable[[Batch], Tensor], batches: list[Batch]) -> None:
    """Replace running statistics of batch norms by the plain mean over ``batches`` (PreciseBN, arXiv 2105.07576, 3).

    Running averages lag behind weights that move fast: after a short training they shift every score to one side.
    """
    norms = [m for m in trained.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    with torch.no_grad():
        for batch in batches if norms else []:
            forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _validate(scorer: Scorer, store: ClipStore) -> tuple[float, float]:
    """Return the clip AUC and the mean log loss on the validation split."""
    scores = score_split(scorer, store, "val")
    probabilities = scores.clips.clip(1e-6, 1 - 1e-6)
    log_loss = -sum(math.log(p if label else 1 - p) for p, label in zip(probabilities, scores.labels, strict=True))
    return float(roc_auc_score(scores.labels, scores.clips)), log_loss / len(probabilities)
