"""Settings of int8 chosen by measurement: observers, layers that stay in float32, the size of logits."""

import numpy as np
import pytest
import torch

from compress.calibration import calibrate, drawn_inputs, keep_in_float, logits, match_logits, one_pair
from compress.diagnosis import layer_noise
from compress.scoring import ClipScores, Takes
from models.pixels import PixelDetector
from models.run import Run
from tests.compress.small_network import small_detector, some_pictures


@pytest.fixture(scope="module")
def calibrated():
    return calibrate(small_detector(), [some_pictures(32, seed=2)], [(some_pictures(32),)])


@pytest.fixture(scope="module")
def with_outlier():
    """The same network but for one channel before the GELU, which reaches 1000 times as far and says nothing."""
    detector = small_detector()
    with torch.no_grad():
        detector.head.weight[:, 3] = 0.0
        detector.backbone.mix.bias[3] += 5000.0
    return calibrate(detector, [some_pictures(32, seed=2)], [(some_pictures(32),)])


def test_the_observer_of_most_logit_snr_is_taken(calibrated):
    assert set(calibrated.tried) == {"minmax", "moving-average", "histogram", "mse"}
    assert calibrated.tried[calibrated.observer] == max(calibrated.tried.values()) > 15
    with torch.inference_mode():
        exact, rounded = (network(some_pictures(32)) for network in (small_detector(), calibrated.program))
    d = [(z[:, 1] - z[:, 0]).double().numpy() for z in (exact, rounded)]
    snr = 10 * np.log10(np.var(d[0]) / np.mean((d[0] - d[1]) ** 2))
    assert calibrated.tried[calibrated.observer] == pytest.approx(snr, abs=0.05)


def test_the_observer_is_chosen_by_the_program_as_it_would_be_shipped(calibrated):
    detector, seen = small_detector(), []

    def shipped(program):
        seen.append(program)
        return detector if len(seen) == 1 else program  # as if a refitted layer made up for all that minmax costs

    found = calibrate(detector, [some_pictures(32, seed=2)], [(some_pictures(32),)], shipped)
    assert found.observer == "minmax" != calibrated.observer
    assert {name: snr for name, snr in found.tried.items() if name != "minmax"} == {
        name: pytest.approx(snr) for name, snr in calibrated.tried.items() if name != "minmax"
    }


def test_logits_are_matched_by_the_last_layer(calibrated):
    pictures, others, larger = some_pictures(256, seed=3), some_pictures(256, seed=5), small_detector()
    with torch.no_grad():
        larger.head.weight *= 1.25
        larger.head.weight[1, 2] *= 3.0
        larger.head.bias += torch.tensor([-0.3, 0.5])
        plain, matched = calibrated.keeping([]), calibrated.keeping([])
        match_logits(matched, logits(larger, [(pictures,)]), [(pictures,)])
        exact, before, after = (_fake_minus_real(network(others)) for network in (larger, plain, matched))
    line = np.polyval(np.polyfit(before, exact, 1), before)
    assert np.mean((after - exact) ** 2) < np.mean((line - exact) ** 2) / 4 < np.mean((before - exact) ** 2) / 40
    # Only the difference of the two logits says anything: what both have in common stays as it was.
    grown = matched.head.weight.sum(0) / plain.head.weight.sum(0)
    torch.testing.assert_close(grown, grown[:1].expand(8), rtol=1e-3, atol=0.0)


def test_where_int8_turned_the_order_round_there_is_nothing_to_match(calibrated):
    turned, program = small_detector(), calibrated.keeping([])
    with torch.no_grad():
        turned.head.weight *= -1.0
    few = [(some_pictures(64, seed=3),)]
    match_logits(program, logits(turned, few), few)
    assert torch.equal(program.head.weight, calibrated.detector.head.weight)


def _fake_minus_real(logits):
    return (logits[:, 1] - logits[:, 0]).double().numpy()


def _scores(network):
    """Let pictures stand in for a store's validation split: fakes are those that the float network calls so."""
    pictures = some_pictures(200, seed=4)
    with torch.inference_mode():
        expected, found = (_fake_minus_real(n(pictures)) for n in (small_detector(), network))
    labels = (expected > np.median(expected)).astype(np.int64)
    names = tuple(str(number) for number in range(len(labels)))
    return ClipScores(names, names, labels, ("",) * len(labels), tuple((n,) for n in names), whole=found)


def _kept(calibrated, least_auc):
    noises = layer_noise(calibrated.program, [(few,) for few in some_pictures(32).split(8)])
    return keep_in_float(noises, calibrated.keeping, _scores, least_auc)[0]


def test_every_layer_is_quantized_where_that_costs_nothing(calibrated):
    assert _kept(calibrated, 0.98) == []


def test_the_layer_with_an_outlier_stays_in_float(with_outlier):
    assert _scores(with_outlier.program).auc < 0.9 <= _scores(with_outlier.keeping(["mix"])).auc
    assert _kept(with_outlier, 0.9) == ["mix"]
    assert _kept(with_outlier, 0.0) == []


def test_where_no_layer_may_be_rounded_all_stay(calibrated):
    assert len(_kept(calibrated, 1.1)) == 5  # which nothing reaches


def test_one_pair_is_the_least_that_a_split_can_tell():
    names = tuple("abcde")
    scores = ClipScores(
        names, names, np.array([0, 0, 1, 1, 1]), names, tuple((n,) for n in names), whole=np.arange(5.0)
    )
    swapped = ClipScores(names, names, scores.labels, names, scores.identities, whole=np.array([0, 2.5, 2, 3, 4]))
    assert scores.auc - one_pair(scores) == pytest.approx(swapped.auc)


def test_calibration_takes_training_crops_of_both_labels(student_run, opened_store):
    run = Run(student_run)
    pixels_in = PixelDetector(run.detector(), run.info.preprocessing)
    pictures = torch.cat([one for (one,) in drawn_inputs(run, Takes(), opened_store, "train", 16, seed=0)])
    assert pictures.shape == (16, 3, 64, 64)
    crops = [torch.from_numpy(opened_store.pixels(clip)) for clip in opened_store.clips("train")]
    train = torch.cat([pixels_in.pictures(pixels) for pixels in crops])
    labels = np.repeat([c.label for c in opened_store.clips("train")], opened_store.frames)
    found = [int((train == picture).flatten(1).all(1).nonzero()[0]) for picture in pictures]
    assert sorted(labels[found]) == [0] * 8 + [1] * 8
