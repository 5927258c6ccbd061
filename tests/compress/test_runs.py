"""A run against a store whose crops were made otherwise than those that it was trained on."""

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
from tests import tiny  # noqa: F401  (timm knows it from then on)

WIDER = "margin 1.7, fit resize, boxes of dlib"


@pytest.fixture
def wider_store(demo_store: Path, tmp_path: Path) -> Path:
    """``demo_store`` with another margin in its settings."""
    store = shutil.copytree(demo_store, tmp_path / "wider")
    info = json.loads((store / "store.json").read_text())
    info["settings"]["crop"]["margin"] = 1.7
    (store / "store.json").write_text(json.dumps(info))
    return store


def test_a_run_says_how_its_crops_were_made(student_run: Path, int8_run: Path, demo_store: Path) -> None:
    for run in (student_run, int8_run):
        assert (
            Run(run).info.data.crops
            == ClipStore(demo_store).info.settings.made(["rgb"])
            == "margin 1.3, fit resize, boxes of dlib"
        )


def test_crops_made_otherwise_neither_quantize_nor_describe_a_run(
    student_run: Path, wider_store: Path, tmp_path: Path
) -> None:
    said = (
        rf"student was trained on crops made otherwise \(margin 1.3, .*\) than those of .*wider \({WIDER}\): give a st"
    )
    with pytest.raises(StageError, match=said):
        quantize(student_run, wider_store, tmp_path / "out", scheme="fp16")
    with pytest.raises(StageError, match=said):
        export([student_run], wider_store, tmp_path / "out", "onnx")


def test_depth_and_flow_of_another_network_are_made_otherwise(
    drawn_run: Callable[..., Path], modal_store: Path, tmp_path: Path
) -> None:
    store = ClipStore(modal_store)
    of_depth = store.info.settings.made(["rgb", "depth"])
    assert of_depth == f"margin 1.3, fit resize, boxes of dlib, depth by weights {store.info.settings.depth.sha256[:8]}"
    assert store.info.settings.made(["flow"]) == "margin 1.3, fit resize, boxes of dlib, flow by dis"
    other = of_depth.rpartition(" ")[0] + " 01234567"
    data = {"fingerprint": "x", "crops": other}
    run = drawn_run(tmp_path / "run", {"data": data}, modalities=("depth",))
    said = f"trained on crops made otherwise \\({other}\\) than those of modal \\({of_depth}\\)"
    with pytest.raises(StageError, match=rf"run was {said}: give a store whose crops are made alike"):
        quantize(run, modal_store, tmp_path / "out", scheme="fp16")
    data["crops"] = "margin 1.3, fit resize, boxes of dlib"  # of before this was noted
    older = drawn_run(tmp_path / "older", {"data": data}, modalities=("depth",))
    quantize(older, modal_store, tmp_path / "half", scheme="fp16")
    of_rgb = drawn_run(tmp_path / "rgb", {"data": data})
    quantize(of_rgb, modal_store, tmp_path / "rgb-half", scheme="fp16")
    options = {"backbone": "test_vit", "random_weights": True, "epochs": 0, "modality": "rgb+depth"}
    teach("dino", modal_store, tmp_path / "new", **options)
    assert Run(tmp_path / "new").info.data.crops == of_depth


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


def test_figures_on_crops_made_otherwise_are_noted(
    bundle_path: Path, student_run: Path, wider_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, name in ((student_run, "student"), (bundle_path, "test_byobnet-int8.onnx")):
        (found,) = evaluate(model, wider_store, out=tmp_path / name)
        note = f"{name}: trained on crops made otherwise (margin 1.3, fit resize, boxes of dlib) than those of wider"
        assert [line for line in found.notes if line.startswith(note)] == [f"{note} ({WIDER})."]
    distill(wider_store, tmp_path / "run", student_run, student="test_byobnet", epochs=1)
    assert f"note: {student_run}: trained on crops made otherwise" in capsys.readouterr().err
