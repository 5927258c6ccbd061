"""A run against a store whose crops were cut otherwise than those that it was trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.distill import distill
from compress.quantize import quantize
from compress.teach import teach
from data.store import ClipStore
from export.evaluate import evaluate
from export.export import export
from models.megatron import MegatronSettings
from models.run import Run
from stage import StageError

WIDER = "margin 1.7, fit resize, boxes of dlib"


@pytest.fixture
def wider_store(demo_store: Path, tmp_path: Path) -> Path:
    """``demo_store`` with another margin in its settings."""
    store = shutil.copytree(demo_store, tmp_path / "wider")
    info = json.loads((store / "store.json").read_text())
    info["settings"]["crop"]["margin"] = 1.7
    (store / "store.json").write_text(json.dumps(info))
    return store


def test_a_run_says_how_its_crops_were_cut(student_run: Path, int8_run: Path, demo_store: Path) -> None:
    for run in (student_run, int8_run):
        assert Run(run).info.data.crops == ClipStore(demo_store).crops == "margin 1.3, fit resize, boxes of dlib"


def test_crops_cut_otherwise_neither_quantize_nor_describe_a_run(
    student_run: Path, wider_store: Path, tmp_path: Path
) -> None:
    said = (
        rf"student was trained on crops cut otherwise \(margin 1.3, .*\) than those of .*wider \({WIDER}\): give a st"
    )
    with pytest.raises(StageError, match=said):
        quantize(student_run, wider_store, tmp_path / "out", scheme="fp16")
    with pytest.raises(StageError, match=said):
        export([student_run], wider_store, tmp_path / "out", "onnx")


def test_a_run_of_before_this_was_noted_is_taken(
    drawn_run: Callable[..., Path], wider_store: Path, tmp_path: Path
) -> None:
    quantize(drawn_run(tmp_path / "run", {"trained_steps": 0}), wider_store, tmp_path / "out", scheme="fp16")
    assert Run(tmp_path / "out").info.data.crops is None


def test_a_run_without_a_pass_was_trained_on_the_crops_of_the_run_that_it_starts_from(
    teacher_run: Path, wider_store: Path, tmp_path: Path
) -> None:
    options = {"backbone": "test_vit", "weights": teacher_run, "epochs": 0}
    teach("dino", wider_store, tmp_path / "run", **options)
    assert Run(tmp_path / "run").info.data.crops == Run(teacher_run).info.data.crops != WIDER


def test_a_clip_model_without_a_pass_keeps_the_length_that_it_was_trained_on(
    drawn_run: Callable[..., Path], modal_store: Path, tmp_path: Path
) -> None:
    data = {"fingerprint": "of longer clips", "frames": 20}
    architecture = {"backbone": "test_tiny", "modalities": ("rgb", "depth"), "megatron": MegatronSettings()}
    longer = drawn_run(tmp_path / "longer", {"data": data}, **architecture)
    options = {"backbone": "test_tiny", "weights": longer, "epochs": 0}
    with pytest.raises(StageError, match=r"longer takes clips of 20 frames, .* holds \d+"):
        teach("megatron", modal_store, tmp_path / "run", **options)


def test_figures_on_crops_cut_otherwise_are_noted(
    bundle_path: Path, student_run: Path, wider_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, name in ((student_run, "student"), (bundle_path, "test_byobnet-int8.onnx")):
        (found,) = evaluate(model, wider_store, out=tmp_path / name)
        note = f"{name}: trained on crops cut otherwise (margin 1.3, fit resize, boxes of dlib) than those of wider"
        assert [line for line in found.notes if line.startswith(note)] == [f"{note} ({WIDER})."]
    distill(wider_store, tmp_path / "run", student_run, student="test_byobnet", epochs=1)
    assert f"note: {student_run}: trained on crops cut otherwise" in capsys.readouterr().err
