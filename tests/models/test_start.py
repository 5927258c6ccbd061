"""Detectors before their first step: from scratch, from a file, from a run; what cannot be gone on from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from models.detector import Architecture
from models.run import Run
from models.start import Start
from models.temporal import TemporalSettings
from stage import StageError

SMALL = Architecture(backbone="test_byobnet", size=64)
RELU = Architecture(backbone="test_vit", size=64, activation="relu")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_is_the_same_start_and_another_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    starts = [Start.of(SMALL, None, random=True, seed=seed) for seed in (0, 0, 1)]
    one, again, other = (start.detector.state_dict() for start in starts)
    assert same(one, again)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert (starts[0].weights.source, starts[0].run) == ("random", None)
    assert "test_byobnet starts from random weights" in capfd.readouterr().err


def test_weights_of_a_file_fit_a_network_without_its_gelus(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model("test_vit", img_size=64, num_classes=0).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    start = Start.of(RELU, tmp_path / "weights.safetensors", random=False, seed=0)
    assert same(start.detector.backbone.state_dict(), state)
    assert (start.weights.source, start.weights.name, start.run) == ("file", "weights.safetensors", None)


def test_relus_stand_where_gelus_stood() -> None:
    gelu = Start.of(RELU.model_copy(update={"activation": None}), None, random=True, seed=0).detector.eval()
    relu = Start.of(RELU, None, random=True, seed=0).detector.eval()
    assert same(gelu.state_dict(), relu.state_dict())
    for block in gelu.backbone.blocks:
        block.mlp.act.register_forward_hook(lambda _, given, __: given[0].clamp(min=0))
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(relu(pictures), gelu(pictures))


def test_relu_is_refused_where_there_is_no_gelu() -> None:
    with pytest.raises(StageError, match="--activation relu: test_byobnet has no GELU to replace: leave it out"):
        Start.of(SMALL.model_copy(update={"activation": "relu"}), None, random=True, seed=0)


@pytest.mark.parametrize("backbone", ["test_vit", "levit_128s"])
def test_crops_of_a_size_that_a_backbone_refuses_are_told(backbone: str) -> None:
    architecture = SMALL.model_copy(update={"backbone": backbone, "size": 100})
    with pytest.raises(StageError, match=rf"{backbone} cannot take crops of 100 px .*: prepare the store with another"):
        Start.of(architecture, None, random=True, seed=0)


def test_a_run_is_gone_on_from_with_its_very_weights(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    path = drawn_run(tmp_path / "run", backbone="test_byobnet")
    start = Start.of(SMALL, path, random=False, seed=1)
    assert same(start.detector.state_dict(), load_file(path / "model.safetensors"))
    info = Run(path).info
    assert (start.weights, start.trained_steps) == (info.weights, info.trained_steps) and info.trained_steps > 0
    assert start.run is not None and start.run.as_parent() == Run(path).as_parent()


@pytest.mark.parametrize("other", [{"head_hidden": 8}, {"temporal": TemporalSettings(width=8)}])
def test_a_head_of_another_kind_starts_at_random_and_that_is_said(
    other: dict[str, object], drawn_run: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = drawn_run(tmp_path / "run", backbone="test_byobnet")
    architecture = SMALL.model_copy(update=other)
    start = Start.of(architecture, path, random=False, seed=0)
    fresh = Start.of(architecture, None, random=True, seed=0)
    trained = {name: t for name, t in load_file(path / "model.safetensors").items() if name.startswith("backbone.")}
    assert same({f"backbone.{name}": t for name, t in start.detector.backbone.state_dict().items()}, trained)
    assert same(start.detector.head.state_dict(), fresh.detector.head.state_dict())
    assert f"the head of {path} is of another kind: the new one starts at random" in capfd.readouterr().err


def test_a_run_of_other_crops_fits_where_weights_do_not_depend_on_them(
    drawn_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = drawn_run(tmp_path / "convolutions", backbone="test_byobnet", size=32)
    start = Start.of(SMALL, path, random=False, seed=0)
    assert same(start.detector.state_dict(), load_file(path / "model.safetensors"))
    tagged = SMALL.model_copy(update={"backbone": "test_byobnet.r160_in1k"})
    start = Start.of(tagged, drawn_run(tmp_path / "untagged", backbone="test_byobnet"), random=False, seed=0)
    assert start.detector.architecture.backbone == "test_byobnet.r160_in1k"
    path = drawn_run(tmp_path / "transformer", size=32)
    with pytest.raises(StageError, match="transformer takes 32 px crops, and its weights fit no other size"):
        Start.of(RELU, path, random=False, seed=0)


def test_runs_that_cannot_be_gone_on_from_are_refused(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    def refused(message: str, path: Path) -> None:
        with pytest.raises(StageError, match=message):
            Start.of(SMALL, path, random=False, seed=0)

    refused("vit holds a test_vit, and --weights is to start a test_byobnet", drawn_run(tmp_path / "vit"))
    fused = drawn_run(tmp_path / "fused", {"scheme": "int8"}, backbone="test_byobnet", fused=True)
    refused(r"fused holds a fused test_byobnet \(int8\), and --weights is to start a test_byobnet", fused)
    untrained = drawn_run(tmp_path / "untrained", {"trained_steps": 0}, backbone="test_byobnet")
    refused("untrained is nothing to start from: random weights, never trained", untrained)
    refused("none is not a file: give the weights as .safetensors", tmp_path / "none")
    refused("has no model.safetensors and no pytorch_model.bin", tmp_path)
    with pytest.raises(StageError, match="--weights and --random-weights exclude each other: give one of them"):
        Start.of(SMALL, fused, random=True, seed=0)


def test_a_head_of_more_modalities_takes_nothing_over(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    path = drawn_run(tmp_path / "run", backbone="test_byobnet", head_hidden=8)
    architecture = SMALL.model_copy(update={"head_hidden": 8, "modalities": ("rgb", "depth")})
    start = Start.of(architecture, path, random=False, seed=0)
    fresh = Start.of(architecture, None, random=True, seed=0)
    assert same(start.detector.head.state_dict(), fresh.detector.head.state_dict())


@pytest.mark.parametrize(
    ("source", "target", "was"),
    [
        ({"modalities": ("depth",)}, {}, "modality depth"),
        (
            {"temporal": TemporalSettings(width=8, pooling="max")},
            {"temporal": TemporalSettings(width=8)},
            "pooling max",
        ),
        ({"temporal": TemporalSettings(width=8, heads=4)}, {"temporal": TemporalSettings(width=8)}, "heads 4"),
    ],
)
def test_a_head_of_equal_shapes_that_was_made_for_something_else_is_not_taken(
    source: dict[str, object],
    target: dict[str, object],
    was: str,
    drawn_run: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = drawn_run(tmp_path / "run", backbone="test_byobnet", **source)
    start = Start.of(SMALL.model_copy(update=target), path, random=False, seed=0)
    assert f"the head of {path} is of another kind ({was}): the new one starts at random" in capfd.readouterr().err
    assert start.trained_steps == 0
    again = Start.of(SMALL.model_copy(update=source), path, random=False, seed=0)
    assert again.trained_steps == Run(path).info.trained_steps > 0


def test_an_activation_that_changes_is_said(
    drawn_run: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = drawn_run(tmp_path / "run", backbone="test_vit", activation="relu")
    Start.of(RELU.model_copy(update={"activation": None}), path, random=False, seed=0)
    assert f"{path} has relu, and goes on with GELU" in capfd.readouterr().err


def test_a_run_is_gone_on_from_with_its_normalization(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    path = drawn_run(tmp_path / "run", backbone="test_byobnet")
    model = json.loads((path / "model.json").read_text())
    model["preprocessing"]["mean"] = [0.1, 0.2, 0.3]
    (path / "model.json").write_text(json.dumps(model))
    assert Start.of(SMALL, path, random=False, seed=0).preprocessing.mean == (0.1, 0.2, 0.3)
