"""Metrics and thresholds against brute force and scikit-learn's own definitions."""

import numpy as np
import pytest

from compress.metrics import choose_threshold, compute_metrics, eer_point


def _scores(seed: int, reals: int, fakes: int):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [reals, fakes])
    return labels, np.round(rng.normal(labels * 0.8, 1.0), 2)


def _rank_auc(labels, scores):
    """The share of (real, fake) pairs in the right order, ties counted half (Mann-Whitney)."""
    real, fake = scores[labels == 0][:, None], scores[labels == 1][None, :]
    return ((fake > real) + 0.5 * (fake == real)).mean()


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed):
    labels, scores = _scores(seed, 40, 60)
    metrics = compute_metrics(labels, scores, scores[:, None], 0.0)
    assert metrics.auc == pytest.approx(_rank_auc(labels, scores))
    assert metrics.frame_auc == pytest.approx(metrics.auc)
    assert metrics.accuracy == ((scores > 0) == (labels == 1)).mean()


@pytest.mark.parametrize("seed", range(5))
def test_eer_threshold_balances_both_errors(seed):
    labels, scores = _scores(seed, 70, 50)
    eer, threshold, rate = eer_point(labels, scores)
    gaps = []
    for candidate in np.unique(scores):
        for cut in (candidate - 1e-9, candidate + 1e-9):
            gaps.append(abs((scores[labels == 0] > cut).mean() - (scores[labels == 1] <= cut).mean()))
    false_positives = (scores[labels == 0] > threshold).mean()
    false_negatives = (scores[labels == 1] <= threshold).mean()
    assert abs(false_positives - false_negatives) == pytest.approx(min(gaps))
    assert eer == pytest.approx((false_positives + false_negatives) / 2)
    assert rate == pytest.approx(false_positives)


def test_threshold_of_separable_scores_is_between_them():
    threshold = choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]))
    assert 0.2 < threshold.value < 0.6
    assert threshold.false_positive_rate == 0.0
    assert threshold.rule.startswith("equal error rate (2 real validation clips; 1 % false positives needs 300)")


def test_one_per_cent_false_positives_from_300_reals_on():
    labels, scores = _scores(0, 1000, 10)
    threshold = choose_threshold(labels, scores)
    assert (scores[labels == 0] > threshold.value).mean() == threshold.false_positive_rate <= 0.01
    assert threshold.false_positive_rate > 0.005


def test_low_false_positive_rates_need_300_reals():
    labels, scores = _scores(0, 299, 50)
    assert compute_metrics(labels, scores, scores[:, None], 0.0).tpr_at_fpr == {"0.01": None, "0.05": None}
    labels, scores = _scores(0, 400, 50)
    rates = compute_metrics(labels, scores, scores[:, None], 0.0).tpr_at_fpr
    cut = np.sort(scores[labels == 0])[-5]  # at most 4 of 400 above
    assert rates["0.01"] == pytest.approx((scores[labels == 1] > cut).mean(), abs=0.05)


def test_frames_that_are_not_valid_do_not_count():
    frames = np.array([[0.1, np.nan], [0.2, 0.9], [0.8, np.nan], [0.7, 0.95]])
    labels = np.array([0, 0, 1, 1])
    metrics = compute_metrics(labels, np.nanmean(frames, axis=1), frames, 0.5)
    assert metrics.frame_auc == pytest.approx(
        _rank_auc(np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.9, 0.8, 0.7, 0.95]))
    )
