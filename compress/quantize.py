"""Quantize a run: fuse, equalize, calibrate on training crops, keep what int8 would break, and say what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.diagnosis import block_of, islands, layer_noise, noisiest_blocks
from compress.equalization import equalize
from compress.fidelity import Diagnosis, LayerNoise, snr_db
from compress.int8 import Quantization, Tensors, last_layer, observe, simulated
from compress.observers import ObserverName
from compress.runs import check_rgb_frames, check_size, data_source, own_metrics, torch_scorer
from compress.scoring import ClipScores, score_split
from data.batches import Batch, balanced_batches, read_batch
from data.layouts import FAKE, REAL
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import Detector, PixelDetector, Preprocessing
from models.fusing import fuse
from models.run import Run, save_run
from stage import Seed, StageError, progress, refuse_existing, run_as_script, say

CALIBRATION_BATCH = 32
VALIDATION_CROPS = 64
"""On which observers are compared."""
DIAGNOSED_BATCH = 8
"""Crops whose activations and gradients are held at once."""


def drawn_pictures(pixels_in: PixelDetector, store: ClipStore, split: str, crops: int, seed: int) -> list[Tensor]:
    """Return label-balanced pictures of a split's clips, float32 [N, 3, S, S], normalized, in batches.

    As many frames are drawn as ``crops`` says, or as the rarer label has, evenly over the methods of forgery. A
    training split without fakes gives forgeries of its own.
    """
    labels = {clip.label for clip in store.clips(split, both=False)}
    views = Views(store, ViewRule(forge=FAKE not in labels, seed=seed), split)
    fewest = min(sum(int(view.valid.sum()) for view in views.views if view.label == label) for label in (REAL, FAKE))
    batch = next(balanced_batches(views, 2 * min(crops // 2, fewest), (seed,)))
    parts = [slice(i, i + CALIBRATION_BATCH) for i in range(0, len(batch.rows), CALIBRATION_BATCH)]
    pixels = [read_batch(views, Batch(batch.rows[part], batch.labels[part])).pixels for part in parts]
    return [pixels_in.pictures(torch.from_numpy(found)) for found in pixels]


@dataclass(frozen=True)
class Calibrated:
    """A fused and equalized detector with the ranges of the best observer."""

    detector: Detector
    observer: ObserverName
    tensors: Tensors
    last_layer: str
    """Which gives the logits, and stays in float32."""
    tried: dict[ObserverName, float]
    """Logit SNR in dB on validation crops by observer."""

    def simulated(self, float_layers: Sequence[str]) -> GraphModule:
        """Return the int8 program computed in float32."""
        return simulated(self.detector, self.tensors, float_layers, dynamic_batch=True)


def logits(network: nn.Module, batches: list[Tensor]) -> NDArray[np.float64]:
    """Return fake minus real of pictures in batches, float64 [N]."""
    with torch.inference_mode():
        given = torch.cat([network(pictures) for pictures in batches]).double()
    return (given[:, 1] - given[:, 0]).numpy()


def auc_of(scores: ClipScores) -> float:
    """Return the AUC of a split's clips, rounded as ``compress.metrics`` does: equal orders give equal figures."""
    return round(float(roc_auc_score(scores.labels, scores.clips)), 12)


def one_pair(scores: ClipScores) -> float:
    """Return what one real and one fake clip in the wrong order cost in AUC: the least that a split can tell."""
    fakes = int(scores.labels.sum())
    return 1.0 / (fakes * (len(scores.labels) - fakes))


def validation_scores(network: nn.Module, preprocessing: Preprocessing, store: ClipStore) -> ClipScores:
    """Return what a network that takes pictures says of the validation split."""
    return score_split(torch_scorer(PixelDetector(network, preprocessing), torch.device("cpu")), store, "val")


def calibrate(fused: Detector, batches: list[Tensor], validation: list[Tensor]) -> Calibrated:
    """Find the ranges of a fused detector's tensors, by the observer of most logit SNR on ``validation``.

    batches, validation: pictures, float32 [N, 3, S, S], normalized.
    """
    detector = equalize(fused, batches)
    last = last_layer(detector)
    found = observe(detector, progress(batches, "calibrate"))
    exact = logits(fused, validation)
    tried = {
        name: snr_db(exact, logits(simulated(detector, tensors, [last], dynamic_batch=True), validation))
        for name, tensors in progress(list(found.items()), "compare observers")
    }
    best = max(tried, key=lambda name: tried[name])
    return Calibrated(detector, best, found[best], last, tried)


def keep_in_float(
    calibrated: Calibrated, noises: list[LayerNoise], preprocessing: Preprocessing, store: ClipStore, least_auc: float
) -> list[str]:
    """Return the layers that stay in float32 for a validation AUC of ``least_auc``: few, by bisection.

    Whole blocks stay, those first whose rounding adds most to the logits' noise: one layer alone would still take
    rounded values and give such. The last layer stays in any case.
    """
    layers = [noise.layer for noise in noises]
    blocks = noisiest_blocks(noises)

    def kept(count: int) -> list[str]:
        return [layer for layer in layers if layer == layers[-1] or block_of(layer) in blocks[:count]]

    def suffices(count: int) -> bool:
        return auc_of(validation_scores(calibrated.simulated(kept(count)), preprocessing, store)) >= least_auc

    too_few, enough = (-1, 0) if suffices(0) else (0, len(blocks))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return kept(enough)


def match_logits(calibrated: Calibrated, fused: nn.Module, float_layers: list[str], batches: list[Tensor]) -> None:
    """Change the last layer, in place, so that int8 logits on ``batches`` come nearest to those of ``fused``.

    Rounding shrinks and shifts logits by some percent. The line is fitted by least squares; no order changes. Where
    int8 has turned the order round, there is no line to fit.
    """
    exact, rounded = logits(fused, batches), logits(calibrated.simulated(float_layers), batches)
    slope, shift = np.polyfit(rounded, exact, 1) if np.var(rounded) else (0.0, 0.0)
    if slope <= 0:
        return
    last = calibrated.detector.get_submodule(float_layers[-1])
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight *= slope
        last.bias.copy_(last.bias * slope + shift * torch.tensor([-0.5, 0.5]))


def quantize(
    run: Annotated[Path, typer.Argument(help="The run to quantize.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to calibrate on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    scheme: Annotated[Literal["int8"], typer.Option(help="int8: static, per-channel weights.")] = "int8",
    calibration_clips: Annotated[int, typer.Option(help="Training crops to calibrate on.", min=2)] = 256,
    max_auc_drop: Annotated[
        float,
        typer.Option(help="Validation AUC that int8 may cost, or one pair of clips; else layers stay in fp32.", min=0),
    ] = 0.005,
    seed: Seed = 0,
) -> None:
    """Turn a run into an integer one.

    Example: **pocketproof quantize runs/student --scheme int8 --data store --out runs/student-int8**
    """
    refuse_existing(out)
    store = ClipStore(data)
    source = Run(run)
    if source.info.scheme != "fp32":
        raise StageError(f"{run} is quantized already ({source.info.scheme}): give the run that it came from")
    check_rgb_frames(source)
    check_size(run, source.info.architecture.size, store)
    preprocessing = source.info.preprocessing
    pixels_in = PixelDetector(source.detector(), preprocessing)
    batches = drawn_pictures(pixels_in, store, "train", calibration_clips, seed)
    validation = drawn_pictures(pixels_in, store, "val", VALIDATION_CROPS, seed)
    fused = fuse(source.detector(), batches[0])
    calibrated = calibrate(fused, batches, validation)
    floats = [calibrated.last_layer]
    few = [part for pictures in validation for part in torch.split(pictures, DIAGNOSED_BATCH)]
    noises = layer_noise(calibrated.simulated(floats), progress(few, "diagnose"))
    metrics: dict[str, Any] = {"val": None, "reason": source.info.meaningless}
    if source.info.meaningless is None:
        before = validation_scores(fused, preprocessing, store)
        least_auc = auc_of(before) - max(max_auc_drop, one_pair(before)) - 1e-9
        floats = keep_in_float(calibrated, noises, preprocessing, store, least_auc)
    match_logits(calibrated, fused, floats, batches)
    program = calibrated.simulated(floats)
    if source.info.meaningless is None:
        # The test split is for the artifacts: their kernels round otherwise than this program.
        metrics = own_metrics(validation_scores(program, preprocessing, store))
    diagnosis = Diagnosis(
        crops=sum(len(pictures) for pictures in validation),
        logit_snr_db=snr_db(logits(fused, validation), logits(program, validation)),
        observers={str(name): snr for name, snr in calibrated.tried.items()},
        float_layers=floats,
        islands=islands(program),
        layers=noises,
    )
    metrics |= {"diagnosis": diagnosis.model_dump()}
    quantization = Quantization(
        observer=calibrated.observer,
        float_layers=floats,
        calibration_crops=sum(len(batch) for batch in batches),
        calibration_fingerprint=store.info.fingerprint,
        tensors=calibrated.tensors,
    )
    info = source.info.model_copy(
        update={
            "scheme": scheme,
            "architecture": calibrated.detector.architecture,
            "parents": [source.as_parent()],
            "data": data_source(store),
            "seed": seed,
        }
    )
    save_run(out, info, calibrated.detector, metrics, quantization=quantization.model_dump_json(indent=2))
    accuracy = f"val AUC {metrics['val']['auc']:.3f} in torch" if metrics["val"] else str(metrics["reason"])
    say(
        f"{out}: logits within {diagnosis.logit_snr_db:.1f} dB ({calibrated.observer} observer, "
        f"{quantization.calibration_crops} crops), {len(floats)} of {len(noises)} layers in fp32; {accuracy}"
    )


if __name__ == "__main__":
    run_as_script(quantize)
