"""A detector before its first step: from scratch, from published weights, or from what another run has learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from models.detector import Architecture, Detector, Preprocessing, cannot_take, gelus
from models.origin import DataSource, Parent, Weights
from models.run import Run, RunInfo
from models.weights import backbone_with_weights, check_one_source, stated_preprocessing
from stage import WrongArgument, say


@dataclass(frozen=True)
class Start:
    """A detector, where its weights came from, and the run that it goes on from, if any."""

    detector: Detector
    weights: Weights
    """Of a run that is gone on from: where that one's came from."""
    parents: list[Parent]
    preprocessing: Preprocessing
    """What the weights were trained on: of a run its own, of a hub's folder what that states, else what timm states."""
    trained_steps: int = 0
    """Of the head of a run that is gone on from."""
    persons: tuple[str, ...] = ()
    """Whom that run has seen."""

    @classmethod
    def of(cls, architecture: Architecture, given: Path | None, random: bool, seed: int) -> "Start":
        """Create a detector whose backbone starts from ``given``, a run, file or folder; else the hub's or ``random``.

        Raises StageError if the weights are missing or do not fit, or if there is no GELU to replace.
        """
        torch.manual_seed(seed)
        check_one_source(given, random)
        run = Run(given) if given is not None and (given / "model.json").exists() else None
        name, size = architecture.backbone, architecture.size
        body, source = backbone_with_weights(name, size, None if run else given, random or run is not None)
        if architecture.activation and not gelus(body):
            raise WrongArgument(f"--activation {architecture.activation}: {name} has no GELU to replace: leave it out")
        _check_takes(body, name, size)
        detector = Detector(architecture, body)
        if run:
            steps = run.info.trained_steps if run.start(detector) else 0
            seen = tuple(run.info.data.persons)
            return cls(detector, run.info.weights, [run.as_parent()], run.info.preprocessing, steps, seen)
        if source.source == "random":
            say(f"{name} starts from random weights, and its run says so")
        return cls(detector, source, [], stated_preprocessing(given, name))

    def info(self, kind: Literal["teacher", "student"], data: DataSource, seed: int, *taught_by: Parent) -> RunInfo:
        """Return what the run says of itself that starts here; ``taught_by``: the runs that it imitates."""
        return RunInfo(
            kind=kind,
            architecture=self.detector.architecture,
            preprocessing=self.preprocessing,
            weights=self.weights,
            trained_steps=self.trained_steps,
            parents=list(dict.fromkeys([*taught_by, *self.parents])),
            data=data.model_copy(update={"persons": sorted({*data.persons, *self.persons})}),
            seed=seed,
        )


def _check_takes(backbone: nn.Module, name: str, size: int) -> None:
    """Raise StageError if a backbone cannot take crops of a size, of which some tell only when they see one."""
    training = backbone.training
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise cannot_take(name, size, error) from error
    backbone.train(training)
