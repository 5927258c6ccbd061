"""Quantize a run: compute in fewer bits, and measure the loss of accuracy on validation crops."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from command import run_as_script
from compress.calibration import (
    Calibrated,
    backbone_pictures,
    calibrate,
    keep_in_float,
    logits,
    match_logits,
)
from compress.checkpoints import asked_of
from compress.compute import require_one_process
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
from files import refuse_existing
from models.detector import Detector
from models.origin import DataSource
from models.run import TOOLS, Run, RunInfo, UnfinishedRun, save_run, versions_of
from models.schemes import dynamic_layers, fast_dtype, in_scheme
from resuming import alone
from stage import PALETTES, STATIC_INT8, LowPrecision, Scheme, Seed, StageError, WrongArgument, progress, say

MATCHED_CLIPS = 32
"""Training clips on which a clip detector's logits are matched. A frame detector's logits are matched on twice as many
crops as ranges are calibrated on: that fits a last layer of some hundred weights 3 dB better (docs/lab-notes.md)."""
CALIBRATION_CROPS, PASSES = 256, 6
EXPECTED_SNR_DB = 20.0
"""Logit SNR in dB below which a note is printed."""


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


def _accurate(
    source: Unquantized, calibrated: Calibrated, noises: list[LayerNoise], crops: int, match: bool
) -> tuple[list[str], Detector, ClipScores | None]:
    """Match the logits to the run's if ``match`` is set, and keep layers in float32 until the AUC is sufficient.

    Returns these layers, the program, and its validation scores, which are None if the run's scores mean nothing.
    Raises RefusedScheme if all layers would have to stay.
    """
    samples = 2 * crops if source.per == "frame" else MATCHED_CLIPS
    batches = source.drawn(takes(source.run.info), samples) if match else []
    expected = logits(source.fused, progress(batches, "match logits")) if match else None

    def keeping(layers: list[str]) -> Detector:
        program = calibrated.keeping(layers)
        if expected is None:
            return program
        matched = program.with_parts(head=copy.deepcopy(program.head))
        match_logits(matched, expected, batches)
        # With few crops the last layer may be overfitted: then the unmatched program is better.
        return max(program, matched, key=source.snr_db)

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
    calibrated = calibrate(equalize(source.fused, pictures), pictures, source.validation)
    history: dict[str, Any] = {}
    if train:
        calibrated, history = train(calibrated)
    noises = source.layer_noise(calibrated.program)
    float_layers, program, scores = _accurate(source, calibrated, noises, crops, match)
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
    program, detector = in_scheme(source.fused, scheme), source.fused
    description = str(scheme)
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
        raise RefusedScheme(f"{source.run.path} has values that {scheme} cannot hold: give --scheme int8 or autocast")
    return Quantized(detector, program, description, {"logit_snr_db": source.snr_db(program)})


def _check_accuracy(source: Unquantized, result: Quantized, scheme: Scheme) -> dict[str, Any]:
    """Return the validation metrics of a quantized run. Raises RefusedScheme if its AUC is below the allowed one."""
    if source.least_auc is None:
        return {"val": None, "reason": source.run.info.meaningless}
    # The test split is reserved for the artifacts, whose kernels round differently from this program.
    scores = result.scores or source.scores(result.program)
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
    require_one_process("quantize")
    store, source_run = ClipStore(data), Run(run)
    source = Unquantized.load(source_run, store, max_auc_drop, seed)
    teacher_run = load_teacher(teacher, store, source_run.info.architecture.per) if teacher else None
    runs = [source_run, *([teacher_run] if teacher_run else [])]
    data_info = _data_source(store, *runs)
    changed = {"scheme": scheme, "architecture": source.fused.architecture, "seed": seed, "data": data_info}
    parents = [parent.as_parent() for parent in runs]
    info = source_run.info.model_copy(update=changed | {"parents": parents, "tools": versions_of(TOOLS)})
    if scheme == "autocast" and fast_dtype(torch.device("cpu")) is None:
        say("this CPU has no bfloat16 instructions: autocast is emulated to score the validation clips, which is slow")
    crops = calibration_clips or CALIBRATION_CROPS
    if scheme == "int8-qat":
        settings = QatSettings.of(source_run, teacher_run, store, passes or PASSES, seed)
        result, metrics = _train_and_write(out, source, info, crops, settings)
    else:
        with alone(out):
            result = static_int8(source, crops) if scheme == "int8" else other_numbers(source, scheme)
            metrics = _check_accuracy(source, result, scheme) | result.metrics
            save_run(out, info, result.detector, metrics, **result.files)
    accuracy = f"val AUC {metrics['val']['auc']:.3f} in torch" if metrics["val"] else str(metrics["reason"])
    if metrics["logit_snr_db"] < EXPECTED_SNR_DB and not teacher_run:
        where = ": metrics.json says which layers cost most" if "diagnosis" in metrics else ""
        say(f"note: {EXPECTED_SNR_DB:.0f} dB or more are expected of {scheme}{where}")
    say(f"{out}: logits within {metrics['logit_snr_db']:.1f} dB of the run's ({result.description}); {accuracy}")


def _data_source(store: ClipStore, source_run: Run, *others: Run) -> DataSource:
    """Return the data of a quantized run: the fingerprint of this store; notes and persons also of its parents.

    How crops were cut is what the source run says of them: it was trained on these.

    Prints a note if the source run was trained on persons of the validation split of this, another, store.
    """
    if source_run.info.data.fingerprint != store.info.fingerprint:
        for line in seen_note([source_run.name], source_run.info.data.persons, store.clips("val"), "val"):
            say(line)
    source = data_source(store, source_run, *others)
    notes = list(dict.fromkeys([*source_run.info.data.notes, *source.notes]))
    return source.model_copy(update={"notes": notes, "crops": source_run.info.data.crops})


def _train_and_write(
    out: Path, source: Unquantized, info: RunInfo, crops: int, settings: QatSettings
) -> tuple[Quantized, dict[str, Any]]:
    """Train and write an int8-qat run, or resume an interrupted one; return the result and the run's metrics."""
    asked = asked_of(info, settings.views_for(settings.run)) | {
        "crops": crops,
        "passes": settings.passes,
        "losses": settings.losses,
    }
    with UnfinishedRun(out, asked) as unfinished:
        result = static_int8(
            source, crops, lambda calibrated: train_rounded(calibrated, settings, unfinished), match=settings.of_itself
        )
        metrics = _check_accuracy(source, result, info.scheme) | result.metrics
        steps = info.trained_steps + result.metrics["training"]["steps"]
        info = info.model_copy(update={"trained_steps": steps})
        unfinished.finish(info, result.detector, metrics, **result.files)
    return result, metrics


def _check_options(scheme: Scheme, of_int8: dict[str, Any], of_qat: dict[str, Any]) -> None:
    """Raise WrongArgument for the first given option that the scheme does not use.

    ``of_int8``, ``of_qat``: values of the options of static int8 and of int8-qat, None where not given.
    """
    unused = [of_int8] if scheme not in STATIC_INT8 else []
    unused += [of_qat] if scheme != "int8-qat" else []
    for name in (name for options in unused for name, value in options.items() if value is not None):
        raise WrongArgument(f"--scheme {scheme} has no use for {name}: leave it out")


if __name__ == "__main__":
    run_as_script(quantize)
