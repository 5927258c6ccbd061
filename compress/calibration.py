"""Calibration of static int8: ranges from training crops, layers that stay in float32, logits brought to the run's."""

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
from models.detector import Detector, PixelDetector
from models.run import Run
from stage import progress

PICTURES_AT_ONCE = 32
RIDGES = np.logspace(-3, 4, 8)
"""Of which the penalty is chosen, in units of the inputs' variance."""
NetworkInputs = tuple[Tensor, ...]
"""What a detector takes: pictures, float32 and normalized, and of clips which frames are valid."""


def drawn_inputs(run: Run, looks: Takes, store: ClipStore, split: str, samples: int, seed: int) -> list[NetworkInputs]:
    """Return label-balanced frames or clips of a split, as a run's detector takes them, in batches.

    As many are drawn as ``samples`` says, or as the rarer label has, evenly over the methods of forgery. A training
    split without fakes gives forgeries of its own.
    """
    labels = {clip.label for clip in store.clips(split, both=False)}
    views = Views(store, ViewRule(forge=FAKE not in labels, seed=seed), split, looks.modalities)
    weight = {"frame": lambda view: int(view.valid.sum()), "clip": lambda _: 1}[looks.per]
    fewest = min(sum(map(weight, (view for view in views.views if view.label == label))) for label in (REAL, FAKE))
    batch = next(balanced_batches(views, 2 * max(1, min(samples // 2, fewest)), (seed,), looks.per))
    step = PICTURES_AT_ONCE if looks.per == "frame" else max(1, PICTURES_AT_ONCE // store.frames)
    parts = [slice(start, start + step) for start in range(0, len(batch.rows), step)]
    pixels_in = PixelDetector(nn.Identity(), run.info.preprocessing)
    found = []
    # Both labels in each part: a moving average of ranges forgets the first ones.
    mixed = Batch(*(values.reshape(2, -1).T.ravel() for values in (batch.rows, batch.labels)))
    for part in parts:
        read = read_batch(views, Batch(mixed.rows[part], mixed.labels[part]), looks.per)
        valid = () if read.valid is None else (torch.from_numpy(read.valid),)
        found.append((pixels_in.pictures(torch.from_numpy(read.pixels)), *valid))
    return found


def backbone_pictures(batches: Sequence[NetworkInputs]) -> list[Tensor]:
    """Return what a backbone sees of frames, float32 [N, 3, S, S] in batches: each modality is a picture."""
    return [pictures.flatten(0, -4) if pictures.ndim > 4 else pictures for pictures, *_ in batches]


@dataclass(frozen=True)
class Calibrated:
    """A fused and equalized detector with the ranges of the best observer."""

    detector: Detector
    observer: ObserverName
    tensors: Tensors
    program: Detector
    """What int8 computes, in float32."""
    tried: dict[ObserverName, float]
    """Logit SNR in dB on validation crops by observer."""

    def keeping(self, float_layers: Sequence[str]) -> Detector:
        """Return the program in which some layers stay in float32, with a head of its own."""
        program = simulated(self.detector, self.tensors, float_layers) if float_layers else self.program
        return program.with_parts(head=copy.deepcopy(self.detector.head))


def logits(network: nn.Module, batches: Iterable[NetworkInputs]) -> NDArray[np.float64]:
    """Return fake minus real of samples in batches, float64 [N]."""
    with torch.inference_mode():
        given = torch.cat([network(*inputs) for inputs in batches]).double()
    return (given[:, 1] - given[:, 0]).numpy()


def one_pair(scores: ClipScores) -> float:
    """Return what one real and one fake clip in the wrong order cost in AUC: the least that a split can tell."""
    fakes = int(scores.labels.sum())
    return 1.0 / (fakes * (len(scores.labels) - fakes))


def validation_scores(network: nn.Module, run: Run, store: ClipStore) -> ClipScores:
    """Return what a network that takes what a run's detector takes says of the validation split."""
    scorer = torch_scorer(PixelDetector(network, run.info.preprocessing), torch.device("cpu"))
    return score_split(scorer, store, "val", takes(run.info))


def calibrate(detector: Detector, pictures: Sequence[Tensor], validation: Sequence[NetworkInputs]) -> Calibrated:
    """Find the ranges of a fused and equalized detector's tensors, by the observer of most logit SNR on ``validation``.

    pictures: what the backbone sees of training frames, float32 [N, 3, S, S], normalized, in batches.
    """
    found = observe(detector, progress(pictures, "calibrate"))
    exact, program = logits(detector, validation), simulated(detector, next(iter(found.values())))
    tried: dict[ObserverName, float] = {}
    for name, tensors in progress(list(found.items()), "compare observers"):
        set_numbers(graph_of(program), tensors)
        tried[name] = snr_db(exact, logits(program, validation))
    best = max(tried, key=lambda name: tried[name])
    set_numbers(graph_of(program), found[best])
    return Calibrated(detector, best, found[best], program, tried)


def keep_in_float(
    noises: list[LayerNoise],
    keeping: Callable[[list[str]], Detector],
    score: Callable[[Detector], ClipScores],
    least_auc: float,
) -> tuple[list[str], Detector, ClipScores]:
    """Return the layers that stay in float32 for an AUC of ``least_auc``, few, by bisection; the program; its scores.

    Whole blocks stay, those first whose rounding adds most to the logits' noise: one layer alone would still take
    rounded values and give such. ``keeping``: layers to the program in which they stay; ``score``: of validation clips.
    """
    layers = [noise.layer for noise in noises]
    blocks = noisiest_blocks(noises)

    def kept(count: int) -> list[str]:
        return [layer for layer in layers if block_of(layer) in blocks[:count]]

    @functools.cache
    def tried(count: int) -> tuple[Detector, ClipScores]:
        program = keeping(kept(count))
        return program, score(program)

    def suffices(count: int) -> bool:
        return tried(count)[1].auc >= least_auc

    too_few, enough = (-1, 0) if suffices(0) else (0, len(blocks))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return kept(enough), *tried(enough)


def match_logits(program: Detector, expected: NDArray[np.float64], batches: Sequence[NetworkInputs]) -> None:
    """Change the layer that gives a program's logits, in place, so that they come nearest to ``expected``, float64 [N].

    Rounding shrinks and shifts logits by some percent: a line is fitted first, by least squares. What is left is fitted
    by ridge regression on the layer's inputs, held back as far as leave-one-out says. Labels play no part. Where int8
    has turned the order round, there is nothing to fit.
    """
    last, seen = program.classifier, list[Tensor]()
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    rounded = logits(program, batches)
    hook.remove()
    slope, shift = np.polyfit(rounded, expected, 1) if np.var(rounded) else (0.0, 0.0)
    if slope <= 0:
        return
    inputs = torch.cat(seen).double().numpy()
    penalties = RIDGES * inputs.var(axis=0).mean() * len(inputs)
    left = RidgeCV(penalties).fit(inputs, expected - (slope * rounded + shift))
    halves = torch.tensor([-0.5, 0.5])
    with torch.no_grad():
        last.weight.mul_(slope).add_(halves[:, None] * torch.from_numpy(left.coef_).float())
        last.bias.mul_(slope).add_(halves * float(shift + left.intercept_))
