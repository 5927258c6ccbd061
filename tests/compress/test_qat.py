"""Quantization-aware training: what it trains is what int8 rounds and what is shipped."""

import json
import shutil

import pytest
import torch

from compress import training
from compress.calibration import calibrate
from compress.int8 import graph_of, observers_of
from compress.qat import OF_TEACHER, QatSettings, WeightRounding, as_trained, trainable, with_weights_of
from compress.quantize import quantize
from compress.runs import pixel_detector
from data.store import ClipStore
from models.run import Run
from stage import StageError
from tests import tiny  # noqa: F401  (timm knows it from then on)
from tests.compress.interrupted import InterruptedAfter
from tests.compress.small_network import small_detector, some_pictures


@pytest.fixture(scope="module")
def qat_run(student_run, demo_store, tmp_path_factory):
    """``student_run`` trained on for a pass with its values rounded."""
    out = tmp_path_factory.mktemp("qat") / "student-qat"
    quantize(student_run, demo_store, out, scheme="int8-qat", calibration_clips=24, max_auc_drop=1.0, passes=1)
    return out


def test_qat_trains_what_int8_rounds(qat_run, student_run, int8_run, real_crops):
    run, source = Run(qat_run), Run(student_run)
    metrics = json.loads((qat_run / "metrics.json").read_text())
    assert sorted(path.name for path in qat_run.iterdir()) == [
        "log", "metrics.json", "model.json", "model.safetensors", "quantization.json",
    ]  # fmt: skip
    assert run.info.scheme == "int8-qat" and [parent.name for parent in run.info.parents] == [source.path.name]
    steps = metrics["training"]["steps"]
    assert run.info.trained_steps == source.info.trained_steps + steps and len(metrics["training"]["passes"]) == 1
    assert metrics["training"]["loss"] == {"margin": 1.0} and metrics["training"]["passes"][0]["loss"] > 0
    assert metrics["diagnosis"]["logit_snr_db"] > 10 and metrics["val"]["auc"] > 0.5
    pictures = pixel_detector(source).pictures(torch.from_numpy(real_crops))
    with torch.inference_mode():
        moved = (run.detector().backbone(pictures) - Run(int8_run).detector().backbone(pictures)).abs().max()
    assert moved > 1e-4


def test_trained_weights_come_back_into_the_network(qat_parts):
    calibrated, program = qat_parts
    detector, graph = calibrated.detector, graph_of(program)
    for name, _, _ in list(observers_of(graph)):
        setattr(graph, name, torch.nn.Identity())
    for name, module in list(graph.named_modules()):
        if isinstance(module, WeightRounding):
            graph.set_submodule(name, torch.nn.Identity())
    pictures = some_pictures(8)
    with torch.inference_mode():
        found = with_weights_of(detector, program)(pictures)
        torch.testing.assert_close(found, program(pictures), rtol=1e-5, atol=1e-5)
        assert (found - detector(pictures)).abs().max() > 1e-2


@pytest.fixture
def qat_parts():
    """A network with batch norms, and its program, in which every weight was moved."""
    detector = small_detector()
    calibrated = calibrate(detector, [some_pictures(16, seed=2)], [(some_pictures(16),)])
    program = trainable(calibrated)
    generator = torch.Generator().manual_seed(0)
    parameters = list(program.parameters())
    assert all(parameter.requires_grad for parameter in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return calibrated, program


def test_what_is_shipped_is_what_was_trained(qat_parts):
    """Only folding batch norms again may round a value to its neighbour."""
    calibrated, program = qat_parts
    shipped = as_trained(calibrated, with_weights_of(calibrated.detector, program))
    pictures = some_pictures(16, seed=3)
    with torch.inference_mode():
        expected, found = program(pictures), shipped.program(pictures)
        before = calibrated.program(pictures)
    noise = (found - expected).std() / expected.std()
    assert noise < 0.02 < 0.2 < (before - expected).std() / expected.std()
    kept = [name for name, own in calibrated.tensors.items() if shipped.tensors[name] == own]
    assert 0 < len(kept) < len(calibrated.tensors)


@pytest.mark.parametrize(("own", "views", "epochs"), [(1, 1, 6), (4, 6, 1)])
def test_qat_looks_at_the_views_that_its_run_was_trained_on(student_run, opened_store, tmp_path, own, views, epochs):
    copy = shutil.copytree(student_run, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["training"]["views"]["views"] = own
    (copy / "metrics.json").write_text(json.dumps(metrics))
    lesson = QatSettings.of(Run(copy), None, opened_store, 6, 0)
    assert lesson.rule.views == views and lesson.passes // lesson.rule.views == epochs and lesson.of_itself


def test_training_changes_nothing_but_weights(qat_parts):
    _, program = qat_parts
    pictures = some_pictures(4)
    evaluated = program.eval()(pictures)
    assert torch.equal(program.train()(pictures), evaluated)
    evaluated.sum().backward()
    assert all(parameter.grad is not None for parameter in program.parameters())


def test_a_transformer_learns_to_be_int8(tiny_transformer, demo_store, tmp_path):
    """Eight crops are too few to match logits well: without more it stays below 20 dB. Training lowers the loss."""
    runs = {"int8": {"calibration_clips": 8}, "int8-qat": {"calibration_clips": 32, "passes": 4}}
    for scheme, options in runs.items():
        out = tmp_path / scheme
        quantize(tiny_transformer, demo_store, out, scheme=scheme, max_auc_drop=1.0, **options)
        metrics = json.loads((out / "metrics.json").read_text())
        found, best = metrics["logit_snr_db"], max(metrics["diagnosis"]["observers"].values())
        assert found > 22 if scheme == "int8-qat" else (found == pytest.approx(best) and found < 20)
    losses = [entry["loss"] for entry in metrics["training"]["passes"]]
    assert sum(losses[2:]) < 0.8 * sum(losses[:2])


def test_the_lesson_of_a_teacher_that_is_interrupted_ends_as_a_whole_one(
    student_run, teacher_run, demo_store, tmp_path, monkeypatch
):
    options = {"scheme": "int8-qat", "teacher": teacher_run, "calibration_clips": 8, "passes": 2, "max_auc_drop": 1.0}
    quantize(student_run, demo_store, tmp_path / "whole", **options)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "save_checkpoint", InterruptedAfter(1))
        quantize(student_run, demo_store, tmp_path / "resumed", **options)
    quantize(student_run, demo_store, tmp_path / "resumed", **options)
    whole, resumed = (Run(tmp_path / name) for name in ("whole", "resumed"))
    assert [parent.name for parent in whole.info.parents] == [student_run.name, teacher_run.name]
    assert json.loads(whole.read("metrics.json"))["training"]["loss"] == OF_TEACHER
    assert whole.read("quantization.json") == resumed.read("quantization.json")
    weights = [run.detector().state_dict() for run in (whole, resumed, Run(student_run))]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    moved = [not torch.equal(value, weights[2][name]) for name, value in weights[0].items() if name in weights[2]]
    assert sum(moved) > 3


def test_qat_says_where_it_cannot_go_on(student_run, demo_store, tmp_path):
    copy = shutil.copytree(student_run, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text())
    del metrics["training"]["views"]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(StageError, match="does not say on what it was trained: int8-qat cannot go on"):
        quantize(copy, demo_store, tmp_path / "qat", scheme="int8-qat", calibration_clips=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_teacher_that_cannot_look_at_the_run_s_views_is_refused_at_once(
    student_run, drawn_run, modal_store, tmp_path
):
    copy = shutil.copytree(student_run, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["training"]["views"]["forge"] = True
    (copy / "metrics.json").write_text(json.dumps(metrics))
    teacher = Run(drawn_run(tmp_path / "teacher", backbone="test_tiny", modalities=("depth",)))
    with pytest.raises(
        StageError, match=r"teacher cannot look at the views that .*run was trained on, which are forged"
    ):
        QatSettings.of(Run(copy), teacher, ClipStore(modal_store), 6, 0)


def test_the_training_of_a_refused_qat_run_is_kept_and_named(student_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.unquantized.one_pair", lambda _: -2.0)
    options = {"scheme": "int8-qat", "calibration_clips": 8, "passes": 1}
    with pytest.raises(
        StageError, match=r"its training is kept in .*\.qat\.unfinished: call again with a larger --max-"
    ):
        quantize(student_run, demo_store, tmp_path / "qat", max_auc_drop=-2.0, **options)
    monkeypatch.undo()
    quantize(student_run, demo_store, tmp_path / "qat", max_auc_drop=1.0, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["qat"]
