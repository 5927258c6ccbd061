"""From a run's folder to a module or scorer that takes raw pixels; and what training stages write alike.

Imports torchao and scikit-learn only where they are needed: a worker that times a float run needs neither.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.scoring import Scorer, score_split
from data.store import ClipStore
from models.detector import PixelDetector
from models.run import DataSource, Run
from stage import StageError

if TYPE_CHECKING:
    from compress.metrics import Threshold


def pixel_detector(run: Run, dynamic_batch: bool = True) -> PixelDetector:
    """Load a run of any scheme: uint8 [N, S, S, 3] RGB 0..255 -> P(fake) float32 [N].

    An int8 run is rebuilt as an integer program; with ``dynamic_batch`` false it takes one picture at a time, as the
    exporters want it.
    """
    if run.info.scheme == "fp32":
        return PixelDetector(run.detector(), run.info.preprocessing)
    from compress.int8 import rebuild  # torchao takes seconds to import, and float runs do not need it

    return PixelDetector(rebuild(run, dynamic_batch), run.info.preprocessing)


def torch_scorer(model: nn.Module, device: torch.device, autocast: bool = False) -> Scorer:
    """Wrap a module that takes raw pixels (PixelDetector), which is on ``device``, as a scorer."""

    def score(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            scores: NDArray[np.float32] = model(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
        return scores

    return score


def own_threshold(run: Run) -> "Threshold":
    """Return the threshold that was set on a run's own validation scores. Raises StageError if it has none."""
    from compress.metrics import Threshold

    if run.info.meaningless:
        raise StageError(f"{run.path} has no threshold: {run.info.meaningless}")
    try:
        return Threshold.model_validate(json.loads(run.read("metrics.json"))["threshold"])
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{run.path / 'metrics.json'} holds no threshold: train or quantize the run again") from error


def data_source(store: ClipStore) -> DataSource:
    """Return how a run names the store it was trained on."""
    return DataSource(fingerprint=store.info.fingerprint, notes=store.info.notes)


def validation_metrics(scorer: Scorer, store: ClipStore) -> dict[str, Any]:
    """Set the threshold on the validation split and measure it, for ``metrics.json``."""
    from compress.metrics import choose_threshold

    val = score_split(scorer, store, "val")
    threshold = choose_threshold(val.labels, val.clips)
    return {"threshold": threshold.model_dump(), "val": val.metrics(threshold.value).model_dump()}


def final_metrics(scorer: Scorer, store: ClipStore, history: dict[str, Any]) -> dict[str, Any]:
    """Measure the validation split, and the test split once, for ``metrics.json``."""
    metrics = validation_metrics(scorer, store)
    test = score_split(scorer, store, "test").metrics(metrics["threshold"]["value"])
    return {"training": history} | metrics | {"test": test.model_dump()}
