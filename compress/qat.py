"""Quantization-aware training: trains the fused student with weights and activations rounded as in the int8 program.

Within its range, a rounding passes gradients unchanged (straight-through estimator, arXiv 1712.05877, section 3).
Ranges of activations stay as calibrated; those of weights follow the weights. The trained program ships as it is:
ranges are not found again, because the weights were not trained to be used unrounded.
"""

import copy
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from compress.calibration import Calibrated
from compress.compute import Compute, prepare_compute
from compress.distill import student_task
from compress.folding import norms_behind_layers, pass_through
from compress.graph import layers_of
from compress.int8 import QuantizedTensor, graph_of, observers_of, set_numbers, simulated
from compress.objective import StudentObjective
from compress.schedule import Schedule
from compress.teacher_outputs import TeacherOutputs
from compress.training import fit
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import Detector
from models.outputs import example_outputs
from models.pixels import PixelDetector
from models.run import Run, UnfinishedRun
from parsing import parse_json
from stage import StageError, WrongArgument

OF_ITSELF = {"margin": 1.0}
"""Loss weights of a run that is its own teacher: the aim is to keep its logits."""
OF_TEACHER = {"classification": 1.0, "kl": 1.0}
"""Loss weights with another run as the teacher."""
LEARNING_RATE = 2e-5
"""A hundredth of the students' default: the weights are already good, apart from the rounding. With 1e-4 the network
moves far away without becoming better (docs/lab-notes.md)."""
SMALLEST_SCALE = 2.0**-12
"""Smallest scale of weights in XNNPACK's quantizer; smaller ones bring logits no nearer (docs/lab-notes.md)."""
MOST_WEIGHT = 127
"""Largest absolute int8 value of a weight."""


def weight_scales(weight: Tensor) -> Tensor:
    """Return the scale of each output channel of weights, float32 [C, ...] -> [C], as in XNNPACK's quantizer."""
    return (weight.detach().flatten(1).abs().amax(1) / MOST_WEIGHT).clamp(min=SMALLEST_SCALE)


class WeightRounding(nn.Module):
    """Rounds weights, float32 [C, ...], with scales from the current range of each output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights, float32 [C, ...]; the gradient is 1."""
        scale = weight_scales(weight)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -MOST_WEIGHT, MOST_WEIGHT)


def trainable(calibrated: Calibrated) -> Detector:
    """Return the simulated int8 program, in float32 and with a copy of the weights, ready to train."""
    program = simulated(copy.deepcopy(calibrated.detector), calibrated.tensors)
    graph = graph_of(program)
    graph.requires_grad_(True)  # includes the biases that folded batch norms have added
    for name, _, rounding in list(observers_of(graph)):
        if rounding.qscheme == torch.per_channel_symmetric:
            setattr(graph, name, WeightRounding())
    return program


def as_trained(calibrated: Calibrated, trained: Detector) -> Calibrated:
    """Return the calibration of a ``trained`` detector: the old scales of activations, new scales of its weights."""
    program = simulated(trained, calibrated.tensors)
    graph, tensors = graph_of(program), dict(calibrated.tensors)
    for _, node, rounding in observers_of(graph):
        if rounding.qscheme == torch.per_channel_symmetric:
            scales = weight_scales(attrgetter(str(node.target))(graph)).tolist()
            tensors[node.name] = QuantizedTensor(scale=scales, zero_point=[0] * len(scales))
    set_numbers(graph, tensors)
    return replace(calibrated, detector=trained, tensors=tensors, program=program)


@torch.no_grad()
def with_weights_of(detector: Detector, program: Detector) -> Detector:
    """Return a copy of a fused detector with the weights of ``program``, which was simulated from it and trained.

    The program has batch norms folded into the layers before them. In the copy they stay, and are set to pass values
    unchanged except for adding the layer's bias.
    """
    trained, graph = copy.deepcopy(detector), graph_of(program)
    trained.head.load_state_dict(program.head.state_dict())
    norms = norms_behind_layers(detector)
    parameters = dict(trained.backbone.named_parameters())
    for name, parameter in graph.named_parameters():
        if name in parameters:
            parameters[name].copy_(parameter)
    for node, layer in layers_of(graph).items():
        bias = node.args[2] if len(node.args) > 2 else None
        if layer not in norms:
            continue
        assert isinstance(bias, Node)
        if f"{layer}.bias" in parameters:
            parameters[f"{layer}.bias"].zero_()
        pass_through(trained.backbone.get_submodule(norms[layer]), attrgetter(str(bias.target))(graph))
    return trained


def compute_of_rounding() -> Compute:
    """Choose a device; not Apple's GPUs, which have no kernels for rounding with gradients."""
    return prepare_compute("fp32", on_cpu=torch.backends.mps.is_available())


@dataclass(frozen=True)
class QatSettings:
    """Runs, data, losses and length of a quantization-aware training."""

    run: Run
    """The run to quantize."""
    teacher: Run
    """The run to imitate; ``run`` itself if there is no other."""
    store: ClipStore
    rule: ViewRule
    """Views as in the training of ``run``: per clip one view for each pass, or a single one."""
    passes: int
    batch_size: int
    accumulate: int
    losses: dict[str, float]
    """Weights by name of loss."""
    seed: int

    @property
    def of_itself(self) -> bool:
        """Whether the run is its own teacher."""
        return self.teacher is self.run

    def views_for(self, run: Run) -> Views:
        """Return the views that the training draws, as pictures of the modalities that a run looks at."""
        return Views(self.store, self.rule, modalities=run.info.architecture.modalities)

    @classmethod
    def of(cls, run: Run, teacher: Run | None, store: ClipStore, passes: int, seed: int) -> "QatSettings":
        """Return settings that continue a run's training with its own views, batch size and accumulation.

        The run is its own teacher if ``teacher`` is None. Raises StageError if the run does not record how it was
        trained, or if the teacher cannot look at such views.
        """
        try:
            history: dict[str, Any] = parse_json(run.read("metrics.json"))["training"]
            views = {name: history["views"][name] for name in ViewRule.model_fields}
            rule = ViewRule.model_validate(views | {"views": passes if views["views"] > 1 else 1})
            losses = OF_TEACHER if teacher else OF_ITSELF
            accumulate = int(history.get("accumulate", 1))  # not recorded in older runs
            batch_size = int(history["batch_size"])
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(
                f"{run.path} does not say on what it was trained: int8-qat cannot go on with it"
            ) from error
        settings = cls(run, teacher or run, store, rule, passes, batch_size, accumulate, losses, seed)
        try:
            settings.views_for(settings.teacher)
        except WrongArgument as error:
            raise StageError(
                f"{settings.teacher.path} cannot look at the views that {run.path} was trained on, which are forged or "
                "augmented for rgb alone: give another --teacher"
            ) from error
        return settings


def train_rounded(
    calibrated: Calibrated, settings: QatSettings, unfinished: UnfinishedRun, compute: Compute
) -> tuple[Calibrated, dict[str, Any]]:
    """Train a fused detector with rounded weights and activations; return it, with its new scales, and the history.

    If the run is its own teacher, the last pass is kept: the aim is to keep its logits, and validation AUC says little
    about them.
    """
    run, teacher = settings.run, settings.teacher
    views, teacher_views = settings.views_for(run), settings.views_for(teacher)
    epochs = settings.passes // settings.rule.views
    schedule = Schedule(
        epochs, settings.batch_size, LEARNING_RATE, settings.accumulate, patience=settings.passes, precision="fp32"
    )
    program = trainable(calibrated)
    example = example_outputs(program, settings.store.frames, with_maps=False)
    teacher_outputs = TeacherOutputs(teacher, views, teacher_views, example, compute, cache=None)
    objective = StudentObjective(program, settings.losses, None, teacher_outputs.layout, example)
    task = student_task(PixelDetector(program, run.info.preprocessing), objective, teacher_outputs, views, compute)
    task = replace(task, keep_last=settings.of_itself)
    history = fit(compute, task, schedule, settings.seed, unfinished)
    trained = with_weights_of(calibrated.detector, program.cpu())
    return as_trained(calibrated, trained), history | {"loss": settings.losses}
