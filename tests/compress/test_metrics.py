"""Metrics and thresholds against brute force, scikit-learn on replicated rows, and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score, roc_curve

from compress.bootstrap import person_draws
from compress.metrics import (
    Metrics,
    choose_threshold,
    compute_figures,
    compute_metrics,
    eer_point,
    weighted_figures,
)
from compress.scoring import ClipScores


def _scores(seed: int, reals: int, fakes: int):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [reals, fakes])
    return labels, np.round(rng.normal(labels * 0.8, 1.0), 1)  # with many ties


def _clip_scores(labels, frames, **known) -> ClipScores:
    count = len(labels)
    clip_ids = tuple(f"clip{index}" for index in range(count))
    defaults = {
        "video_ids": clip_ids,
        "methods": tuple("swap" if label else "original" for label in labels),
        "identities": tuple((f"person{index}",) for index in range(count)),
    }
    return ClipScores(clip_ids=clip_ids, labels=np.array(labels), frames=np.array(frames), **(defaults | known))


def _rank_auc(labels, scores):
    """The share of (real, fake) pairs in the right order, ties counted half (Mann-Whitney)."""
    real, fake = scores[labels == 0][:, None], scores[labels == 1][None, :]
    return ((fake > real) + 0.5 * (fake == real)).mean()


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed):
    labels, scores = _scores(seed, 40, 60)
    metrics = _clip_scores(labels, scores[:, None]).metrics(0.0, intervals=False)
    assert metrics.auc == pytest.approx(_rank_auc(labels, scores))
    assert metrics.frame_auc == pytest.approx(metrics.auc)
    assert metrics.clip.accuracy == ((scores > 0) == (labels == 1)).mean()
    assert metrics.threshold == 0.0


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
    assert compute_figures(labels, scores, 0.0, 300).eer == eer


def test_threshold_of_separable_scores_is_between_them():
    threshold = choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]), 2)
    assert 0.2 < threshold.value < 0.6
    assert threshold.false_positive_rate == 0.0
    assert threshold.rule.startswith("equal error rate (2 real validation videos; 1 % false positives needs 300)")


def test_one_per_cent_false_positives_from_300_reals_on():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [1000, 10])
    scores = 1 / (1 + np.exp(-rng.normal(labels, 1.0)))
    threshold = choose_threshold(labels, scores, 1000)
    assert (scores[labels == 0] > threshold.value).mean() == threshold.false_positive_rate <= 0.01
    assert threshold.false_positive_rate == 0.01  # all that are allowed
    assert np.abs(scores - threshold.value).min() > 0  # no verdict hangs on rounding


@pytest.mark.parametrize("reals", [300, 399, 400, 1000])
def test_threshold_at_one_per_cent_finds_what_the_roc_curve_does(reals):
    labels, scores = _scores(3, reals, 200)
    scores = 1 / (1 + np.exp(-scores))
    threshold = choose_threshold(labels, scores, reals)
    found = (scores[labels == 1] > threshold.value).mean()
    assert found == compute_figures(labels, scores, 0.0, reals).tpr_at_fpr["0.01"]


def test_clips_and_frames_of_few_videos_support_no_low_rate():
    rng = np.random.default_rng(0)
    labels, frames = np.repeat([0, 1], [300, 300]), rng.random((600, 20))
    scores = replace(_clip_scores(labels, frames), video_ids=tuple(str(number // 20) for number in range(600)))
    assert scores.real_videos == 15
    metrics = scores.metrics(0.5, intervals=False)
    for figures in (metrics.clip, metrics.video, metrics.frame):
        assert figures.unsupported["tpr_at_fpr 0.01"] == "needs 300 real videos, has 15"
    rule = "equal error rate (15 real validation videos; 1 % false positives needs 300)"
    assert scores.choose_threshold().rule == rule


def test_a_low_rate_that_no_threshold_reaches_is_said():
    labels = np.repeat([0, 1], [400, 20])
    scores = np.r_[np.linspace(0, 0.9, 395), np.ones(25)]
    threshold = choose_threshold(labels, scores, 400)
    assert threshold.rule == "equal error rate (1 % of the real validation clips have the highest score there is)"
    assert threshold.value < 1 and threshold.false_positive_rate == pytest.approx(5 / 400)


@pytest.mark.parametrize(
    ("reals", "missing"),
    [
        (59, {"tpr_at_fpr 0.01": "needs 300 real videos, has 59", "tpr_at_fpr 0.05": "needs 60 real videos, has 59"}),
        (60, {"tpr_at_fpr 0.01": "needs 300 real videos, has 60"}),
        (300, {}),
    ],
)
def test_true_positive_rates_are_the_best_within_the_rate_and_need_three_expected_errors(reals, missing):
    labels, scores = _scores(1, reals, 50)
    figures = compute_figures(labels, scores, 0.0, reals)
    assert figures.unsupported == missing | {"intervals": "not resampled"}
    for rate in (0.01, 0.05):
        cuts = [cut for cut in np.append(scores, np.inf) if (scores[labels == 0] >= cut).mean() <= rate]
        best = max((scores[labels == 1] >= cut).mean() for cut in cuts)
        expected = None if f"tpr_at_fpr {rate}" in missing else pytest.approx(best)
        assert figures.tpr_at_fpr[str(rate)] == expected


@pytest.mark.parametrize("count", [43, 47, 51, 58, 67])
def test_scores_in_perfect_order_have_figures_of_one_exactly(count):
    labels = np.repeat([0, 1], count)
    figures = compute_figures(labels, np.linspace(0, 1, 2 * count), 0.5, count)
    assert (figures.auc, figures.ap) == (1.0, 1.0)


def test_frames_that_are_not_valid_do_not_count():
    frames = np.array([[0.1, np.nan], [0.2, 0.9], [0.8, np.nan], [0.7, 0.95]])
    metrics = _clip_scores([0, 0, 1, 1], frames).metrics(0.5)
    seen = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.9, 0.8, 0.7, 0.95])
    assert metrics.frame_auc == pytest.approx(_rank_auc(*seen))
    assert (metrics.frame.real, metrics.frame.fake, metrics.clip.real, metrics.clip.fake) == (3, 3, 2, 2)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_counts_accuracy_and_a_reason_for_everything_else(label):
    scores = np.array([0.2, 0.4, 0.6])
    metrics = _clip_scores([label] * 3, scores[:, None]).metrics(0.5)
    clip, counts = metrics.clip, f"{3 - 3 * label} real, {3 * label} fake"
    assert (clip.real, clip.fake) == (3 - 3 * label, 3 * label)
    assert clip.accuracy == pytest.approx(1 / 3 if label else 2 / 3)
    assert (clip.auc, clip.eer, clip.ap, clip.f1) == (None,) * 4
    assert clip.tpr_at_fpr == {"0.01": None, "0.05": None}
    figures = ("auc", "eer", "ap", "f1", "tpr_at_fpr 0.01", "tpr_at_fpr 0.05")
    reasons = dict.fromkeys(figures, f"needs both labels: {counts}")
    assert clip.unsupported == reasons | {"intervals": "needs 10 persons of each label, has 3"}
    assert set(metrics.methods) == ({"swap"} if label else set())


def test_a_video_s_score_is_the_mean_of_its_clips():
    frames = np.array([[0.0], [0.5], [0.375], [0.125], [0.75]])
    scores = _clip_scores([0, 0, 1, 1, 1], frames, video_ids=("a", "a", "b", "b", "c"))
    video = scores.metrics(0.3).video
    means, labels = np.array([0.25, 0.25, 0.75]), np.array([0, 1, 1])
    assert (video.real, video.fake) == (1, 2)
    assert video.auc == pytest.approx(roc_auc_score(labels, means))
    assert video.accuracy == pytest.approx(accuracy_score(labels, means > 0.3))


def test_each_method_s_fakes_stand_against_all_reals():
    labels, scores = _scores(3, 30, 50)
    methods = ("original",) * 15 + ("webcam",) * 15 + ("swap",) * 20 + ("reenact",) * 30
    metrics = _clip_scores(labels, scores[:, None], methods=methods).metrics(0.4, intervals=False)
    assert set(metrics.methods) == {"swap", "reenact"}
    for method, first, last in (("swap", 30, 50), ("reenact", 50, 80)):
        rows = np.r_[0:30, first:last]
        figures = metrics.methods[method]
        assert (figures.real, figures.fake) == (30, last - first)
        assert figures.auc == pytest.approx(roc_auc_score(labels[rows], scores[rows]))
        assert figures.f1 == pytest.approx(f1_score(labels[rows], scores[rows] > 0.4))


def test_weights_are_products_of_how_often_each_person_was_drawn():
    draws = person_draws([("a",), ("b",), ("a", "b"), ("b", "b"), ("c",)], np.random.default_rng(0))
    weights = np.array([next(draws) for _ in range(4000)])
    a, b, both, twice, c = weights.T
    assert (a + b + c == 3).all()
    np.testing.assert_array_equal(both, a * b)
    np.testing.assert_array_equal(twice, b)
    # Multinomial(3; 1/3, 1/3, 1/3): mean 1, covariance -1/3, so E[ab] = 1 - 1/3.
    np.testing.assert_allclose(weights.mean(0), [1, 1, 2 / 3, 1, 1], atol=0.05)


def test_weighted_figures_by_hand():
    labels, scores, weights = np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.3, 0.9]), np.array([2.0, 1.0, 1.0, 3.0])
    figures = weighted_figures(labels, scores, 0.4, weights)
    assert figures["auc"] == pytest.approx((1 * 2 + 3 * 2 + 3 * 1) / 12)  # (0.3 > 0.1), (0.9 > 0.1), (0.9 > 0.5)
    assert figures["accuracy"] == pytest.approx((2 + 3) / 7)
    assert figures["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert figures["ap"] == pytest.approx(3 / 4 * 1 + 1 / 4 * 4 / 5)


@pytest.mark.parametrize("seed", range(4))
def test_weights_count_as_replicated_rows(seed):
    labels, scores = _scores(seed, 60, 40)
    identities = [(str(index),) for index in range(60)] + [(str(index), str(index + 1)) for index in range(40)]
    weights = next(person_draws(identities, np.random.default_rng(seed)))
    many, values = np.repeat(labels, weights.astype(int)), np.repeat(scores, weights.astype(int))
    fpr, tpr, _ = roc_curve(many, values, drop_intermediate=False)
    assert weighted_figures(labels, scores, 0.4, weights) == pytest.approx(
        {
            "auc": roc_auc_score(many, values),
            "eer": eer_point(many, values)[0],
            "ap": average_precision_score(many, values),
            "accuracy": accuracy_score(many, values > 0.4),
            "f1": f1_score(many, values > 0.4),
            "tpr_at_fpr 0.01": tpr[fpr <= 0.01].max(),
            "tpr_at_fpr 0.05": tpr[fpr <= 0.05].max(),
        }
    )


def test_interval_is_of_persons_and_not_of_clips():
    persons, clips_each, share = 100, 5, 0.7
    correct = np.repeat(np.arange(persons) < share * persons, clips_each)
    identities = [(str(index // clips_each),) for index in range(persons * clips_each)]
    figures = compute_figures(
        np.zeros(len(correct), np.int64), np.where(correct, 0.1, 0.9), 0.5, len(correct), identities
    )
    low, high = figures.intervals["accuracy"]
    # A person's clips are all right or all wrong: as many independent draws as there are persons.
    half = 1.96 * (share * (1 - share) / persons) ** 0.5
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.015)


def test_intervals_hold_the_point_and_are_the_same_each_time():
    labels, scores = _scores(0, 70, 80)
    clips = _clip_scores(labels, scores[:, None])
    metrics = clips.metrics(0.4)
    assert set(metrics.clip.intervals) == {"auc", "eer", "ap", "accuracy", "f1", "tpr_at_fpr 0.05"}
    assert all(low < getattr(metrics.clip, name, low) < high for name, (low, high) in metrics.clip.intervals.items()
               if " " not in name)  # fmt: skip
    assert metrics.auc_interval == metrics.clip.intervals["auc"]
    assert compute_metrics(clips, 0.4) == metrics
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics
    bare = clips.metrics(0.4, intervals=False)
    assert bare.clip.intervals == {} and bare.clip.auc == metrics.clip.auc


def test_few_persons_of_one_label_have_no_interval() -> None:
    labels, scores = np.repeat([0, 1], [60, 20]), np.random.default_rng(0).random(80)
    many_reals = [(f"r{number}",) for number in range(60)]
    for fakes, expected in ((3, "needs 10 persons of each label, has 3"), (10, None)):
        persons = [*many_reals, *((f"f{number % fakes}",) for number in range(20))]
        figures = compute_figures(labels, scores, 0.5, 60, persons)
        assert figures.unsupported.get("intervals") == expected
        assert ("auc" in figures.intervals) == (expected is None)


def test_labels_that_do_not_overlap_have_no_interval_of_one_point() -> None:
    persons = [(str(number),) for number in range(40)]
    figures = compute_figures(np.repeat([0, 1], 20), np.linspace(0.1, 0.9, 40), 0.5, 20, persons)
    assert figures.auc == 1.0 and "auc" not in figures.intervals
    assert figures.unsupported["interval of auc"] == "all draws of persons agree"


def test_videos_of_unknown_persons_count_as_persons_of_their_own():
    labels, scores = _scores(0, 12, 12)
    clips = replace(_clip_scores(labels, scores[:, None]), identities=((),) * 24)
    assert "auc" in clips.metrics(0.4).clip.intervals
    few = replace(clips, video_ids=tuple(str(index // 3) for index in range(24)))
    assert few.metrics(0.4).clip.unsupported["intervals"] == "needs 10 persons of each label, has 4"


def test_draws_that_seldom_hold_both_classes_give_no_interval():
    identities = [(str(index),) for index in range(10)] + [tuple(map(str, range(10)))]
    labels = np.array([0] * 10 + [1])
    figures = compute_figures(labels, np.linspace(0, 1, 11), 0.5, 11, identities)
    assert figures.intervals == {} and figures.auc == 1.0
    assert figures.unsupported["intervals"].endswith("of 10000 draws of persons hold both labels")
