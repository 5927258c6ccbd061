"""A clip student of random weights, its run and its bundle, for the tests of this room and of benchmarks."""

from pathlib import Path

import pytest
import torch
from torch import nn

from data.store import ClipStore
from models.detector import Architecture, Detector
from models.origin import DataSource
from models.temporal import TemporalSettings
from tests import tiny  # noqa: F401  (timm knows it from then on)
from tests.conftest import export_here, save_drawn, shared

NAME = "test_tiny-clip-fp32"


def clip_student(**settings: object) -> Detector:
    """Return a clip student for 64 pixels; every frame, place and flag can be seen in its score."""
    torch.manual_seed(0)
    temporal = TemporalSettings(width=16, feed_forward=16, **settings)
    detector = Detector(Architecture(backbone="test_tiny", size=64, temporal=temporal))
    for module in detector.head.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 3.0
    return detector.eval()


METRICS: dict[str, object] = {"threshold": {"value": 0.5, "false_positive_rate": 0.0, "rule": "made up"}}


def _save_run(store: Path, out: Path) -> None:
    info = {"kind": "student", "data": DataSource(fingerprint=ClipStore(store).info.fingerprint)}
    save_drawn(out, clip_student(), info, METRICS)


def _save_frame_run(out: Path) -> None:
    torch.manual_seed(0)
    save_drawn(out, Detector(Architecture(backbone="test_tiny", size=64)), {"kind": "student"}, METRICS)


def frame_run(factory: pytest.TempPathFactory) -> Path:
    """Return the run of a frame student of two convolutions, which says that it was trained. Read only."""
    return shared(factory, "tiny-student", _save_frame_run)


def clip_run(store: Path, factory: pytest.TempPathFactory) -> Path:
    """Return the run of ``clip_student()``, which says that it was trained. Read only."""
    return shared(factory, "clip-student", lambda out: _save_run(store, out))


def clip_bundle(store: Path, factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of ``clip_run`` for all three runtimes. Read only."""
    run = clip_run(store, factory)
    return shared(factory, "clip-bundle", lambda out: export_here([run], store, out))
