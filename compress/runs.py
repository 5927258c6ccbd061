"""Loads a run as a module or scorer of raw pixels, and writes what all training stages have in common.

Imports torchao and scikit-learn only where needed: a worker that times a float run needs neither.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.fidelity import Diagnosis
from compress.provenance import say_notes, seen_note
from compress.scoring import ClipScores, Takes, score_split
from data.store import ClipStore
from models.cost import cost_of
from models.detector import Detector
from models.fusing import fuse
from models.pixels import PixelDetector
from models.run import Run, RunInfo, UnfinishedRun
from models.schemes import in_scheme
from parsing import parse_json
from stage import Scheme, Scorer, StageError, say, speaks

if TYPE_CHECKING:
    from compress.metrics import Metrics, Threshold


def takes(info: RunInfo) -> Takes:
    """Return a run's modalities and whether it scores frames or clips."""
    return Takes(info.architecture.modalities, info.architecture.per)


def pixel_detector(run: Run, scheme: Scheme | None = None, inputs: Sequence[NDArray[Any]] = ()) -> PixelDetector:
    """Return a run's fused network in eval mode: pixels -> P(fake), float32 [N].

    ``scheme``: of a float run, in place of its own. An int8 run is rebuilt as an integer program. Fusing is checked on
    ``inputs``, as ``Scorer`` takes them, or else on zeros. Raises StageError if the run is damaged or if fusing changes
    its outputs.
    """
    info = run.info
    if info.integer:
        from compress.int8 import rebuild  # torchao takes seconds to import, and float runs do not need it

        return PixelDetector(rebuild(run), info.preprocessing)
    detector = run.detector()
    example = detector.example(frames=1)
    if inputs:
        pixels, *valid = map(torch.from_numpy, inputs)
        example = (PixelDetector(nn.Identity(), info.preprocessing).pictures(pixels), *valid)
    deployed = PixelDetector(in_scheme(fuse(detector, *example), scheme or info.scheme), info.preprocessing)
    return deployed.eval().requires_grad_(False)


def check_size(path: Path, size: int, store: ClipStore) -> None:
    """Raise StageError unless ``size``, the crop size in pixels of the model at ``path``, is that of a store."""
    if size != store.size:
        raise StageError(f"{path} takes {size} px crops, {store.path} holds {store.size} px")


def check_length(path: Path, frames: int, store: ClipStore) -> None:
    """Raise StageError unless ``frames``, the clip length of the model at ``path``, is that of a store."""
    if frames != store.frames:
        raise StageError(f"{path} takes clips of {frames} frames, {store.path} holds {store.frames}")


def check_store(run: Run, store: ClipStore) -> None:
    """Raise StageError unless a store holds a run's inputs: crops of its size, its modalities, and clips if needed.

    A run that scores whole clips takes only clips of the length that it was trained on.
    """
    check_size(run.path, run.info.architecture.size, store)
    store.require(run.info.architecture.modalities)
    if run.info.architecture.per == "frame":
        return
    if store.frames == 1:
        raise StageError(f"{run.path} scores clips, and {store.path} holds photos: give a store of clips")
    if (trained := run.info.data.frames) not in (None, store.frames):
        raise StageError(
            f"{run.path} was trained on clips of {trained} frames, and {store.path} holds clips of {store.frames}: "
            "give a store of the same length"
        )


def check_measured_splits(store: ClipStore) -> None:
    """Raise StageError, before a training, unless validation and test, on which it is measured, have both labels."""
    for split in ("val", "test"):
        store.clips(split)


def check_rgb(run: Run) -> None:
    """Raise StageError unless a run can go to a phone: it must take single RGB crops, or be a clip student of RGB."""
    inputs, temporal = takes(run.info), run.info.architecture.temporal
    if inputs.modalities != ("rgb",) or (inputs.per == "clip" and not temporal):
        kind = f"{'+'.join(inputs.modalities)} {inputs.per}s"
        raise StageError(f"{run.path} looks at {kind}, and a phone has rgb frames: distill it into a student first")


def torch_scorer(model: nn.Module, device: torch.device) -> Scorer:
    """Return a scorer that runs a module of raw pixels (PixelDetector) on ``device``, where the module already is."""

    def score(pixels: NDArray[np.uint8], *valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(array).to(device) for array in (pixels, *valid)]
        with torch.inference_mode():
            scores: NDArray[np.float32] = model(*inputs).float().cpu().numpy()
        return scores

    return score


def own_threshold(run: Run) -> "Threshold":
    """Return a run's threshold, which was chosen on its own validation scores. Raises StageError if it has none."""
    from compress.metrics import Threshold

    if run.info.meaningless:
        raise StageError(f"{run.path} has no threshold: {run.info.meaningless}")
    try:
        return Threshold.model_validate(parse_json(run.read("metrics.json"))["threshold"])
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{run.path / 'metrics.json'} holds no readable threshold: train or quantize the run again"
        ) from error


def diagnosis_of(run: Run) -> Diagnosis | None:
    """Return the diagnosis of a static int8 run; None in another scheme. Raises StageError if an int8 run has none."""
    if not run.info.integer:
        return None
    try:
        return Diagnosis.model_validate(parse_json(run.read("metrics.json"))["diagnosis"])
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{run.path / 'metrics.json'} holds no readable diagnosis: quantize the run again") from error


def _dumped(metrics: "Metrics") -> dict[str, Any]:
    """Return metrics for ``metrics.json`` as a dict, with the AUC of clips first."""
    return {"auc": metrics.auc} | metrics.model_dump()


def own_metrics(val: ClipScores) -> dict[str, Any]:
    """Return the threshold chosen on a run's own validation scores and their metrics, for ``metrics.json``."""
    threshold = val.choose_threshold()
    return {"threshold": threshold.model_dump(), "val": _dumped(val.metrics(threshold.value))}


def finish_run(
    unfinished: UnfinishedRun, info: RunInfo, pixels_in: PixelDetector, store: ClipStore, history: dict[str, Any]
) -> None:
    """Measure a trained detector on the validation and test split, and finish the run; only in the first process."""
    if not speaks():
        return
    detector = pixels_in.eval().network
    assert isinstance(detector, Detector)
    info = info.model_copy(update={"trained_steps": info.trained_steps + history["steps"]})
    device = next(detector.parameters()).device
    inputs = (tensor.to(device) for tensor in detector.example(store.frames))
    cost = {"per": info.architecture.per} | cost_of(detector, *inputs).model_dump()
    metrics: dict[str, Any] = {"cost": cost, "training": history}
    if info.meaningless:
        metrics |= {"val": None, "test": None, "reason": info.meaningless}
        unfinished.finish(info, detector, metrics)
        return
    scorer = torch_scorer(pixels_in, device)
    metrics |= own_metrics(score_split(scorer, store, "val", takes(info)))
    test = score_split(scorer, store, "test", takes(info)).metrics(metrics["threshold"]["value"])
    # Splits of one store share no person: one of test was seen by a run that this began with or learned from.
    notes = seen_note([unfinished.out.name], info.data.persons, store.clips("test"), "test")
    unfinished.finish(info, detector, metrics | {"test": _dumped(test), "notes": notes})
    say(f"{unfinished.out}: test AUC {test.auc:.3f}, val AUC {metrics['val']['auc']:.3f} (clips)")
    say_notes(notes)
