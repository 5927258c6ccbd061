"""Settings of int8 chosen by measurement: observers, layers that stay in float32, the size of logits."""

import copy
import json

import numpy as np
import pytest
import torch

from compress.diagnosis import layer_noise
from compress.fidelity import Diagnosis
from compress.observers import OBSERVERS
from compress.quantize import auc_of, calibrate, keep_in_float, match_logits, one_pair, quantize
from compress.runs import pixel_detector
from compress.scoring import ClipScores
from models.run import Run
from tests.compress.small_network import small_detector, some_pictures


@pytest.fixture(scope="module")
def calibrated():
    return calibrate(small_detector(), [some_pictures(32, seed=2)], [some_pictures(32)])


@pytest.fixture(scope="module")
def with_outlier():
    """The same network but for one channel before the GELU, which reaches 1000 times as far and says nothing."""
    detector = small_detector()
    with torch.no_grad():
        detector.head.weight[:, 3] = 0.0
        detector.backbone.mix.bias[3] += 5000.0
    return calibrate(detector, [some_pictures(32, seed=2)], [some_pictures(32)])


def test_the_observer_of_most_logit_snr_is_taken(calibrated):
    assert set(calibrated.tried) == {"minmax", "moving-average", "histogram", "mse"}
    assert calibrated.tried[calibrated.observer] == max(calibrated.tried.values()) > 15
    with torch.inference_mode():
        exact, rounded = (network(some_pictures(32)) for network in (small_detector(), calibrated.simulated(["head"])))
    d = [(z[:, 1] - z[:, 0]).double().numpy() for z in (exact, rounded)]
    snr = 10 * np.log10(np.var(d[0]) / np.mean((d[0] - d[1]) ** 2))
    assert calibrated.tried[calibrated.observer] == pytest.approx(snr, abs=0.05)


def test_logits_are_matched_by_the_last_layer(calibrated):
    pictures, larger, calibrated = some_pictures(64, seed=3), small_detector(), copy.deepcopy(calibrated)
    with torch.no_grad():
        larger.head.weight *= 1.25
        larger.head.bias += torch.tensor([-0.3, 0.5])
        before, exact = (_fake_minus_real(network(pictures)) for network in (calibrated.simulated(["head"]), larger))
        match_logits(calibrated, larger, ["head"], [pictures])
        after = _fake_minus_real(calibrated.simulated(["head"])(pictures))
    slope, shift = np.polyfit(before, exact, 1)
    np.testing.assert_allclose(after, slope * before + shift, atol=1e-4)
    assert 1.1 < slope < 1.4 and np.mean(after - exact) == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_array_equal(np.argsort(after), np.argsort(before))


def _fake_minus_real(logits):
    return (logits[:, 1] - logits[:, 0]).double().numpy()


@pytest.fixture
def scored(monkeypatch):
    """Let pictures stand in for a store's validation split: fakes are those that the float network calls so."""

    def scores(network, *_):
        pictures = some_pictures(200, seed=4)
        with torch.inference_mode():
            expected, found = (_fake_minus_real(n(pictures)) for n in (small_detector(), network))
        labels = (expected > np.median(expected)).astype(np.int64)
        names = tuple(str(number) for number in range(len(labels)))
        methods = ("",) * len(labels)
        return ClipScores(names, names, labels, methods, tuple((n,) for n in names), whole=found)

    monkeypatch.setattr("compress.quantize.validation_scores", scores)
    return scores


def _kept(calibrated, least_auc):
    noises = layer_noise(calibrated.simulated(["head"]), some_pictures(32).split(8))
    return keep_in_float(calibrated, noises, None, None, least_auc)


@pytest.mark.usefixtures("scored")
def test_all_but_the_last_layer_is_quantized_where_that_costs_nothing(calibrated):
    assert _kept(calibrated, 0.98) == ["head"]


def test_the_layer_with_an_outlier_stays_in_float(with_outlier, scored):
    assert (
        auc_of(scored(with_outlier.simulated(["head"])))
        < 0.9
        <= auc_of(scored(with_outlier.simulated(["backbone.mix", "head"])))
    )
    assert _kept(with_outlier, 0.9) == ["backbone.mix", "head"]
    assert _kept(with_outlier, 0.0) == ["head"]


@pytest.mark.usefixtures("scored")
def test_where_no_layer_may_be_rounded_all_stay(calibrated):
    assert len(_kept(calibrated, 1.1)) == 6  # which nothing reaches


def test_a_run_whose_layers_all_stay_computes_what_its_source_does(
    student_run, demo_store, tmp_path, monkeypatch, real_crops
):
    monkeypatch.setattr("compress.quantize.one_pair", lambda _: -2.0)
    quantize(student_run, demo_store, tmp_path / "kept", calibration_clips=8, max_auc_drop=-2.0)
    diagnosis = Diagnosis.model_validate(json.loads((tmp_path / "kept" / "metrics.json").read_text())["diagnosis"])
    assert diagnosis.float_layers == [noise.layer for noise in diagnosis.layers] and diagnosis.islands == {}
    assert diagnosis.logit_snr_db > 80
    kept, source = (
        pixel_detector(Run(path))(torch.from_numpy(real_crops)) for path in (tmp_path / "kept", student_run)
    )
    torch.testing.assert_close(kept, source, rtol=1e-3, atol=1e-4)


def test_one_pair_is_the_least_that_a_split_can_tell():
    names = tuple("abcde")
    scores = ClipScores(
        names, names, np.array([0, 0, 1, 1, 1]), names, tuple((n,) for n in names), whole=np.arange(5.0)
    )
    swapped = ClipScores(names, names, scores.labels, names, scores.identities, whole=np.array([0, 2.5, 2, 3, 4]))
    assert auc_of(scores) - one_pair(scores) == pytest.approx(auc_of(swapped))


def test_an_int8_run_says_what_was_measured(int8_run):
    diagnosis = Diagnosis.model_validate(json.loads((int8_run / "metrics.json").read_text())["diagnosis"])
    assert diagnosis.crops == 24 and diagnosis.logit_snr_db > 15 and set(diagnosis.observers) == set(OBSERVERS)
    assert diagnosis.float_layers == ["head"] == [diagnosis.layers[-1].layer]
    assert len(diagnosis.layers) > 10 and diagnosis.worst()[0].logit_noise > 0
