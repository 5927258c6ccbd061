"""Teachers: of every modality, of real faces alone, never trained; scores from cached features and from pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from compress.compute import prepare_compute
from compress.distill import distill, load_teacher
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
from tests.conftest import note_anew

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


def test_frozen_part_of_a_teacher_keeps_its_starting_weights(demo_store, tmp_path):
    options = {"backbone": "test_vit", "random_weights": True, "unfreeze": "1", "seed": 3}
    teach("dino", demo_store, tmp_path / "start", epochs=0, **options)
    teach("dino", demo_store, tmp_path / "taught", epochs=1, **options)
    start, taught = (Run(tmp_path / name).detector().state_dict() for name in ("start", "taught"))
    moved = {name for name in start if not torch.equal(start[name], taught[name])}
    blocks = len(Run(tmp_path / "start").detector().backbone.blocks)
    assert f"backbone.blocks.{blocks - 1}.mlp.fc1.weight" in moved
    assert all(name.startswith((f"backbone.blocks.{blocks - 1}.", "backbone.norm.", "head.")) for name in moved)


def test_run_that_was_never_trained_says_so(demo_store, tmp_path):
    teach("dino", demo_store, tmp_path / "run", backbone="test_vit", random_weights=True, epochs=0)
    assert Run(tmp_path / "run").info.meaningless.startswith("random weights, never trained")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] is None
    with pytest.raises(StageError, match=r"has nothing to teach: random weights, never trained"):
        load_teacher(tmp_path / "run", ClipStore(demo_store), "frame")


def test_a_head_that_was_never_trained_says_so_whatever_its_backbone_knows(demo_store, teacher_run, tmp_path):
    weights, run = tmp_path / "vit.safetensors", tmp_path / "of-file"
    save_file(timm.create_model("test_vit", img_size=64).state_dict(), weights)
    teach("dino", demo_store, run, backbone="test_vit", weights=weights, epochs=0)
    assert Run(run).info.meaningless.startswith("a random head, never trained")
    with pytest.raises(StageError, match=r"has nothing to teach: a random head, never trained"):
        load_teacher(run, ClipStore(demo_store), "frame")
    teach("dino", demo_store, tmp_path / "of-run", backbone="test_vit", weights=teacher_run, epochs=0)
    assert Run(tmp_path / "of-run").info.meaningless is None


@pytest.fixture(scope="module")
def reals_store(demo_corpus, tmp_path_factory):
    """ClipStore of real videos alone, with forgeries in validation and test."""
    out = tmp_path_factory.mktemp("reals") / "store"
    prepare([demo_corpus], out, methods="youtube", frames=4, size=64, ratios="0.5,0.25,0.25", forge=2, workers=2)
    return out


def test_a_teacher_learns_from_real_faces_alone(reals_store, tmp_path, capfd):
    with pytest.raises(StageError, match=r"6 real and 0 fake clips and needs both: .* or train with --forge"):
        teach("dino", reals_store, tmp_path / "run", backbone="test_vit", random_weights=True)
    options = {"backbone": "test_vit", "random_weights": True, "forge": True, "views": 2, "epochs": 1}
    teach("dino", reals_store, tmp_path / "run", **options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rule = {"views": 2, "augment": "ten", "forge": True, "weakest_forgery": 0.25, "seed": 0}
    assert metrics["training"]["views"] == rule | {"count": 24, "replaced_clips": [], "lost_files": []}
    assert (metrics["test"]["clip"]["real"], metrics["test"]["clip"]["fake"]) == (3, 6)


def test_a_second_teacher_finds_the_frozen_features(reals_store, tmp_path, capfd):
    options = {"backbone": "test_vit", "random_weights": True, "forge": True, "epochs": 1, "cache": tmp_path / "cache"}
    teach("dino", reals_store, tmp_path / "one", **options)
    features = next((tmp_path / "cache").glob("frozen-features-*/block-0.npy"))
    written = features.stat().st_mtime_ns
    teach("dino", reals_store, tmp_path / "two", learning_rate=1e-4, **options)
    assert features.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of the training and the validation split
    capfd.readouterr()
    teach("dino", reals_store, tmp_path / "three", seed=1, **options)
    assert "frozen features are computed: those that are kept differ in weights, rule\n" in capfd.readouterr().err


def test_a_damaged_clip_is_replaced_and_named(reals_store, tmp_path):
    store = shutil.copytree(reals_store, tmp_path / "store")
    clip = ClipStore(store).clips("train", both=False)[0]
    file = store / "clips" / f"{clip.video_id}.parquet"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"IDAT", b"IDAX"))
    note_anew(store)
    lost = store / "clips" / f"{ClipStore(store).clips('train', both=False)[1].video_id}.parquet"
    lost.write_bytes(lost.read_bytes()[:-1])
    options = {"backbone": "test_vit", "random_weights": True, "forge": True, "epochs": 1, "unfreeze": "all"}
    teach("dino", store, tmp_path / "run", **options)
    views = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["views"]
    assert (views["replaced_clips"], views["lost_files"]) == ([clip.clip_id], [lost.name])
