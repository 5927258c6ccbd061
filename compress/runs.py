"""From a run's folder to a module or scorer that takes raw pixels; and what training stages write alike.

Imports torchao and scikit-learn only where they are needed: a worker that times a float run needs neither.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.fidelity import Diagnosis
from compress.persons import seen_persons
from compress.scoring import ClipScores, Takes, score_split
from data.store import ClipStore
from models.cost import cost_of
from models.detector import Detector, PixelDetector
from models.fusing import fuse
from models.origin import DataSource
from models.run import Run, RunInfo, UnfinishedRun
from models.schemes import in_scheme
from parsing import parse_json
from stage import Scheme, Scorer, StageError, say, speaks

if TYPE_CHECKING:
    from compress.metrics import Metrics, Threshold


def takes(info: RunInfo) -> Takes:
    """Return what a run looks at."""
    return Takes(info.architecture.modalities, info.architecture.per)


def pixel_detector(
    run: Run, dynamic_batch: bool = True, scheme: Scheme | None = None, inputs: Sequence[NDArray[Any]] = ()
) -> PixelDetector:
    """Load what a run deploys, fused, in its own scheme or an fp32 run in another: pixels -> P(fake) float32 [N].

    An int8 run is rebuilt as an integer program; with ``dynamic_batch`` false it takes one picture at a time, as the
    exporters want it. Fusing is proven on ``inputs``, as ``Scorer`` takes them, or else on zeros.
    """
    info = run.info
    if info.integer:
        from compress.int8 import rebuild  # torchao takes seconds to import, and float runs do not need it

        return PixelDetector(rebuild(run, dynamic_batch), info.preprocessing)
    detector = run.detector()
    given = detector.example(frames=1)
    if inputs:
        pixels, *valid = map(torch.from_numpy, inputs)
        given = (PixelDetector(nn.Identity(), info.preprocessing).pictures(pixels), *valid)
    deployed = PixelDetector(in_scheme(fuse(detector, *given), scheme or info.scheme), info.preprocessing)
    return deployed.eval().requires_grad_(False)


def check_size(path: Path, size: int, store: ClipStore) -> None:
    """Raise StageError unless what lies at ``path`` takes crops of the size that a store holds."""
    if size != store.size:
        raise StageError(f"{path} takes {size} px crops, {store.path} holds {store.size} px")


def check_length(path: Path, frames: int, store: ClipStore) -> None:
    """Raise StageError unless what lies at ``path``, which takes clips of so many frames, fits those of a store."""
    if frames != store.frames:
        raise StageError(f"{path} takes clips of {frames} frames, {store.path} holds {store.frames}")


def check_store(run: Run, store: ClipStore) -> None:
    """Raise StageError unless a store holds what a run takes: crops of its size, its modalities, and clips.

    A run that scores whole clips takes those of the length that it learned.
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


def check_rgb(run: Run) -> None:
    """Raise StageError unless a run looks at single RGB crops, or is a clip student: all that goes to a phone does."""
    seen, temporal = takes(run.info), run.info.architecture.temporal
    if seen.modalities != ("rgb",) or (seen.per == "clip" and not temporal):
        looks = f"{'+'.join(seen.modalities)} {seen.per}s"
        raise StageError(f"{run.path} looks at {looks}, and a phone has rgb frames: distill it into a student first")


def torch_scorer(model: nn.Module, device: torch.device) -> Scorer:
    """Wrap a module that takes raw pixels (PixelDetector), which is on ``device``, as a scorer."""

    def score(pixels: NDArray[np.uint8], *valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(array).to(device) for array in (pixels, *valid)]
        with torch.inference_mode():
            scores: NDArray[np.float32] = model(*inputs).float().cpu().numpy()
        return scores

    return score


def own_threshold(run: Run) -> "Threshold":
    """Return the threshold that was set on a run's own validation scores. Raises StageError if it has none."""
    from compress.metrics import Threshold

    if run.info.meaningless:
        raise StageError(f"{run.path} has no threshold: {run.info.meaningless}")
    try:
        return Threshold.model_validate(parse_json(run.read("metrics.json"))["threshold"])
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{run.path / 'metrics.json'} holds no threshold: train or quantize the run again") from error


def diagnosis_of(run: Run) -> Diagnosis | None:
    """Return what static int8 cost a run; None in another scheme. Raises StageError if an int8 run does not say."""
    if not run.info.integer:
        return None
    try:
        return Diagnosis.model_validate(parse_json(run.read("metrics.json"))["diagnosis"])
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{run.path / 'metrics.json'} holds no diagnosis: quantize the run again") from error


def student_of(run: Run) -> str | None:
    """Return the hash of the fp32 run that a run is, or was made from."""
    if run.info.scheme == "fp32":
        return run.sha256
    return run.info.parents[0].sha256 if run.info.parents else None


def data_source(store: ClipStore, *runs: Run) -> DataSource:
    """Return how a run names the store it was trained on, and whom it and the runs before it have seen."""
    return DataSource(
        fingerprint=store.info.fingerprint,
        notes=store.info.notes,
        frames=store.frames,
        persons=seen_persons(store, *runs),
    )


def _dumped(metrics: "Metrics") -> dict[str, Any]:
    """Return metrics for ``metrics.json``, the figure that everybody asks for first: the AUC of clips."""
    return {"auc": metrics.auc} | metrics.model_dump()


def own_metrics(val: ClipScores) -> dict[str, Any]:
    """Set the threshold on a run's own validation scores and measure them, for ``metrics.json``."""
    threshold = val.choose_threshold()
    return {"threshold": threshold.model_dump(), "val": _dumped(val.metrics(threshold.value))}


def finish_run(
    unfinished: UnfinishedRun, info: RunInfo, pixels_in: PixelDetector, store: ClipStore, history: dict[str, Any]
) -> None:
    """Measure what was trained, on the test split once, and put the run in its place: the first process does it."""
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
    unfinished.finish(info, detector, metrics | {"test": _dumped(test)})
    say(f"{unfinished.out}: test AUC {test.auc:.3f}, val AUC {metrics['val']['auc']:.3f} (clips)")
