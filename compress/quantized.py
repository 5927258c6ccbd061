"""A run in fewer bits: the program of each scheme, and what it cost."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from compress.calibration import (
    Calibrated,
    backbone_pictures,
    calibrate,
    keep_in_float,
    logits,
    match_logits,
)
from compress.diagnosis import islands
from compress.equalization import equalize
from compress.fidelity import Diagnosis, LayerNoise
from compress.folding import with_norms_folded
from compress.int8 import Quantization
from compress.runs import takes
from compress.scoring import ClipScores, Takes
from compress.unquantized import Unquantized
from models.detector import Detector
from models.schemes import dynamic_layers, in_scheme
from stage import PALETTES, Scheme, StageError, progress

MATCHED_CLIPS = 32
"""Training clips on which a clip detector's logits are matched. A frame detector's logits are matched on twice as many
crops as ranges are calibrated on: that fits a last layer of some hundred weights 3 dB better (docs/lab-notes.md)."""


class RefusedScheme(StageError):
    """A scheme that costs more accuracy than allowed, or cannot represent the network's values."""


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing a run."""

    detector: Detector
    """The detector whose weights are saved."""
    program: nn.Module
    """The module that computes in the scheme."""
    description: str
    """Text for the final message."""
    metrics: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    """Texts of further files of the run, by file name without ``.json``."""
    scores: ClipScores | None = None
    """Scores of the program on the validation split, if already computed."""


def _matching(source: Unquantized, crops: int) -> Callable[[Detector], Detector]:
    """Return a function that gives a program the last layer with which its logits come nearest to the run's."""
    batches = source.drawn(takes(source.run.info), 2 * crops if source.per == "frame" else MATCHED_CLIPS)
    expected = logits(source.fused, progress(batches, "match logits"))

    def matched(program: Detector) -> Detector:
        refitted = program.with_parts(head=copy.deepcopy(program.head))
        match_logits(refitted, expected, batches)
        # With few crops the last layer may be overfitted: then the unmatched program is better.
        return max(program, refitted, key=source.snr_db)

    return matched


def _accurate(
    source: Unquantized, calibrated: Calibrated, noises: list[LayerNoise], matched: Callable[[Detector], Detector]
) -> tuple[list[str], Detector, ClipScores | None]:
    """Keep layers in float32 until the AUC of the ``matched`` program is sufficient.

    Returns these layers, the program, and its validation scores, which are None if the run's scores mean nothing.
    Raises RefusedScheme if all layers would have to stay.
    """

    def keeping(layers: list[str]) -> Detector:
        return matched(calibrated.keeping(layers))

    if source.least_auc is None:
        return [], keeping([]), None
    float_layers, program, scores = keep_in_float(noises, keeping, source.scores, source.least_auc)
    if len(float_layers) == len(noises) and scores.auc >= source.least_auc:
        raise RefusedScheme(
            f"{source.run.path} keeps the validation AUC that --max-auc-drop asks for only with every layer in "
            "float32: the run was not written; give --scheme fp16, or more validation clips"
        )
    return float_layers, program, scores


Train = Callable[[Calibrated], tuple[Calibrated, dict[str, Any]]]


def static_int8(source: Unquantized, crops: int, train: Train | None = None, match: bool = True) -> Quantized:
    """Calibrate on ``crops`` training crops, keep layers in float32 if accuracy requires it, and match the logits.

    ``train``: trains the calibrated detector and returns it with the history. ``match``: whether the run's logits are
    to be matched. Raises RefusedScheme if every layer would have to stay in float32.
    """
    frames = source.drawn(Takes(source.run.info.architecture.modalities), crops)
    pictures = backbone_pictures(frames)
    matched = _matching(source, crops) if match else lambda program: program
    calibrated = calibrate(equalize(source.fused, pictures), pictures, source.validation, matched)
    history: dict[str, Any] = {}
    if train:
        calibrated, history = train(calibrated)
    noises = source.layer_noise(calibrated.program)
    float_layers, program, scores = _accurate(source, calibrated, noises, matched)
    snr = source.snr_db(program)
    diagnosis = Diagnosis(
        samples=sum(len(inputs[0]) for inputs in source.validation),
        per=source.per,
        logit_snr_db=snr,
        observers={str(name): snr for name, snr in calibrated.tried.items()},
        float_layers=float_layers,
        islands=islands(program),
        layers=noises,
    )
    quantization = Quantization(
        observer=calibrated.observer,
        float_layers=float_layers,
        calibration_crops=sum(len(inputs[0]) for inputs in frames),
        calibration_fingerprint=source.store.info.fingerprint,
        tensors=calibrated.tensors,
    )
    return Quantized(
        calibrated.detector.with_parts(head=program.head),
        program,
        f"{calibrated.observer} observer, {quantization.calibration_crops} crops, "
        f"{len(float_layers)} of {len(noises)} layers and the head in fp32",
        {"logit_snr_db": snr, "diagnosis": diagnosis.model_dump()} | ({"training": history} if train else {}),
        {"quantization": quantization.model_dump_json(indent=2)},
        scores,
    )


def other_numbers(source: Unquantized, scheme: Scheme) -> Quantized:
    """Quantize in a scheme other than static int8.

    Raises StageError if it would round nothing, RefusedScheme if it cannot hold the network's values.
    """
    detector = source.fused
    if scheme in PALETTES:  # Core ML folds batch norms: a table's values would be multiplied by a factor per channel
        detector = with_norms_folded(detector, backbone_pictures(source.validation)[0])
    program, description = in_scheme(detector, scheme), str(scheme)
    if scheme == "int8-dynamic":
        layers = dynamic_layers(source.fused)
        if not layers:
            raise StageError(
                f"{source.run.path} has no linear layers but the one that gives the logits: int8-dynamic would round "
                "nothing; --scheme int8 rounds convolutions too"
            )
        description = f"{len(layers)} linear layers in integers"
    elif scheme == "fp16":
        detector = copy.deepcopy(source.fused).half()
    elif scheme in PALETTES:
        assert isinstance(program, Detector)
        detector, description = program, f"{2 ** PALETTES[scheme]} values a tensor"
    if not np.isfinite(logits(program, source.validation)).all():
        raise overflows(source, scheme)
    return Quantized(detector, program, description, {"logit_snr_db": source.snr_db(program)})


def overflows(source: Unquantized, scheme: Scheme) -> RefusedScheme:
    """Return the error for a scheme that cannot hold a network's values."""
    return RefusedScheme(f"{source.run.path} has values that {scheme} cannot hold: give --scheme int8 or autocast")
