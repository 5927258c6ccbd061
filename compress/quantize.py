"""Quantize a run: compute in fewer bits, and measure the loss of accuracy on validation crops."""

import platform
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from command import run_as_script
from compress.checkpoints import asked_of
from compress.compute import require_one_process
from compress.distill import load_teacher
from compress.provenance import data_source, with_notes_of
from compress.qat import QatSettings, compute_of_rounding, train_rounded
from compress.quantized import Quantized, RefusedScheme, other_numbers, overflows, static_int8
from compress.runs import own_metrics
from compress.scoring import NotANumber
from compress.unquantized import Unquantized
from data.store import ClipStore
from files import refuse_existing
from models.origin import DataSource
from models.run import TOOLS, Run, RunInfo, UnfinishedRun, save_run
from models.schemes import fast_dtype
from resuming import alone, versions_of
from stage import STATIC_INT8, LowPrecision, Scheme, Seed, WrongArgument, heed_quota, say

CALIBRATION_CROPS, PASSES, MOST_PASSES = 256, 6, 1000
EXPECTED_SNR_DB = 20.0
"""Logit SNR in dB below which a note is printed."""


def _check_accuracy(source: Unquantized, result: Quantized, scheme: Scheme) -> dict[str, Any]:
    """Return the validation metrics of a quantized run.

    Raises RefusedScheme if its AUC is below the allowed one, or a score is not a number.
    """
    if source.least_auc is None:
        return {"val": None, "reason": source.run.info.meaningless}
    # The test split is reserved for the artifacts, whose kernels round differently from this program.
    try:
        scores = result.scores or source.scores(result.program)
    except NotANumber as error:  # on a clip that is not among those of ``other_numbers``
        raise overflows(source, scheme) from error
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
    passes: Annotated[
        int | None, typer.Option(help="int8-qat: passes over the training clips; 6.", min=1, max=MOST_PASSES)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Turn a run into one that computes in fewer bits.

    Example: **pocketproof quantize runs/student --scheme int8 --data store --out runs/student-int8**
    """
    refuse_existing(out)
    _check_options(scheme, {"--calibration-clips": calibration_clips}, {"--teacher": teacher, "--passes": passes})
    require_one_process("quantize")
    heed_quota()
    store, source_run = ClipStore(data), Run(run)
    source = Unquantized.load(source_run, store, max_auc_drop, seed)
    teacher_run = load_teacher(teacher, store, source_run.info.architecture.per) if teacher else None
    runs = [source_run, *([teacher_run] if teacher_run else [])]
    data_info = _data_source(store, *runs)
    changed = {"scheme": scheme, "architecture": source.fused.architecture, "seed": seed, "data": data_info}
    parents = [parent.as_parent() for parent in runs]
    made_by = {"tools": versions_of(TOOLS), "python": platform.python_version()}
    info = source_run.info.model_copy(update=changed | made_by | {"parents": parents})
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
    """Return the data of a quantized run: this store's, with the source run's notes and the persons of all parents.

    How crops were made is what the source run says of them: it was trained on these.
    """
    data = data_source(store, source_run.info.architecture.modalities, source_run, *others)
    return with_notes_of([source_run], data).model_copy(update={"crops": source_run.info.data.crops})


def _train_and_write(
    out: Path, source: Unquantized, info: RunInfo, crops: int, settings: QatSettings
) -> tuple[Quantized, dict[str, Any]]:
    """Train and write an int8-qat run, or resume an interrupted one; return the result and the run's metrics."""
    compute = compute_of_rounding()
    asked = asked_of(info, settings.views_for(settings.run), compute) | {
        "crops": crops,
        "passes": settings.passes,
        "losses": settings.losses,
    }
    with UnfinishedRun(out, asked) as unfinished:
        try:
            result = static_int8(
                source,
                crops,
                lambda calibrated: train_rounded(calibrated, settings, unfinished, compute),
                match=settings.of_itself,
            )
            metrics = _check_accuracy(source, result, info.scheme) | result.metrics
        except RefusedScheme as error:
            raise RefusedScheme(
                f"{error}; its training is kept in {unfinished.folder}: call again with a larger --max-auc-drop, or "
                "remove it"
            ) from error
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
