"""Inputs that several rooms' tests share: a small rendered corpus, the stores prepared from it, runs and a bundle.

What imports torch (7 s) is imported where it is used, so that tests of data start without it.
"""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from data.demo import render_corpora
from data.prepare import prepare
from data.store import ClipStore


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """The photo of scikit-image, uint8 [512, 512, 3] RGB: eyes at (204, 101) and (247, 103), mouth at (225, 146)."""
    return np.ascontiguousarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def demo_renders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 12 renders with a forgery each, and of 3 renders with an identity "forgery" each."""
    return render_corpora(tmp_path_factory.mktemp("demo"), renders=12, controls=3, seed=0, workers=2)


@pytest.fixture(scope="session")
def demo_corpus(demo_renders: tuple[Path, Path]) -> Path:
    """Folder of 12 original videos and one forgery of each, laid out like FaceForensics++. Read only."""
    return demo_renders[0]


@pytest.fixture(scope="session")
def demo_control(demo_renders: tuple[Path, Path]) -> Path:
    """Folder of 3 real and 3 "fake" videos, whose forgeries changed nothing. Read only."""
    return demo_renders[1]


@pytest.fixture(scope="session")
def demo_store(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ClipStore of ``demo_corpus``: 4 frames of 64 pixels; 12 train, 6 val and 6 test clips. Read only."""
    out = tmp_path_factory.mktemp("stores") / "demo"
    prepare([demo_corpus], out, frames=4, size=64, ratios="0.5,0.25,0.25", workers=2)
    return out


@pytest.fixture(scope="session")
def demo_control_store(demo_control: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ClipStore of ``demo_control``, 6 test clips of 4 frames of 64 pixels. Read only."""
    out = tmp_path_factory.mktemp("stores") / "control"
    prepare([demo_control], out, frames=4, size=64, ratios="0,0,1", workers=2)
    return out


@pytest.fixture(scope="session")
def opened_store(demo_store: Path) -> ClipStore:
    """The opened ``demo_store``."""
    return ClipStore(demo_store)


@pytest.fixture(scope="session")
def real_crops(opened_store: ClipStore) -> NDArray[np.uint8]:
    """Real crops of both labels, uint8 [24, 64, 64, 3] RGB."""
    return np.concatenate([pixels for _, pixels in opened_store.scored_clips("val")])


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs below."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def teacher_run(demo_store: Path, runs: Path) -> Path:
    """A small vision transformer, its last block trained for an epoch."""
    from compress.teach import teach

    out = runs / "teacher"
    teach("dino", demo_store, out, backbone="test_vit", random_weights=True, unfreeze="1", epochs=2)
    return out


@pytest.fixture(scope="session")
def student_run(demo_store: Path, teacher_run: Path, runs: Path) -> Path:
    """A small convolutional network distilled from ``teacher_run``."""
    from compress.distill import distill

    out = runs / "student"
    distill(teacher_run, demo_store, out, student="test_byobnet", epochs=8)
    return out


@pytest.fixture(scope="session")
def int8_run(demo_store: Path, student_run: Path, runs: Path) -> Path:
    """``student_run`` in int8."""
    from compress.quantize import quantize

    out = runs / "student-int8"
    quantize(student_run, demo_store, out, calibration_clips=24)
    return out


@pytest.fixture(scope="session")
def bundle_path(demo_store: Path, student_run: Path, int8_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``student_run`` and ``int8_run`` in all three runtimes. Read only."""
    from export.export import export

    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export([student_run, int8_run], demo_store, out)
    return out
