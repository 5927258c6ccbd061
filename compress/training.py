"""The training loop of teachers and students: AdamW, keeps the best pass, resumable, in one or several processes."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.auc import auc
from compress.averaging import MovingAverage
from compress.batch_norms import settle_batch_norms
from compress.checkpoints import (
    Position,
    load_checkpoint,
    load_trained,
    random_state,
    restore_random,
    save_checkpoint,
    trained_state,
)
from compress.compute import Compute, training_speed
from compress.reading import read_ahead
from compress.schedule import Schedule
from compress.scoring import ClipScorer, NotANumber, collect
from data.batches import Batch
from data.views import Views
from models.run import UnfinishedRun
from stage import Per, StageError, out_of_memory, progress, say, speaks

SETTLING_BATCHES = 10
"""Number of batches from which the final statistics of batch norms are computed after each pass."""
CHECKPOINT_SECONDS = 300.0
"""Interval of checkpoints within a pass; another one is written after each pass."""
PLATEAU_EPOCHS, PLATEAU_FACTOR = 2, 0.5


@dataclass(frozen=True)
class Task:
    """A network to train, with its inputs and its validation."""

    objective: nn.Module
    """From inputs to a scalar loss, the mean over their samples; holds all trained parameters."""
    inputs_of: Callable[[Batch], tuple[Tensor, ...]]
    """From a batch to the objective's inputs; draws no random numbers of torch."""
    score: ClipScorer
    """Called in eval mode under autocast. The pass with the best validation AUC is kept; the log loss breaks ties."""
    views: Views
    per: Per = "frame"
    keep_last: bool = False
    """Keep the last pass instead, for a training that does not aim at validation AUC."""


def fit(compute: Compute, task: Task, schedule: Schedule, seed: int, unfinished: UnfinishedRun) -> dict[str, Any]:
    """Train the parameters of the objective that require gradients, and load the weights of the best pass into it.

    Resumes an interrupted training of ``unfinished``. With several processes, each takes its share of every batch
    (``samples_of_part``). Returns the history for ``metrics.json``. Raises StageError if the loss is not a number, a
    batch does not fit into memory, or a checkpoint cannot be resumed here.
    """
    training = _Training(compute, task, schedule, seed, unfinished)
    position = training.position
    say(f"training in {compute.processes} process{'es' * (compute.processes > 1)} on {compute.device.type}")
    with contextlib.closing(training.log):
        while position.passes < training.passes and position.stale < schedule.patience:
            training.run_pass()
    if position.best_weights:
        load_trained(task.objective, position.best_weights)
    task.objective.eval()
    settings = {"precision": compute.precision, "device": str(compute.device), "processes": compute.processes}
    settings |= schedule.asked() | {"views": task.views.summary(), "speed": position.speed}
    stopped = {"stopped": f"no better pass in {schedule.patience}"} if position.passes < training.passes else {}
    return settings | stopped | {"steps": position.steps, "passes": position.history}


class _Training:
    """The state of one training between its steps."""

    def __init__(self, compute: Compute, task: Task, schedule: Schedule, seed: int, unfinished: UnfinishedRun) -> None:
        self.compute, self.task, self.schedule, self.seed, self.unfinished = compute, task, schedule, seed, unfinished
        self.module = compute.accelerator.prepare(task.objective)
        self.parameters = [p for p in task.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
        )
        self.passes = schedule.epochs * task.views.rule.views
        self.position = Position(
            unreadable=sorted(task.views.unreadable), planned_steps=self.passes * len(self._batches(0))
        )
        self.curve = self._curve()
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16)
        self.average = MovingAverage(self.parameters, schedule.ema)
        self.found_unreadable: list[int] = []
        """Views that could not be read in the interrupted pass, before the interruption."""
        self._restore()
        self.log = _Log(unfinished, self.position.steps)

    def _curve(self) -> Any:
        if self.schedule.curve == "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_EPOCHS
            )
        return torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: self.schedule.factor(step, self.position.planned_steps)
        )

    def _batches(self, number: int) -> list[Batch]:
        return self.schedule.batches(self.task.views, self.seed, number, self.task.per)

    def run_pass(self) -> None:
        """Train for a pass or the rest of one, settle batch norms, validate, and keep the weights if they are best."""
        position = self.position
        batches = self._batches(position.passes)
        self.task.views.unreadable.update(self.found_unreadable)
        if not position.speed:
            position.speed = training_speed(self.compute, self.task.objective, self._inputs(batches[0], 0))
        self._train(batches)
        with self.average.in_place():
            with self.compute.context():
                settling = (self._inputs(batch, 0) for batch in batches[:SETTLING_BATCHES])
                settle_batch_norms(self.task.objective, settling, self.compute.mean)
            self._record(*self._validate())
        self._save()

    def _train(self, batches: list[Batch]) -> None:
        position, name = self.position, f"pass {self.position.passes + 1} of {self.passes}"
        if position.history:
            name += " (loss {loss:.3f}, val AUC {val_auc:.3f})".format(**position.history[-1])
        self.task.objective.train()
        started = saved = time.perf_counter()
        seconds_before, remaining = position.seconds, batches[position.batch :]
        parts = [(batch, number) for batch in remaining for number in range(self.schedule.accumulate)]
        inputs = read_ahead(lambda part: self._inputs(*part), parts, self.compute.readers)
        for batch in progress(remaining, name):
            loss = self._step(batch, inputs)
            now = time.perf_counter()
            # Both are means over the processes, so that all processes save at the same step.
            loss, since_saved = self.compute.mean(torch.tensor([loss, now - saved])).tolist()
            if not math.isfinite(loss):
                raise self._diverged("the loss is not a number")
            position.losses.append(loss)
            position.batch += 1
            position.steps += 1
            position.seconds = seconds_before + now - started
            self.log.scalars(position.steps, loss=loss, learning_rate=self.optimizer.param_groups[0]["lr"])
            if since_saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()

    def _inputs(self, batch: Batch, part: int) -> tuple[Tensor, ...]:
        """Return the objective's inputs for this process's share of a part of a batch."""
        share = batch.part(part, self.schedule.accumulate).part(self.compute.rank, self.compute.processes)
        return self.task.inputs_of(share)

    def _step(self, batch: Batch, inputs_of_parts: Iterator[tuple[Tensor, ...]]) -> float:
        """Take one step of the optimizer and return the loss over this process's share of the batch.

        Raises StageError if the batch does not fit into memory.
        """
        accelerator, parts, total = self.compute.accelerator, self.schedule.accumulate, 0.0
        try:
            for part in range(parts):
                inputs = next(inputs_of_parts)
                with accelerator.no_sync(self.module) if part + 1 < parts else contextlib.nullcontext():
                    with self.compute.context():
                        loss = self.module(*inputs) / parts
                    self.scaler.scale(loss).backward()
                total += float(loss.detach())
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise StageError(
                f"{len(batch.rows)} samples at once do not fit the memory of {self.compute.device}: train with a "
                f"smaller --batch-size, or --accumulate {2 * parts} (int8-qat goes on with those of its run)"
            ) from error
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.schedule.curve == "cosine":
            self.curve.step()
        self.average.move(self.position.steps)
        return total

    def _diverged(self, what: str) -> StageError:
        steps = self.position.steps
        remedy = "a smaller --learning-rate" if steps else "other --weights to start from"
        return StageError(f"{what} after {steps} steps: give {remedy}, or --precision fp32")

    def _validate(self) -> tuple[float, float]:
        """Return the clip AUC and the mean log loss on the validation split; each process scores its share."""
        store = self.task.views.store
        clips = store.clips("val")
        self.task.objective.eval()
        share = clips[self.compute.rank :: self.compute.processes]
        try:
            with torch.inference_mode(), self.compute.context():
                share_scores = collect(self.task.score, share, store.frames, "validate", self.task.per).clips
        except NotANumber as error:  # no loss was computed after the pass's last step
            raise self._diverged("a validation score is not a number") from error
        scores = np.empty(len(clips))
        for rank, rank_scores in enumerate(self.compute.gathered(share_scores)):
            scores[rank :: self.compute.processes] = rank_scores
        labels = np.array([clip.label for clip in clips])
        likelihood = np.where(labels == 1, scores, 1 - scores).clip(1e-6)
        return auc(labels, scores), float(-np.log(likelihood).mean())

    def _record(self, val_auc: float, log_loss: float) -> None:
        """Record the results of a pass, keep its weights if they are the best, and prepare for the next pass."""
        position = self.position
        loss = sum(position.losses) / len(position.losses)
        position.history.append(
            {"loss": loss, "val_auc": val_auc, "val_loss": log_loss, "seconds": round(position.seconds, 2)}
        )
        self.log.scalars(position.steps, val_auc=val_auc, val_loss=log_loss)
        position.passes += 1
        pass_name = f"pass {position.passes} of {self.passes}"
        say(f"{pass_name}: loss {loss:.3f}, val AUC {val_auc:.3f}, {position.seconds:.0f} s")
        position.batch, position.losses, position.seconds = 0, [], 0.0
        position.stale += 1
        if (val_auc, -log_loss) > position.best or self.task.keep_last:
            position.best, position.stale = (val_auc, -log_loss), 0
            position.best_weights = trained_state(self.task.objective)
        if self.schedule.curve == "plateau":
            self.curve.step(log_loss)
        self.task.views.unreadable.update(*self.compute.gathered(self.task.views.unreadable))
        position.unreadable = sorted(self.task.views.unreadable)

    def _save(self) -> None:
        random = self.compute.gathered(random_state(self.compute.device))
        unreadable = self.compute.gathered(sorted(self.task.views.unreadable.copy()))
        if speaks():
            states = {
                "weights": trained_state(self.task.objective),
                "optimizer": self.optimizer.state_dict(),
                "curve": self.curve.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random,
                "unreadable": unreadable,
                "average": self.average.values,
            }
            save_checkpoint(self.unfinished.checkpoint, self.position, states)

    def _restore(self) -> None:
        """Load the checkpoint; without one, seed the random numbers. Raises StageError if a process does not see it."""
        visible = self.compute.gathered(self.unfinished.checkpoint.exists())
        if not any(visible):
            torch.manual_seed(self.seed + self.compute.rank)
            return
        if not all(visible):
            raise StageError(f"{self.unfinished.folder} is not seen by every process: give --out on a shared disk")
        self.position, states = load_checkpoint(self.unfinished.checkpoint)
        load_trained(self.task.objective, states["weights"])
        self.average.restore(states["average"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.curve.load_state_dict(states["curve"])
        self.scaler.load_state_dict(states["scaler"])
        restore_random(states["random"][self.compute.rank], self.compute.device)
        self.task.views.unreadable.update(self.position.unreadable)
        self.found_unreadable = states["unreadable"][self.compute.rank]
        say(f"going on after pass {self.position.passes} and {self.position.batch} batches of the next")


class _Log:
    """Writes the scalars of one training for TensorBoard, in the first process only."""

    def __init__(self, unfinished: UnfinishedRun, steps: int) -> None:
        self._writer: Any = None
        if speaks():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(unfinished.log), purge_step=steps + 1)

    def scalars(self, step: int, **values: float) -> None:
        """Write values by name at a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending, and end the thread that writes it: it would complain once the folder is gone."""
        if self._writer is not None:
            self._writer.close()
