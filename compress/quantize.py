"""Quantize a run: compute in fewer bits, and say what that costs on validation crops."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
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
from compress.distill import load_teacher
from compress.equalization import equalize
from compress.fidelity import Diagnosis, LayerNoise
from compress.int8 import Quantization
from compress.persons import seen_note
from compress.qat import QatSettings, train_rounded
from compress.runs import data_source, own_metrics, takes
from compress.scoring import ClipScores, Takes
from compress.unquantized import Unquantized
from data.store import ClipStore
from files import alone, refuse_existing
from models.detector import Detector
from models.origin import DataSource
from models.run import TOOLS, Run, RunInfo, UnfinishedRun, save_run, versions_of
from models.schemes import dynamic_layers, fast_dtype, in_scheme
from stage import (
    PALETTES,
    STATIC_INT8,
    LowPrecision,
    Scheme,
    Seed,
    StageError,
    WrongArgument,
    progress,
    run_as_script,
    say,
)

MATCHED_CLIPS = 32
"""Training clips on which a clip detector's logits are matched. A frame detector's are on twice as many crops as ranges
are found on: a last layer of some hundred weights is fitted, which gave 3 dB more (docs/lab-notes.md)."""
CALIBRATION_CROPS, PASSES = 256, 6
EXPECTED_SNR_DB = 20.0
"""Of logits that computing in fewer bits may leave, before it is said."""


class RefusedScheme(StageError):
    """A scheme that costs more than may be lost, or cannot hold what the network computes."""


@dataclass(frozen=True)
class Quantized:
    """What a scheme made of a run."""

    detector: Detector
    """The weights to keep."""
    program: nn.Module
    """What computes."""
    said: str
    metrics: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    """Further files of the run."""
    scores: ClipScores | None = None
    """What the program says of the validation split, where that is known."""


def _accurate(
    source: Unquantized, calibrated: Calibrated, noises: list[LayerNoise], crops: int, match: bool
) -> tuple[list[str], Detector, ClipScores | None]:
    """Match the logits to the run's unless others are aimed at, and keep layers in float32 as accuracy asks for it.

    Returns them, the program, and what it says of the validation split where its accuracy counted.
    """
    samples = 2 * crops if source.per == "frame" else MATCHED_CLIPS
    matched = source.drawn(takes(source.run.info), samples) if match else []
    expected = logits(source.fused, progress(matched, "match logits")) if match else None

    def keeping(layers: list[str]) -> Detector:
        program = calibrated.keeping(layers)
        if expected is None:
            return program
        nearer = program.with_parts(head=copy.deepcopy(program.head))
        match_logits(nearer, expected, matched)
        # Few crops fit the last layer to themselves.
        return max(program, nearer, key=source.snr_db)

    if source.least_auc is None:
        return [], keeping([]), None
    found = keep_in_float(noises, keeping, source.scores, source.least_auc)
    if len(found[0]) == len(noises) and found[2].auc >= source.least_auc:
        raise RefusedScheme(
            f"{source.run.path} keeps the validation AUC that --max-auc-drop asks for only with every layer in "
            "float32: the run was not written; give --scheme fp16, or more validation clips"
        )
    return found


Train = Callable[[Calibrated], tuple[Calibrated, dict[str, Any]]]


def static_int8(source: Unquantized, crops: int, train: Train | None = None, match: bool = True) -> Quantized:
    """Calibrate on training crops; keep in float32 what int8 would break; match the logits.

    ``train``: what trains the calibrated detector. ``match``: whether the run's logits are what is aimed at.
    """
    frames = source.drawn(Takes(source.run.info.architecture.modalities), crops)
    pictures = backbone_pictures(frames)
    calibrated = calibrate(equalize(source.fused, pictures), pictures, source.validation)
    history: dict[str, Any] = {}
    if train:
        calibrated, history = train(calibrated)
    noises = source.layer_noise(calibrated.program)
    floats, program, scores = _accurate(source, calibrated, noises, crops, match)
    snr = source.snr_db(program)
    diagnosis = Diagnosis(
        samples=sum(len(inputs[0]) for inputs in source.validation),
        per=source.per,
        logit_snr_db=snr,
        observers={str(name): snr for name, snr in calibrated.tried.items()},
        float_layers=floats,
        islands=islands(program),
        layers=noises,
    )
    quantization = Quantization(
        observer=calibrated.observer,
        float_layers=floats,
        calibration_crops=sum(len(inputs[0]) for inputs in frames),
        calibration_fingerprint=source.store.info.fingerprint,
        tensors=calibrated.tensors,
    )
    return Quantized(
        calibrated.detector.with_parts(head=program.head),
        program,
        f"{calibrated.observer} observer, {quantization.calibration_crops} crops, "
        f"{len(floats)} of {len(noises)} layers and the head in fp32",
        {"logit_snr_db": snr, "diagnosis": diagnosis.model_dump()} | ({"training": history} if train else {}),
        {"quantization": quantization.model_dump_json(indent=2)},
        scores,
    )


def other_numbers(source: Unquantized, scheme: Scheme) -> Quantized:
    """Compute in 16 bits, or in integers whose scales are found as they come."""
    program, detector, said = in_scheme(source.fused, scheme), source.fused, str(scheme)
    if scheme == "int8-dynamic":
        layers = dynamic_layers(source.fused)
        if not layers:
            raise StageError(
                f"{source.run.path} has no linear layers but the one that gives the logits: int8-dynamic would round "
                "nothing; --scheme int8 rounds convolutions too"
            )
        said = f"{len(layers)} linear layers in integers"
    elif scheme == "fp16":
        detector = copy.deepcopy(source.fused).half()
    elif scheme in PALETTES:
        assert isinstance(program, Detector)
        detector, said = program, f"{2 ** PALETTES[scheme]} values a tensor"
    if not np.isfinite(logits(program, source.validation)).all():
        raise RefusedScheme(f"{source.run.path} has values that {scheme} cannot hold: give --scheme int8 or autocast")
    return Quantized(detector, program, said, {"logit_snr_db": source.snr_db(program)})


def _check_accuracy(source: Unquantized, found: Quantized, scheme: Scheme) -> dict[str, Any]:
    """Return the metrics of a scheme. Raises StageError if it costs more than may be lost."""
    if source.least_auc is None:
        return {"val": None, "reason": source.run.info.meaningless}
    # The test split is for the artifacts: their kernels round otherwise than this program.
    scores = found.scores or source.scores(found.program)
    if scores.auc < source.least_auc:
        raise RefusedScheme(
            f"{scheme} takes the validation AUC of {source.run.path} to {scores.auc:.4f}, below the "
            f"{source.least_auc:.4f} that --max-auc-drop allows: the run was not written"
        )
    return own_metrics(scores)


def quantize(
    run: Annotated[Path, typer.Argument(help="The run to quantize: a teacher or a student.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to calibrate, and to train, on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    scheme: Annotated[
        LowPrecision,
        typer.Option(
            help="int8: integers, calibrated; int8-qat: trained so; int8-dynamic: linear layers of teachers; fp16; "
            "autocast: torch alone; palette4, 6, 8: bits a weight, Core ML alone."
        ),
    ] = "int8",
    calibration_clips: Annotated[
        int | None, typer.Option(help="int8, int8-qat: training crops to calibrate on; 256.", min=2)
    ] = None,
    max_auc_drop: Annotated[
        float,
        typer.Option(
            help="Validation AUC that may be lost, or one pair of clips; static int8 keeps layers in fp32 for it.",
            min=0,
        ),
    ] = 0.005,
    teacher: Annotated[
        Path | None, typer.Option(help="int8-qat: the run to learn from; the run that is quantized if none is given.")
    ] = None,
    passes: Annotated[int | None, typer.Option(help="int8-qat: passes over the training clips; 6.", min=1)] = None,
    seed: Seed = 0,
) -> None:
    """Turn a run into one that computes in fewer bits.

    Example: **pocketproof quantize runs/student --scheme int8 --data store --out runs/student-int8**
    """
    refuse_existing(out)
    _check_options(scheme, {"--calibration-clips": calibration_clips}, {"--teacher": teacher, "--passes": passes})
    store, own = ClipStore(data), Run(run)
    source = Unquantized.load(own, store, max_auc_drop, seed)
    taught = load_teacher(teacher, store, own.info.architecture.per) if teacher else None
    runs = [own, *([taught] if taught else [])]
    changed = {"scheme": scheme, "architecture": source.fused.architecture, "seed": seed, "data": _seen(store, *runs)}
    parents = [parent.as_parent() for parent in runs]
    info = own.info.model_copy(update=changed | {"parents": parents, "tools": versions_of(TOOLS)})
    if scheme == "autocast" and fast_dtype(torch.device("cpu")) is None:
        say("this CPU has no bfloat16 instructions: autocast is emulated to score the validation clips, which is slow")
    crops = calibration_clips or CALIBRATION_CROPS
    if scheme == "int8-qat":
        lesson = QatSettings.of(own, taught, store, passes or PASSES, seed)
        found, metrics = _train_and_write(out, source, info, crops, lesson)
    else:
        with alone(out):
            found = static_int8(source, crops) if scheme == "int8" else other_numbers(source, scheme)
            metrics = _check_accuracy(source, found, scheme) | found.metrics
            save_run(out, info, found.detector, metrics, **found.files)
    accuracy = f"val AUC {metrics['val']['auc']:.3f} in torch" if metrics["val"] else str(metrics["reason"])
    if metrics["logit_snr_db"] < EXPECTED_SNR_DB and not taught:
        where = ": metrics.json says which layers cost most" if "diagnosis" in metrics else ""
        say(f"note: {EXPECTED_SNR_DB:.0f} dB or more are expected of {scheme}{where}")
    say(f"{out}: logits within {metrics['logit_snr_db']:.1f} dB of the run's ({found.said}); {accuracy}")


def _seen(store: ClipStore, own: Run, *others: Run) -> DataSource:
    """Return the data of a quantized run: its threshold is of this store, its notes and persons are of all.

    Says if the run has seen persons of another store's validation split.
    """
    if own.info.data.fingerprint != store.info.fingerprint:
        for line in seen_note([own.path.name], own.info.data.persons, store.clips("val"), "val"):
            say(line)
    now = data_source(store, own, *others)
    return now.model_copy(update={"notes": list(dict.fromkeys([*own.info.data.notes, *now.notes]))})


def _train_and_write(
    out: Path, source: Unquantized, info: RunInfo, crops: int, lesson: QatSettings
) -> tuple[Quantized, dict[str, Any]]:
    """Make and write an int8-qat run, or go on with one that was interrupted; return it and its metrics."""
    asked = {
        "run": info.asked(),
        "crops": crops,
        "rule": lesson.rule.model_dump(),
        "passes": lesson.passes,
        "losses": lesson.losses,
        "data": source.store.info.fingerprint,
    }
    with UnfinishedRun(out, asked) as unfinished:
        found = static_int8(
            source, crops, lambda calibrated: train_rounded(calibrated, lesson, unfinished), match=lesson.of_itself
        )
        metrics = _check_accuracy(source, found, info.scheme) | found.metrics
        steps = info.trained_steps + found.metrics["training"]["steps"]
        info = info.model_copy(update={"trained_steps": steps})
        unfinished.finish(info, found.detector, metrics, **found.files)
    return found, metrics


def _check_options(scheme: Scheme, of_int8: dict[str, Any], of_qat: dict[str, Any]) -> None:
    """Raise WrongArgument for options that a scheme has no use for."""
    needless = [of_int8] if scheme not in STATIC_INT8 else []
    needless += [of_qat] if scheme != "int8-qat" else []
    for name in (name for options in needless for name, value in options.items() if value is not None):
        raise WrongArgument(f"--scheme {scheme} has no use for {name}: leave it out")


if __name__ == "__main__":
    run_as_script(quantize)
