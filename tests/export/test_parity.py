"""The comparison behind the gate, against closed forms."""

import numpy as np
import pytest

from compress.fidelity import logits_of, snr_db
from export.parity import compare, least_snr_db


def test_logits_invert_the_logistic_function():
    logits = np.linspace(-9, 9, 19)
    np.testing.assert_allclose(logits_of((1 / (1 + np.exp(-logits))).astype(np.float32)), logits, rtol=1e-2)


def test_snr_of_known_noise():
    rng = np.random.default_rng(0)
    signal = rng.normal(5.0, 2.0, 100_000)
    assert snr_db(signal, signal + rng.normal(0.0, 0.2, 100_000)) == pytest.approx(20.0, abs=0.1)
    assert snr_db(signal, signal) == 200.0


def test_constant_offset_of_the_signal_is_no_signal():
    assert snr_db(np.array([100.0, 100.1]), np.array([100.1, 100.0])) < 0


@pytest.mark.parametrize(("shift", "passed"), [(5e-5, True), (2e-4, False)])
def test_fp32_tolerance(shift, passed):
    expected = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    parity = compare(expected, expected + np.float32(shift), "fp32")
    assert parity.passed is passed
    assert parity.max_difference == pytest.approx(shift, rel=0.01)


def test_saturated_scores_hide_no_other_network():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], 64)
    one, other, swapped = ((1 / (1 + np.exp(-signs * rng.uniform(9.5, 12, 64)))).astype(np.float32) for _ in range(3))
    assert np.abs(one - other).max() < 1e-4
    assert compare(one, one + np.float32(3e-8), "fp32", least_snr_db(one, [swapped])).passed
    parity = compare(one, other, "fp32", least_snr_db(one, [swapped]))
    assert not parity.passed and "logits are" in parity.failure


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_nan_fails(scheme):
    expected = np.array([0.2, 0.8], np.float32)
    assert not compare(expected, np.array([0.2, np.nan], np.float32), scheme).passed


def test_scores_without_variation_cannot_pass_int8():
    expected = np.full(8, 0.5, np.float32)
    assert not compare(expected, expected + np.float32(0.01), "int8").passed


def test_network_that_hardly_minds_a_mistake_is_held_to_more():
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.0, 4000)
    expected, nearly = (
        (1 / (1 + np.exp(-x))).astype(np.float32) for x in (logits, logits + rng.normal(0.0, 0.2, 4000))
    )
    assert least_snr_db(expected, [expected[::-1]]) == 15.0
    assert least_snr_db(expected, [nearly, expected[::-1]]) == pytest.approx(26.0, abs=0.2)
