"""Calibration of static int8: ranges from training crops, layers kept in float32, logits matched to the run's."""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from compress.diagnosis import block_of, noisiest_blocks
from compress.fidelity import LayerNoise, snr_db
from compress.int8 import Tensors, graph_of, observe, set_numbers, simulated
from compress.observers import ObserverName
from compress.runs import takes, torch_scorer
from compress.scoring import ClipScores, Takes, score_split
from data.batches import Batch, balanced_batches, read_batch
from data.layouts import FAKE, REAL
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import Detector
from models.pixels import PixelDetector
from models.run import Run
from stage import progress

RIDGES = np.logspace(-3, 4, 8)
"""Candidate penalties of the ridge regression, in units of the inputs' variance."""
BATCH_PICTURES = 32
"""Most pictures in a batch of ``drawn_inputs``."""
NetworkInputs = tuple[Tensor, ...]
"""Arguments of a detector: normalized pictures, float32, and for clips the mask of valid frames, bool [N, T]."""


def drawn_inputs(run: Run, inputs: Takes, store: ClipStore, split: str, samples: int, seed: int) -> list[NetworkInputs]:
    """Return label-balanced frames or clips of a split in batches, prepared as inputs of a run's detector.

    ``samples`` of them are drawn, but no more per label than the rarer label has, evenly over the methods of forgery.
    In a training split without fakes, forgeries are made from its real clips.
    """
    labels = {clip.label for clip in store.clips(split, both=False)}
    views = Views(store, ViewRule(forge=FAKE not in labels, seed=seed), split, inputs.modalities)
    samples_of = {"frame": lambda view: int(view.valid.sum()), "clip": lambda _: 1}[inputs.per]
    fewest = min(sum(map(samples_of, (view for view in views.views if view.label == label))) for label in (REAL, FAKE))
    batch = next(balanced_batches(views, 2 * max(1, min(samples // 2, fewest)), (seed,), inputs.per))
    step = BATCH_PICTURES if inputs.per == "frame" else max(1, BATCH_PICTURES // store.frames)
    parts = [slice(start, start + step) for start in range(0, len(batch.rows), step)]
    pixels_in = PixelDetector(nn.Identity(), run.info.preprocessing)
    batches: list[NetworkInputs] = []
    # Each part holds both labels, because a moving average of ranges forgets the first samples.
    mixed = Batch(*(values.reshape(2, -1).T.ravel() for values in (batch.rows, batch.labels)))
    for part in parts:
        read = read_batch(views, Batch(mixed.rows[part], mixed.labels[part]), inputs.per)
        valid = () if read.valid is None else (torch.from_numpy(read.valid),)
        batches.append((pixels_in.pictures(torch.from_numpy(read.pixels)), *valid))
    return batches


def backbone_pictures(batches: Sequence[NetworkInputs]) -> list[Tensor]:
    """Return the inputs of a backbone, float32 [N, 3, S, S] in batches: each modality of each frame is one picture."""
    return [pictures.flatten(0, -4) if pictures.ndim > 4 else pictures for pictures, *_ in batches]


@dataclass(frozen=True)
class Calibrated:
    """A fused and equalized detector with the ranges of the best observer."""

    detector: Detector
    observer: ObserverName
    tensors: Tensors
    program: Detector
    """The int8 program simulated in float32."""
    tried: dict[ObserverName, float]
    """Logit SNR in dB on validation samples, by observer, as the program would be shipped."""

    def keeping(self, float_layers: Sequence[str]) -> Detector:
        """Return the program with ``float_layers`` kept in float32 and its own copy of the head."""
        program = simulated(self.detector, self.tensors, float_layers) if float_layers else self.program
        return program.with_parts(head=copy.deepcopy(self.detector.head))


def logits(network: nn.Module, batches: Iterable[NetworkInputs]) -> NDArray[np.float64]:
    """Return the fake logit minus the real one of all samples in the batches, float64 [N]."""
    with torch.inference_mode():
        outputs = torch.cat([network(*inputs) for inputs in batches]).double()
    return (outputs[:, 1] - outputs[:, 0]).numpy()


def one_pair(scores: ClipScores) -> float:
    """Return the AUC lost when one real and one fake clip swap ranks: the smallest change that a split can show."""
    fakes = int(scores.labels.sum())
    return 1.0 / (fakes * (len(scores.labels) - fakes))


def validation_scores(network: nn.Module, run: Run, store: ClipStore) -> ClipScores:
    """Return the scores, on the validation split, of a network with the same inputs as a run's detector."""
    scorer = torch_scorer(PixelDetector(network, run.info.preprocessing), torch.device("cpu"))
    return score_split(scorer, store, "val", takes(run.info))


def calibrate(
    detector: Detector,
    pictures: Sequence[Tensor],
    validation: Sequence[NetworkInputs],
    as_shipped: Callable[[Detector], Detector] = lambda program: program,
) -> Calibrated:
    """Find the ranges of a fused, equalized detector's tensors by the observer of highest logit SNR on ``validation``.

    pictures: the backbone's inputs for training frames, float32 [N, 3, S, S], normalized, in batches. ``as_shipped``:
    returns the program that is compared, with its last layer refitted: much of what an observer costs without that is
    a slope and a shift, which cost nothing in the end.
    """
    candidates = observe(detector, progress(pictures, "calibrate"))
    exact = logits(detector, validation)
    program = simulated(detector, next(iter(candidates.values())))
    tried: dict[ObserverName, float] = {}
    for name, tensors in progress(list(candidates.items()), "compare observers"):
        set_numbers(graph_of(program), tensors)
        tried[name] = snr_db(exact, logits(as_shipped(program), validation))
    best = max(tried, key=lambda name: tried[name])
    set_numbers(graph_of(program), candidates[best])
    return Calibrated(detector, best, candidates[best], program, tried)


def keep_in_float(
    noises: list[LayerNoise],
    keeping: Callable[[list[str]], Detector],
    score: Callable[[Detector], ClipScores],
    least_auc: float,
) -> tuple[list[str], Detector, ClipScores]:
    """Return few layers to keep in float32 for an AUC of ``least_auc``, the program that keeps them, and its scores.

    Their number is found by bisection. Whole blocks are kept, the noisiest in the logits first: a single layer would
    still have rounded inputs and outputs. ``keeping``: returns the program that keeps given layers; ``score``: returns
    a program's scores on validation clips.
    """
    layers = [noise.layer for noise in noises]
    blocks = noisiest_blocks(noises)

    def layers_in_blocks(count: int) -> list[str]:
        return [layer for layer in layers if block_of(layer) in blocks[:count]]

    @functools.cache
    def program_and_scores(count: int) -> tuple[Detector, ClipScores]:
        program = keeping(layers_in_blocks(count))
        return program, score(program)

    def suffices(count: int) -> bool:
        return program_and_scores(count)[1].auc >= least_auc

    too_few, enough = (-1, 0) if suffices(0) else (0, len(blocks))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return layers_in_blocks(enough), *program_and_scores(enough)


def match_logits(program: Detector, expected: NDArray[np.float64], batches: Sequence[NetworkInputs]) -> None:
    """Adjust a program's last layer, in place, so that its logits come closest to ``expected``, float64 [N].

    Rounding shrinks and shifts logits by some percent, so a line is fitted first, by least squares. The residual is
    fitted by ridge regression on the layer's inputs, with the penalty chosen by leave-one-out. Labels are not used. If
    the fitted slope is not positive, int8 has reversed the order of scores, and the layer is left as it is.
    """
    last, captured = program.classifier, list[Tensor]()
    hook = last.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0]))
    rounded = logits(program, batches)
    hook.remove()
    slope, shift = np.polyfit(rounded, expected, 1) if np.var(rounded) else (0.0, 0.0)
    if slope <= 0:
        return
    inputs = torch.cat(captured).double().numpy()
    penalties = RIDGES * inputs.var(axis=0).mean() * len(inputs)
    residual = RidgeCV(penalties).fit(inputs, expected - (slope * rounded + shift))
    halves = torch.tensor([-0.5, 0.5])
    with torch.no_grad():
        last.weight.mul_(slope).add_(halves[:, None] * torch.from_numpy(residual.coef_).float())
        last.bias.mul_(slope).add_(halves * float(shift + residual.intercept_))
