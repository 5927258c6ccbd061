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
    least, untold = least_snr_db(one, {"swapped colours": swapped}, "fp32")
    assert compare(one, one + np.float32(3e-8), "fp32", least).passed and not untold
    parity = compare(one, other, "fp32", least)
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
        (1 / (1 + np.exp(-x))).astype(np.float32) for x in (logits, logits + rng.normal(0.0, 0.1, 4000))
    )
    other = expected[::-1]
    assert least_snr_db(expected, {"other": other}, "int8") == (15.0, [])
    least, untold = least_snr_db(expected, {"nearly": nearly, "other": other}, "fp32")
    assert (least, untold) == (pytest.approx(32.0, abs=0.2), [])
    assert least_snr_db(expected, {"nearly": nearly, "other": other}, "int8-qat") == (15.0, ["nearly"])


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "palette4"])
def test_a_mistake_that_changes_nothing_refuses_no_artifact(scheme):
    """Of grey pictures, swapped colours are the same pictures."""
    expected = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    least, untold = least_snr_db(expected, {"swapped colours": expected, "other": expected[::-1]}, scheme)
    assert compare(expected, expected + np.float32(1e-5), scheme, least).passed
    assert untold == ["swapped colours"]
    assert least_snr_db(expected, {"swapped colours": expected}, scheme) == (15.0, ["swapped colours"])
