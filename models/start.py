"""A detector before training: from random weights, from published weights, or from those of another run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models.detector import Architecture, Detector, gelus
from models.origin import DataSource, Weights
from models.pixels import Preprocessing
from models.run import Run, RunInfo
from models.weights import backbone_with_weights, check_one_source, stated_preprocessing
from stage import WrongArgument, say


@dataclass(frozen=True)
class Start:
    """A detector, the origin of its weights, and the run that it starts from, if any."""

    detector: Detector
    weights: Weights
    """Origin of the weights; for a start from a run, the origin of that run's weights."""
    preprocessing: Preprocessing
    """Normalization that the weights need: that of the run, as stated in a hub's folder, or else as stated by timm."""
    trained_steps: int = 0
    """Optimizer steps of the head that was taken from a run; 0 for a new head."""
    run: Run | None = None
    """The run that the detector starts from, if any."""

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
        name = architecture.backbone
        backbone, origin = backbone_with_weights(
            name, architecture.size, None if run else given, random or run is not None
        )
        if architecture.activation and not gelus(backbone):
            raise WrongArgument(f"--activation {architecture.activation}: {name} has no GELU to replace: leave it out")
        detector = Detector(architecture, backbone)
        if run:
            steps = run.info.trained_steps if run.start(detector) else 0
            return cls(detector, run.info.weights, run.info.preprocessing, steps, run)
        if origin.source == "random":
            say(f"{name} starts from random weights, and its run says so")
        return cls(detector, origin, stated_preprocessing(given, name))

    def info(self, kind: Literal["teacher", "student"], data: DataSource, seed: int, *parents: Run) -> RunInfo:
        """Return the ``model.json`` of the run that starts here; ``parents``: what it imitates and starts from."""
        return RunInfo(
            kind=kind,
            architecture=self.detector.architecture,
            preprocessing=self.preprocessing,
            weights=self.weights,
            trained_steps=self.trained_steps,
            parents=list(dict.fromkeys(parent.as_parent() for parent in parents)),
            data=data,
            seed=seed,
        )
