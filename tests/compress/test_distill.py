"""Students of every kind: what they look at, learn from and start from, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress import training
from compress.distill import distill
from compress.runs import pixel_detector, takes, torch_scorer
from compress.scoring import score_split
from data.prepare import prepare
from data.store import ClipStore
from models.detector import gelus
from models.megatron import MegatronSettings
from models.run import Run
from models.temporal import TemporalSettings
from stage import StageError
from tests.compress.interrupted import InterruptedAfter

QUICK = {"student": "test_byobnet", "epochs": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def depth_teacher(drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of frames that looks at depth alone."""
    return drawn_run(tmp_path_factory.mktemp("depth") / "run", modalities=("depth",))


@pytest.fixture(scope="module")
def megatron(drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of clips."""
    settings = MegatronSettings(feed_forward=16)
    return drawn_run(tmp_path_factory.mktemp("megatron") / "run", modalities=("rgb", "depth"), megatron=settings)


@pytest.fixture(scope="module")
def clip_student(megatron: Path, modal_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of clips that imitates the teacher's clips and frames."""
    out = tmp_path_factory.mktemp("clip") / "student"
    loss = "classification,kl,margin,embedding-cosine,dense,angle"
    distill(modal_store, out, megatron, kind="clip", loss=loss, **QUICK)
    return out


@pytest.fixture(scope="module")
def relu_student(demo_store: Path, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer without GELUs that went on from its teacher, by feature maps too."""
    out = tmp_path_factory.mktemp("relu") / "student"
    options = QUICK | {"student": "test_vit", "activation": "relu", "weights": str(teacher_run)}
    distill(demo_store, out, teacher_run, loss="classification,kl,dense,embedding-cosine", ema=0.9, **options)
    return out


class Asked:
    """Notes the modality of every picture that is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modalities: set[str] = set()
        pixels = ClipStore.pixels

        def noted(store: ClipStore, clip: object, frames: object = None, modality: str = "rgb") -> object:
            self.modalities.add(modality)
            return pixels(store, clip, frames, modality)

        monkeypatch.setattr(ClipStore, "pixels", noted)


def test_an_rgb_student_of_a_depth_teacher_never_looks_at_depth(
    depth_teacher: Path, modal_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, cache = Asked(monkeypatch), tmp_path / "cache"
    distill(modal_store, tmp_path / "first", depth_teacher, cache=cache, **QUICK)
    assert asked.modalities == {"rgb", "depth"}  # the teacher's
    asked.modalities.clear()
    distill(modal_store, tmp_path / "second", depth_teacher, cache=cache, **QUICK)
    assert asked.modalities == {"rgb"}
    info = Run(tmp_path / "first").info
    assert info.architecture.modalities == ("rgb",)
    assert [parent.sha256 for parent in info.parents] == [Run(depth_teacher).sha256]
    first, second = (load_file(tmp_path / out / "model.safetensors") for out in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_may_look_at_what_its_teacher_does_not(
    teacher_run: Path, modal_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    distill(modal_store, tmp_path / "run", teacher_run, modality="depth", loss="kl", live_teacher=True, **QUICK)
    assert asked.modalities == {"rgb", "depth"}
    assert Run(tmp_path / "run").info.architecture.modalities == ("depth",)


def test_a_student_of_labels_alone_has_no_parents(demo_store: Path, tmp_path: Path) -> None:
    distill(demo_store, tmp_path / "run", loss="classification=0.5", **QUICK)
    info, metrics = Run(tmp_path / "run").info, json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (info.kind, info.parents, info.trained_steps) == ("student", [], 3)
    assert metrics["training"]["loss"] == {"classification": 0.5}


def test_a_clip_student_scores_clips_of_rgb(clip_student: Path, megatron: Path, modal_store: Path) -> None:
    run, store = Run(clip_student), ClipStore(modal_store)
    assert run.info.architecture.per == "clip"
    assert run.info.architecture.modalities == ("rgb",)
    assert run.info.architecture.temporal == TemporalSettings()
    assert [parent.name for parent in run.info.parents] == [megatron.name]
    metrics = json.loads((clip_student / "metrics.json").read_text())
    assert (metrics["cost"]["per"], metrics["test"]["frame"]) == ("clip", None)
    assert metrics["training"]["steps"] == 3  # 6 real clips, 2 of them a batch
    found = score_split(torch_scorer(pixel_detector(run), torch.device("cpu")), store, "test", takes(run.info))
    detector, pixels_in = run.detector(), pixel_detector(run)
    with torch.no_grad():
        expected = [
            detector(pixels_in.pictures(torch.from_numpy(store.pixels(clip))[None]), torch.from_numpy(clip.valid)[None])
            for clip in store.clips("test")
        ]
    probability = torch.cat(expected).softmax(1)[:, 1].double()
    torch.testing.assert_close(torch.from_numpy(found.clips), probability, atol=1e-5, rtol=0)


def test_a_relu_student_has_no_gelu_left_and_goes_on_from_a_run(relu_student: Path, teacher_run: Path) -> None:
    run = Run(relu_student)
    assert run.info.architecture.activation == "relu"
    names = [type(module).__name__ for module in run.detector().backbone.modules()]
    assert gelus(run.detector().backbone) == []
    assert names.count("ReLU") == len(gelus(Run(teacher_run).detector().backbone)) == 6
    assert not any("GELU" in name for name in names)
    assert run.info.weights == Run(teacher_run).info.weights
    assert run.info.trained_steps == json.loads(run.read("metrics.json"))["training"]["steps"]  # its head is new
    assert [parent.name for parent in run.info.parents] == [teacher_run.name]


def test_projectors_and_the_average_of_an_interrupted_student_go_on(
    demo_store: Path, drawn_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = drawn_run(tmp_path / "teacher")
    options = QUICK | {"loss": "kl,embedding-kl,embedding-cosine,dense", "epochs": 2, "ema": 0.9}
    distill(demo_store, tmp_path / "whole", teacher, cache=tmp_path / "cache", **options)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
        patched.setattr(training, "save_checkpoint", InterruptedAfter(4))
        distill(demo_store, tmp_path / "run", teacher, cache=tmp_path / "cache", **options)
    distill(demo_store, tmp_path / "run", teacher, cache=tmp_path / "cache", **options)
    whole, run = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "run"))
    assert all(torch.equal(whole[name], run[name]) for name in whole)


def refused(message: str, *given: object, **options: object) -> None:
    with pytest.raises(StageError, match=message):
        distill(*given, **QUICK | options)


def test_losses_and_teachers_that_do_not_go_together_are_refused(
    demo_store: Path, teacher_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    message = r"--loss kl, embedding-kl imitates a teacher: give --teacher, or --loss classification$"
    refused(message, demo_store, out)
    message = r"--loss classification=2 asks nothing of .*teacher: leave --teacher out, or add a loss that imitates it"
    refused(message, demo_store, out, teacher_run, loss="classification=2")
    refused("--loss 'feature' is unknown: give some of classification, kl, ", demo_store, out, loss="feature")
    refused("--loss dense trains no classifier", demo_store, out, teacher_run, loss="dense")
    assert list(tmp_path.iterdir()) == []


def test_teachers_that_cannot_teach_are_refused(
    demo_store: Path, modal_store: Path, depth_teacher: Path, megatron: Path, drawn_run: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    refused("holds no depth: prepare it with --modalities rgb,depth", demo_store, out, depth_teacher)
    message = "scores clips: a frame student learns from a teacher of frames, teach dino"
    refused(message, modal_store, out, megatron)
    longer = shutil.copytree(megatron, tmp_path / "longer")
    model = json.loads((longer / "model.json").read_text())
    model["data"]["frames"] = 20
    (longer / "model.json").write_text(json.dumps(model))
    refused("longer was trained on clips of 20 frames, and ", modal_store, out, longer, kind="clip")
    message = "scores frames: a clip student learns from a teacher of clips, teach megatron"
    refused(message, modal_store, out, depth_teacher, kind="clip")
    untrained = drawn_run(tmp_path / "untrained", {"trained_steps": 0})
    refused("untrained has nothing to teach: random weights, never trained", demo_store, out, untrained)
    rounded = drawn_run(tmp_path / "rounded", {"scheme": "int8"})
    refused(r"is quantized \(int8\): distill from the run that it came from", demo_store, out, rounded)
    small = drawn_run(tmp_path / "small", size=32)
    refused(r"small takes 32 px crops, .* holds 64 px", demo_store, out, small)
    assert not out.exists()


def test_a_clip_student_needs_clips(demo_corpus: Path, tmp_path: Path) -> None:
    prepare([demo_corpus], tmp_path / "photos", frames=1, size=32, ratios="0.5,0.25,0.25", max_videos=4)
    message = "holds single pictures: a clip student needs clips; prepare videos, or --kind frame"
    refused(message, tmp_path / "photos", tmp_path / "run", loss="classification", kind="clip")


@pytest.mark.parametrize("options", [{"batch_size": 8, "accumulate": 4}, {"batch_size": 2}])
def test_relations_of_two_samples_are_refused(
    demo_store: Path, teacher_run: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(StageError, match="compare the samples of a part of a batch, which here has 2"):
        distill(demo_store, tmp_path / "out", teacher_run, loss="kl,angle", **QUICK, **options)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_nothing_would_use_is_refused(demo_store: Path, teacher_run: Path, tmp_path: Path) -> None:
    text = "--cache keeps what a teacher says: leave it out with --live-teacher and without --teacher"
    with pytest.raises(StageError, match=text):
        distill(demo_store, tmp_path / "out", teacher_run, live_teacher=True, cache=tmp_path / "cache", **QUICK)
    with pytest.raises(StageError, match=text):
        distill(demo_store, tmp_path / "out", loss="classification", cache=tmp_path / "cache", **QUICK)


def test_options_of_a_teacher_and_of_labels_without_them_are_refused(
    demo_store: Path, teacher_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="--live-teacher asks a teacher at every step: give --teacher, or leave it"):
        distill(demo_store, tmp_path / "out", loss="classification", live_teacher=True, **QUICK)
    with pytest.raises(StageError, match="--balance weights weighs labels in the loss classification: add it to"):
        distill(demo_store, tmp_path / "out", teacher_run, loss="kl", balance="weights", **QUICK)
    assert not list(tmp_path.iterdir())
