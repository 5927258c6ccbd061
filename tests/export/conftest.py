"""The bundle of every runtime and which of its artifacts run here, and files to scan."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data.video import write_video
from export.bundle import Bundle

SOURCES = {"fp32": "student_run", "int8": "int8_run"}
RUNNABLE = tuple(f"test_byobnet-{scheme}.{suffix}" for suffix in ("pte", "onnx", "mlpackage") for scheme in SOURCES)


@pytest.fixture(scope="module")
def bundle(bundle_path) -> Bundle:
    return Bundle(bundle_path)


@pytest.fixture
def scored(monkeypatch):
    """Score in this process, and return what was scored."""
    scored = []

    def in_this_process(function, jobs, *_):
        for job in jobs:
            scored.append(job[0].name)
            function(*job)

    monkeypatch.setattr("data.journal.in_processes", in_this_process)
    return scored


@pytest.fixture
def uploads(demo_control, astronaut, tmp_path):
    """Two videos, a photo, a video without a face, one that is none, and a name that is spelled like HTML."""
    made = tmp_path / "uploads"
    shutil.copytree(demo_control / "real", made / "real", ignore=shutil.ignore_patterns("002.mp4"))
    Image.fromarray(astronaut).save(made / "face.png")
    write_video(made / "black.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    (made / "<b>text.mp4").write_text("not a video")
    return made
