"""Quantization-aware training: the fused student learns with its weights and activations rounded as int8 will round.

Gradients pass each rounding as if it were not there, within its range (straight-through estimator, arXiv 1712.05877,
section 3). Ranges of activations stay as they were calibrated; those of weights follow the weights. What was trained so
is what is shipped: neither ranges nor logits are fitted anew to weights that were not trained to be used unrounded.
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
from compress.equalization import BATCH_NORM
from compress.int8 import QuantizedTensor, graph_of, layers_of, observers_of, set_numbers, simulated, traced
from compress.objective import StudentObjective
from compress.schedule import Schedule
from compress.teacher_outputs import TeacherOutputs
from compress.training import fit
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import Detector, PixelDetector
from models.outputs import example_outputs
from models.run import Run, UnfinishedRun
from parsing import parse_json
from stage import StageError

OF_ITSELF = {"margin": 1.0}
"""Losses where the run that is quantized teaches itself: its own logits are what is to be kept."""
OF_TEACHER = {"classification": 1.0, "kl": 1.0}
LEARNING_RATE = 2e-5
"""A hundredth of what students start with: the weights are where they should be, but for the rounding. With 1e-4 the
network goes somewhere else, no better (docs/lab-notes.md)."""
SMALLEST_SCALE = 2.0**-12
"""Of a weight, in XNNPACK's quantizer."""
MOST_WEIGHT = 127


def weight_scales(weight: Tensor) -> Tensor:
    """Return the scale of each output channel of weights, float32 [C, ...] -> [C], as XNNPACK's quantizer has it."""
    return (weight.detach().flatten(1).abs().amax(1) / MOST_WEIGHT).clamp(min=SMALLEST_SCALE)


class WeightRounding(nn.Module):
    """Rounds weights, float32 [C, ...], by the range that each output channel has now."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights; the gradient is 1."""
        scale = weight_scales(weight)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -MOST_WEIGHT, MOST_WEIGHT)


def trainable(calibrated: Calibrated) -> Detector:
    """Return the int8 program computed in float32, with a copy of the weights, ready to train."""
    program = simulated(copy.deepcopy(calibrated.detector), calibrated.tensors)
    graph = graph_of(program)
    graph.requires_grad_(True)  # also of biases that folding a batch norm has made
    for name, _, rounding in list(observers_of(graph)):
        if rounding.qscheme == torch.per_channel_symmetric:
            setattr(graph, name, WeightRounding())
    return program


def as_trained(calibrated: Calibrated, trained: Detector) -> Calibrated:
    """Return what rounds as it did in training: activations by the ranges that they had, weights by their own."""
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
    """Return a copy of a fused detector that computes in float32 what ``program``, made of it and trained, rounds.

    A batch norm behind a layer was folded into it: it stays where it is, and passes everything.
    """
    trained, graph = copy.deepcopy(detector), graph_of(program)
    trained.head.load_state_dict(program.head.state_dict())
    norms = {
        layer: trained.backbone.get_submodule(str(user.args[1].target).removesuffix(".weight"))
        for node, layer in layers_of(traced(detector)).items()
        for user in node.users
        if user.target == BATCH_NORM and isinstance(user.args[1], Node)
    }
    own = dict(trained.backbone.named_parameters())
    for name, parameter in graph.named_parameters():
        if name in own:
            own[name].copy_(parameter)
    for node, layer in layers_of(graph).items():
        norm, bias = norms.get(layer), node.args[2] if len(node.args) > 2 else None
        if norm is None:
            continue
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        assert isinstance(bias, Node)
        if f"{layer}.bias" in own:
            own[f"{layer}.bias"].zero_()
        norm.running_mean.zero_()
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(attrgetter(str(bias.target))(graph))
    return trained


def _compute() -> Compute:
    """Choose a device: Apple's GPUs have no kernels that round to integers and pass gradients."""
    return prepare_compute("fp32", on_cpu=torch.backends.mps.is_available())


@dataclass(frozen=True)
class QatSettings:
    """What is learned from whom, and how long."""

    run: Run
    """What is quantized."""
    teacher: Run
    store: ClipStore
    rule: ViewRule
    """Views as ``run`` was trained on: of each clip one for each pass, or one alone."""
    passes: int
    batch_size: int
    accumulate: int
    losses: dict[str, float]
    seed: int

    @property
    def of_itself(self) -> bool:
        """Whether the run teaches itself."""
        return self.teacher is self.run

    @classmethod
    def of(cls, run: Run, teacher: Run | None, store: ClipStore, passes: int, seed: int) -> "QatSettings":
        """Go on with what a run was trained on, taught by itself if nobody else. Raises StageError if it cannot."""
        if _compute().processes > 1:
            raise StageError("int8-qat trains in one process: start it without torchrun")
        try:
            history: dict[str, Any] = parse_json(run.read("metrics.json"))["training"]
            views = {name: history["views"][name] for name in ViewRule.model_fields}
            rule = ViewRule.model_validate(views | {"views": passes if views["views"] > 1 else 1})
            losses = OF_TEACHER if teacher else OF_ITSELF
            accumulate = int(history.get("accumulate", 1))  # older runs do not say
            return cls(run, teacher or run, store, rule, passes, int(history["batch_size"]), accumulate, losses, seed)
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(
                f"{run.path} does not say on what it was trained: int8-qat cannot go on with it"
            ) from error


def train_rounded(
    calibrated: Calibrated, lesson: QatSettings, unfinished: UnfinishedRun
) -> tuple[Calibrated, dict[str, Any]]:
    """Train a fused detector with its values rounded. Returns it as it was trained, and the history.

    Of a run that teaches itself the last pass is kept: its logits are aimed at, of which validation AUC says little.
    """
    compute = _compute()
    run, teacher, store, rule = lesson.run, lesson.teacher, lesson.store, lesson.rule
    views = Views(store, rule, modalities=run.info.architecture.modalities)
    seen = Views(store, rule, modalities=teacher.info.architecture.modalities)
    epochs = lesson.passes // rule.views
    schedule = Schedule(
        epochs, lesson.batch_size, LEARNING_RATE, lesson.accumulate, patience=lesson.passes, precision="fp32"
    )
    program = trainable(calibrated)
    said = example_outputs(program, store.frames, with_maps=False)
    taught = TeacherOutputs(teacher, views, seen, said, compute, cache=None)
    objective = StudentObjective(program, lesson.losses, None, taught.layout, said)
    task = student_task(PixelDetector(program, run.info.preprocessing), objective, taught, views, compute)
    task = replace(task, keep_last=lesson.of_itself)
    history = fit(compute, task, schedule, lesson.seed, unfinished)
    trained = with_weights_of(calibrated.detector, program.cpu())
    return as_trained(calibrated, trained), history | {"loss": lesson.losses}
