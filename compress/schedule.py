"""The training schedule of teachers and students: length, learning rate, batches, and their options."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor

from compress.compute import Precision
from data.batches import Batch, balanced_batches, label_shares, natural_batches
from data.views import Views
from stage import Per

BatchSize = Annotated[int | None, typer.Option(help="Frames or clips of a step, over all processes.", min=2, max=2**16)]


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate and batches of a training. Annotated fields are options of ``teach`` and ``distill``."""

    epochs: int = 1
    """Each epoch has as many passes over the clips as each clip has views; every pass ends with a validation."""
    batch_size: int = 16
    """Frames or clips of a step, over all processes."""
    learning_rate: float = 2e-3
    accumulate: Annotated[int, typer.Option(help="Parts in which a batch is computed, for want of memory.", min=1)] = 1
    """Gradients of the parts are summed one after another. The result is the same, except for dropout, and for batch
    norms and losses that relate samples, which see one part at a time."""
    curve: Annotated[
        Literal["cosine", "plateau"], typer.Option(help="Learning rate: falls as a cosine, or halves on a plateau.")
    ] = "cosine"
    """cosine: linear warm-up, then down to 0; plateau: halved after passes without a smaller validation loss."""
    patience: Annotated[int, typer.Option(help="Validations without a better one before training stops.", min=1)] = 10
    balance: Annotated[
        Literal["batches", "weights"],
        typer.Option(
            help="Rarer label: repeated until half of each batch is real, or heavier in the loss classification."
        ),
    ] = "batches"
    precision: Annotated[Precision, typer.Option()] = "autocast"
    ema: Annotated[
        float,
        typer.Option(help="Decay of a moving average of the weights, which is what is kept; 0: none.", min=0, max=1),
    ] = 0.0
    """With a decay above 0, the average is validated and saved in place of the weights."""
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    """Share of all steps, 0..1, in which the learning rate rises."""
    clip_norm: float = 5.0
    """Largest norm of the gradients."""

    def asked(self) -> dict[str, Any]:
        """Return all but the precision, of which ``Compute`` says what it became on this device."""
        return {name: value for name, value in asdict(self).items() if name != "precision"}

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate's factor, 0..1, at ``step`` of ``steps``.

        It rises linearly, then falls as a cosine to 0 (arXiv 1608.03983).
        """
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def batches(self, views: Views, seed: int, number: int, per: Per) -> list[Batch]:
        """Return the batches of pass ``number``, the same in every process."""
        make_batches = balanced_batches if self.balance == "batches" else natural_batches
        return list(make_batches(views, self.batch_size, (seed, number), per, number % views.rule.views))


def class_weights(balance: str, views: Views, per: Per) -> Tensor | None:
    """Return the weights of the classes in the loss, float32 [2] (real, fake), or None if they are equal."""
    return 0.5 / torch.from_numpy(label_shares(views, per)).float() if balance == "weights" else None
