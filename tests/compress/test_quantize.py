"""Every scheme: what a quantized run computes, keeps and says."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.calibration import backbone_pictures, calibrate, drawn_inputs, logits
from compress.diagnosis import islands
from compress.fidelity import Diagnosis, logits_of, snr_db
from compress.graph import layers_of, traced
from compress.observers import OBSERVERS
from compress.quantize import quantize
from compress.runs import pixel_detector, takes
from compress.scoring import NotANumber, Takes
from compress.unquantized import VALIDATION, Unquantized
from data.store import ClipStore
from models.detector import Detector
from models.fusing import fuse
from models.run import Run
from models.schemes import dynamic_layers
from models.temporal import TemporalSettings
from resuming import Lock
from stage import StageError
from tests import tiny  # noqa: F401  (timm knows it from then on)
from tests.conftest import forget_hashes


def test_a_program_whose_layers_all_stay_computes_what_its_source_does(student_run, opened_store):
    source = Unquantized.load(Run(student_run), opened_store, 1.0, 0)
    calibrated = calibrate(source.fused, backbone_pictures(source.validation), source.validation)
    program = calibrated.keeping([*layers_of(traced(source.fused)).values()])
    assert source.snr_db(program) > 80 and islands(program) == {}


def test_a_run_of_which_nothing_would_be_int8_is_not_written(student_run, demo_store, tmp_path, monkeypatch):
    def keeping_all(noises, keeping, score, _):
        layers = [noise.layer for noise in noises]
        return layers, keeping(layers), score(keeping(layers))

    monkeypatch.setattr("compress.quantized.keep_in_float", keeping_all)  # as if no layer could be rounded
    with pytest.raises(StageError, match="only with every layer in float32: the run was not written"):
        quantize(student_run, demo_store, tmp_path / "int8", calibration_clips=8)
    monkeypatch.setattr(Unquantized, "least_auc", 2.0)
    with pytest.raises(StageError, match=r"fp16 takes the validation AUC of .+ to 0\.\d+, below the 2\.0000"):
        quantize(student_run, demo_store, tmp_path / "fp16", scheme="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["int8", "int8-qat", "fp16"])
def test_several_processes_are_refused(scheme, student_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StageError, match="quantize works in one process: start it without torchrun"):
        quantize(student_run, demo_store, tmp_path / "run", scheme=scheme)
    assert list(tmp_path.iterdir()) == []


def test_an_int8_run_says_what_was_measured(int8_run):
    diagnosis = Diagnosis.model_validate(json.loads((int8_run / "metrics.json").read_text())["diagnosis"])
    assert (
        (diagnosis.samples, diagnosis.per) == (24, "frame")
        and diagnosis.logit_snr_db > 15
        and set(diagnosis.observers) == set(OBSERVERS)
    )
    assert diagnosis.float_layers == []
    assert len(diagnosis.layers) > 10 and diagnosis.worst()[0].logit_noise > 0
    assert min(layer.snr_db for layer in diagnosis.layers) > 12


def test_an_int8_run_computes_what_it_did_when_it_was_saved(int8_run, student_run, opened_store):
    metrics = json.loads((int8_run / "metrics.json").read_text())
    validation = drawn_inputs(Run(student_run), Takes(), opened_store, "val", 64, seed=0)
    exact, reloaded = (logits(pixel_detector(Run(run)).network, validation) for run in (student_run, int8_run))
    assert snr_db(exact, reloaded) == pytest.approx(metrics["logit_snr_db"], abs=0.1)
    assert metrics["diagnosis"]["logit_snr_db"] == pytest.approx(metrics["logit_snr_db"], abs=0.1)


def _scores(run, *inputs):
    with torch.inference_mode():
        return pixel_detector(Run(run))(*map(torch.from_numpy, inputs)).numpy()


def test_fp16_is_half_as_large_and_rounds_weights_and_activations(student_run, demo_store, tmp_path, real_crops):
    quantize(student_run, demo_store, tmp_path / "half", scheme="fp16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    run, found = Run(tmp_path / "half"), _scores(tmp_path / "half", real_crops)
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert run.info.architecture.fused and metrics["val"]["auc"] and 30 < metrics["logit_snr_db"] < 100
    exact = _scores(student_run, real_crops)
    assert 0 < np.abs(found - exact).max() < 1e-2

    pictures = torch.from_numpy(real_crops).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.info.preprocessing.mean, run.info.preprocessing.std))
    normalized = (pictures / 255.0 - mean) / std
    network = fuse(Run(student_run).detector(), normalized).half()
    with torch.inference_mode():
        expected = network.head(network.backbone(normalized.half())).float().softmax(1)[:, 1]
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)


def test_autocast_computes_in_bfloat16_on_a_cpu(student_run, demo_store, tmp_path, real_crops):
    quantize(student_run, demo_store, tmp_path / "cast", scheme="autocast")
    pictures = pixel_detector(Run(student_run)).pictures(torch.from_numpy(real_crops))
    fused = fuse(Run(student_run).detector(), pictures)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        expected = fused(pictures).float().softmax(1)[:, 1].numpy()
    found = _scores(tmp_path / "cast", real_crops)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, _scores(student_run, real_crops), atol=1e-6)


def _of_rounded(value, weight):
    """Return what int8 gives of float32 [..., D] and [C, D]: weights per row, activations per token."""
    scales = [tensor.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127.5 for tensor in (weight, value)]
    weights, values = (
        (tensor / scale).round().clamp(-128, 127) for tensor, scale in zip((weight, value), scales, strict=True)
    )
    return values @ weights.T * scales[1] * scales[0].T


def test_int8_dynamic_rounds_the_linear_layers_of_a_teacher(teacher_run, demo_store, tmp_path, real_crops):
    quantize(teacher_run, demo_store, tmp_path / "dynamic", scheme="int8-dynamic", max_auc_drop=1.0)
    source, found = Run(teacher_run).detector(), pixel_detector(Run(tmp_path / "dynamic")).network
    layers = dynamic_layers(source)
    assert "backbone.blocks.0.attn.qkv" in layers and "head.0" in layers and "head.3" not in layers
    value = torch.randn(5, 7, source.embedding_size, generator=torch.Generator().manual_seed(3))
    exact, rounded = (network.backbone.blocks[0].attn.qkv for network in (source, found))
    with torch.inference_mode():
        given = rounded(value)
        expected = _of_rounded(value, exact.weight) + exact.bias
        error = (exact(value) - expected).square().mean()
        assert (given - expected).square().mean() < error / 4
        assert error / 2 < (given - exact(value)).square().mean() < error * 2
    snr = snr_db(*(logits_of(_scores(run, real_crops)) for run in (teacher_run, tmp_path / "dynamic")))
    assert 15 < snr < 100


def test_int8_dynamic_of_a_network_without_linear_layers_is_refused(student_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"has no linear layers but the one that gives the logits: .* --scheme int8"):
        quantize(student_run, demo_store, tmp_path / "dynamic", scheme="int8-dynamic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "fp16", "passes": 3}, "--scheme fp16 has no use for --passes: leave it out"),
        ({"scheme": "int8", "passes": 3}, "--scheme int8 has no use for --passes: leave it out"),
        ({"scheme": "autocast", "calibration_clips": 8}, "--scheme autocast has no use for --calibration-clips"),
    ],
)
def test_options_without_use_are_refused(student_run, demo_store, tmp_path, options, message):
    with pytest.raises(StageError, match=message):
        quantize(student_run, demo_store, tmp_path / "out", **options)


def test_a_run_names_the_store_that_its_threshold_is_of(student_run, demo_store, tmp_path):
    run = shutil.copytree(student_run, tmp_path / "run")
    told = json.loads((run / "model.json").read_text())
    told["data"] |= {"fingerprint": "of another store", "notes": ["Of another store."], "validation_persons": None}
    (run / "model.json").write_text(json.dumps(told))
    quantize(run, demo_store, tmp_path / "fp16", scheme="fp16")
    data, store = Run(tmp_path / "fp16").info.data, ClipStore(demo_store).info
    *notes, seen = data.notes
    assert (data.fingerprint, notes) == (store.fingerprint, ["Of another store.", *store.notes])
    assert re.fullmatch(
        r"(\d+) of \1 persons of the val split have names of persons in the training or validation of run: "
        r"weights or thresholds that were chosen on it, in \w+, and their figures may be too good\.", seen,
    )  # fmt: skip


def test_fp16_that_overflows_is_refused(drawn_run, demo_store, tmp_path):
    run = drawn_run(tmp_path / "source", backbone="test_byobnet")
    weights = load_file(run / "model.safetensors")
    weights["head.weight"] *= 1e7
    save_file(weights, run / "model.safetensors")
    forget_hashes(run)
    with pytest.raises(StageError, match="has values that fp16 cannot hold: give --scheme int8 or autocast"):
        quantize(run, demo_store, tmp_path / "half", scheme="fp16")


def test_fp16_that_overflows_on_another_validation_crop_is_refused(student_run, demo_store, tmp_path, monkeypatch):
    def overflowed(*_):
        raise NotANumber("the score of clip a is not a number")

    own = Unquantized.scores
    monkeypatch.setattr(
        Unquantized, "scores", lambda self, program: (own if program is self.fused else overflowed)(self, program)
    )
    with pytest.raises(StageError, match="has values that fp16 cannot hold: give --scheme int8 or autocast"):
        quantize(student_run, demo_store, tmp_path / "half", scheme="fp16")


def test_a_scheme_that_costs_more_than_allowed_is_not_written(student_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.unquantized.one_pair", lambda _: -2.0)
    with pytest.raises(StageError, match=r"fp16 takes the validation AUC of .* --max-auc-drop allows: the run was not"):
        quantize(student_run, demo_store, tmp_path / "half", scheme="fp16", max_auc_drop=-2.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "store_name"),
    [
        ({"backbone": "test_tiny", "temporal": TemporalSettings(width=16)}, "demo_store"),
        ({"backbone": "test_tiny", "modalities": ("rgb", "depth"), "head_hidden": 8}, "modal_store"),
    ],
    ids=["clip student", "two modalities"],
)
def test_int8_of_what_looks_at_more_than_one_picture(architecture, store_name, drawn_run, tmp_path, request):
    store = request.getfixturevalue(store_name)
    source = drawn_run(tmp_path / "source", **architecture)
    quantize(source, store, tmp_path / "int8", calibration_clips=24, max_auc_drop=1.0)
    exact, network = Run(source).detector(), pixel_detector(Run(tmp_path / "int8")).network
    assert isinstance(network, Detector)
    metrics = json.loads(Run(tmp_path / "int8").read("metrics.json"))
    diagnosis, looks = Diagnosis.model_validate(metrics["diagnosis"]), takes(Run(source).info)
    assert [layer.layer for layer in diagnosis.layers] == ["first", "second", "last"]
    assert diagnosis.logit_snr_db > 10 and diagnosis.per == looks.per
    validation = drawn_inputs(Run(source), looks, ClipStore(store), "val", VALIDATION[looks.per], seed=0)
    found = snr_db(logits(exact, validation), logits(network, validation))
    assert found == pytest.approx(metrics["logit_snr_db"], abs=0.5)


def test_two_commands_do_not_make_one_run(student_run, demo_store, tmp_path):
    with Lock(tmp_path / "run"), pytest.raises(StageError, match=r"run is being made by another process"):
        quantize(student_run, demo_store, tmp_path / "run")


@pytest.mark.parametrize("expected", [20.0, 190.0])
def test_logits_that_are_far_from_the_run_s_are_noted(expected, student_run, demo_store, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("compress.quantize.EXPECTED_SNR_DB", expected)
    quantize(student_run, demo_store, tmp_path / "fp16", "fp16")
    said = f"note: {expected:.0f} dB or more are expected of fp16\n"
    assert (said in capfd.readouterr().err) == (expected > 100)
