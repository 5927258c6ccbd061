"""Teachers of every modality: what trains from cached features scores as the run does from pixels; what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.compute import prepare_compute
from compress.distill import distill
from compress.features import Cut, Features
from compress.runs import pixel_detector, takes, torch_scorer
from compress.scoring import collect, score_split
from compress.teach import modalities_of, teach
from data.prepare import prepare
from data.store import ClipStore
from data.views import ViewRule, Views
from export.export import export
from models.freezing import freeze
from models.run import Run
from stage import StageError

TINY = {"backbone": "test_vit", "random_weights": True, "epochs": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def several(modal_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of frames that looks at depth and flow."""
    out = tmp_path_factory.mktemp("several") / "run"
    teach("dino", modal_store, out, modality="flow+depth", unfreeze="1", views=2, **TINY)
    return out


@pytest.fixture(scope="module")
def megatron(modal_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of clips."""
    out = tmp_path_factory.mktemp("megatron") / "run"
    teach("megatron", modal_store, out, batch_size=4, **TINY | {"epochs": 2})
    return out


@pytest.mark.parametrize(
    ("which", "unfreeze"), [("several", "1"), ("several", "all"), ("megatron", "0"), ("megatron", "all")]
)
def test_features_score_as_pixels_do(
    which: str, unfreeze: str, modal_store: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The cache keeps half precision; what is not cached is exact."""
    run, store = Run(request.getfixturevalue(which)), ClipStore(modal_store)
    pixels_in = pixel_detector(run).eval()
    frozen, top = freeze(pixels_in.network.backbone, unfreeze)
    cut = Cut(pixels_in.network, pixels_in, frozen, top, unfreeze)
    looked_at = takes(run.info)
    features = Features(cut, Views(store, ViewRule(), "val", looked_at.modalities), prepare_compute("fp32"), tmp_path)
    with torch.inference_mode():
        found = collect(features.score, store.clips("val"), store.frames, "score", looked_at.per)
    expected = score_split(torch_scorer(pixels_in, torch.device("cpu")), store, "val", looked_at)
    np.testing.assert_allclose(found.clips, expected.clips, atol=1e-5 if unfreeze == "all" else 2e-3)
    assert len(list(tmp_path.iterdir())) == (0 if unfreeze == "all" else 2)


def test_what_a_run_looks_at_is_in_its_model(several: Path, megatron: Path) -> None:
    assert Run(several).info.architecture.modalities == ("depth", "flow")
    info = Run(megatron).info
    assert (info.architecture.modalities, info.architecture.per) == (("rgb", "depth"), "clip")
    metrics = json.loads((megatron / "metrics.json").read_text())
    assert metrics["test"]["frame"] is None
    assert metrics["cost"]["per"] == "clip"
    speed = metrics["training"]["speed"]
    assert set(speed["step_ms"]) == {"fp32", "bfloat16"} or "no fast 16-bit type" in speed["reason"]
    assert list((megatron / "log").glob("events.out.tfevents.*"))


def test_runs_that_no_phone_can_feed_are_refused(
    several: Path, megatron: Path, modal_store: Path, tmp_path: Path
) -> None:
    for run, looks in ((several, "depth\\+flow frames"), (megatron, "rgb\\+depth clips")):
        with pytest.raises(StageError, match=rf"looks at {looks}, and a phone has rgb frames: distill it"):
            export([run], modal_store, tmp_path / "bundle")
    with pytest.raises(StageError, match="scores clips: a frame student learns from a teacher of frames, teach dino"):
        distill(modal_store, tmp_path / "student", megatron)


def test_a_student_learns_from_modalities_that_it_does_not_see(
    several: Path, modal_store: Path, tmp_path: Path
) -> None:
    distill(modal_store, tmp_path / "student", several, student="test_byobnet", epochs=1)
    assert Run(tmp_path / "student").info.architecture.modalities == ("rgb",)


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [("dino", None, ("rgb",)), ("dino", "flow+rgb", ("rgb", "flow")), ("megatron", None, ("rgb", "depth"))],
)
def test_modalities_come_in_one_order(family: str, text: str | None, expected: tuple[str, ...]) -> None:
    assert modalities_of(family, text) == expected


def test_what_cannot_be_taught_is_one_line(
    demo_store: Path, demo_corpus: Path, modal_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(StageError, match="--modality heat: give rgb, depth or flow, or several as depth\\+flow"):
        teach("dino", demo_store, out, modality="heat", **TINY)
    with pytest.raises(StageError, match="--pooling joins the frames of a clip, which megatron does: leave it out"):
        teach("dino", demo_store, out, pooling="max", **TINY)
    with pytest.raises(StageError, match="--modality rgb: megatron looks at rgb\\+depth; teach dino takes any"):
        teach("megatron", modal_store, out, modality="rgb", **TINY)
    with pytest.raises(StageError, match="holds no depth: prepare it with --modalities rgb,depth"):
        teach("megatron", demo_store, out, **TINY)
    with pytest.raises(StageError, match=r"--forge forges rgb alone: .* prepare the store with --forge N"):
        teach("megatron", modal_store, out, forge=True, **TINY)
    prepare([demo_corpus], tmp_path / "single", frames=1, size=32, ratios="0.5,0.25,0.25", max_videos=4)
    with pytest.raises(StageError, match="holds single pictures, and megatron looks at clips"):
        teach("megatron", tmp_path / "single", out, **TINY)
    with pytest.raises(StageError, match=r"--batch-size 6 cannot be cut .*: give a multiple of 4"):
        teach("dino", demo_store, out, batch_size=6, accumulate=2, **TINY)
    for nothing_to_keep in ({"unfreeze": "all"}, {"epochs": 0}):
        with pytest.raises(StageError, match="--cache keeps what frozen layers say: leave it out where none is frozen"):
            teach("dino", demo_store, out, cache=tmp_path / "cache", **TINY | nothing_to_keep)
