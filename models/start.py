"""A detector before training: from random weights, from published weights, or from those of another run."""

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
    """A detector, the origin of its weights, and the run that it starts from, if any."""

    detector: Detector
    weights: Weights
    """Origin of the weights; for a start from a run, the origin of that run's weights."""
    parents: list[Parent]
    """The run that the detector starts from, if any."""
    preprocessing: Preprocessing
    """Normalization that the weights need: that of the run, as stated in a hub's folder, or else as stated by timm."""
    trained_steps: int = 0
    """Optimizer steps of the head that was taken from a run; 0 for a new head."""
    persons: tuple[str, ...] = ()
    """Hashed names of the persons in that run's training data."""
    crops: str | None = None
    """How the crops that it was trained on were cut, if it says so."""

    @classmethod
    def of(cls, architecture: Architecture, given: Path | None, random: bool, seed: int) -> "Start":
        """Create a detector whose backbone starts from ``given``, a run, file or folder, or else from hub weights.

        ``random``: start from random weights instead. Raises StageError if the weights are missing or do not fit, or
        if the backbone cannot take crops of this size, WrongArgument if it has no GELU to replace, or if random
        weights are asked for although others are given.
        """
        torch.manual_seed(seed)
        check_one_source(given, random)
        run = Run(given) if given is not None and (given / "model.json").exists() else None
        name, size = architecture.backbone, architecture.size
        backbone, origin = backbone_with_weights(name, size, None if run else given, random or run is not None)
        if architecture.activation and not gelus(backbone):
            raise WrongArgument(f"--activation {architecture.activation}: {name} has no GELU to replace: leave it out")
        _check_size(backbone, name, size)
        detector = Detector(architecture, backbone)
        if run:
            steps = run.info.trained_steps if run.start(detector) else 0
            data, preprocessing = run.info.data, run.info.preprocessing
            parents, persons = [run.as_parent()], tuple(data.persons)
            return cls(detector, run.info.weights, parents, preprocessing, steps, persons, data.crops)
        if origin.source == "random":
            say(f"{name} starts from random weights, and its run says so")
        return cls(detector, origin, [], stated_preprocessing(given, name))

    def info(self, kind: Literal["teacher", "student"], data: DataSource, seed: int, *taught_by: Parent) -> RunInfo:
        """Return the ``model.json`` of the run that starts here; ``taught_by``: the runs that it imitates."""
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


def _check_size(backbone: nn.Module, name: str, size: int) -> None:
    """Raise StageError if a backbone cannot take crops of ``size`` pixels, which some report only in a forward pass."""
    training = backbone.training
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise cannot_take(name, size, error) from error
    backbone.train(training)
