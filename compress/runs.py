"""From a run's folder to a module that takes raw pixels; and what training stages write alike."""

from typing import Any

from torch import nn

from compress.int8 import rebuild
from compress.metrics import choose_threshold
from compress.scoring import Scorer, score_split
from data.store import ClipStore
from models.detector import PixelDetector
from models.run import DataSource, Run


def pixel_detector(run: Run, dynamic_batch: bool = True) -> PixelDetector:
    """Load a run of any scheme: uint8 [N, S, S, 3] RGB 0..255 -> P(fake) float32 [N].

    An int8 run is rebuilt as an integer program; with ``dynamic_batch`` false it takes one picture at a time, as the
    exporters want it.
    """
    network: nn.Module = rebuild(run, dynamic_batch) if run.info.scheme == "int8" else run.detector()
    return PixelDetector(network, run.info.preprocessing)


def data_source(store: ClipStore) -> DataSource:
    """Return how a run names the store it was trained on."""
    return DataSource(fingerprint=store.info.fingerprint, notes=store.info.notes)


def validation_metrics(scorer: Scorer, store: ClipStore) -> dict[str, Any]:
    """Set the threshold on the validation split and measure it, for ``metrics.json``."""
    val = score_split(scorer, store, "val")
    threshold = choose_threshold(val.labels, val.clips)
    return {"threshold": threshold.model_dump(), "val": val.metrics(threshold.value).model_dump()}


def final_metrics(scorer: Scorer, store: ClipStore, history: dict[str, Any]) -> dict[str, Any]:
    """Measure the validation split, and the test split once, for ``metrics.json``."""
    metrics = validation_metrics(scorer, store)
    test = score_split(scorer, store, "test").metrics(metrics["threshold"]["value"])
    return {"training": history} | metrics | {"test": test.model_dump()}
