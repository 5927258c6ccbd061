"""Accuracy figures of scores, computed by scikit-learn, with bootstrap intervals over persons.

A figure that the data cannot support is None, and ``unsupported`` holds the reason.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_curve
from sklearn.metrics import auc as area_under

from compress.auc import DIGITS, auc
from compress.bootstrap import (
    DRAWS,
    FEWEST_PERSONS,
    MOST_DRAWS,
    Identities,
    Labels,
    Values,
    persons_of_rarer,
    usable_draws,
)

if TYPE_CHECKING:
    from compress.scoring import ClipScores

RATES = (0.01, 0.05)
"""False-positive rates at which the true-positive rate is reported."""
FALSE_POSITIVES = 3
"""Least number of expected false positives of a rate: with fewer real videos, it rests on two of them or less."""
FEWEST_VIDEOS = {rate: math.ceil(FALSE_POSITIVES / rate) for rate in RATES}
"""Minimum of real videos by false-positive rate: 300 for 1 %, 60 for 5 %."""


class Threshold(BaseModel):
    """The score above which a verdict is "fake", and how it was set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(ge=-0.001, le=1.001)
    """The threshold; slightly below 0 or above 1 if all scores are on one side of it."""
    false_positive_rate: float = Field(ge=0, le=1)
    """Share of real validation clips above ``value``."""
    rule: str
    equal_error: float | None = None
    """Threshold at which the rates of false positives and false negatives on the same scores are nearest, whatever the
    rule; None in older runs."""


class Figures(BaseModel):
    """Figures of one set of scored things. ``eer``, ``accuracy`` and rates are shares in 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: int
    fake: int
    auc: float | None
    eer: float | None
    ap: float | None
    accuracy: float | None
    f1: float | None
    tpr_at_fpr: dict[str, float | None]
    """True-positive rate at 1 % ("0.01") and 5 % ("0.05") false positives."""
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap intervals by name of the figure: "auc", "tpr_at_fpr 0.05"."""
    unsupported: dict[str, str]
    """Why a figure is None, or why there are no "intervals", by name."""


class Metrics(BaseModel):
    """All figures of a model on a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    """Threshold of ``accuracy`` and ``f1``."""
    clip: Figures
    video: Figures
    """Figures of videos; a video's score is the mean over its valid frames, or over its clips for a clip model."""
    frame: Figures | None
    """Figures of frames; None for a model that scores whole clips."""
    methods: dict[str, Figures]
    """Figures of a forgery method's fake clips and all real clips, by method."""

    @property
    def auc(self) -> float | None:
        """The AUC of clips."""
        return self.clip.auc

    @property
    def auc_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the AUC of clips."""
        return self.clip.intervals.get("auc")

    @property
    def frame_auc(self) -> float | None:
        """The AUC of single frames."""
        return self.frame.auc if self.frame else None


def _midpoint_below(scores: Values, value: float) -> float:
    """Return the middle between ``value`` and the next lower score, so that "above" does not depend on rounding."""
    lower = scores[scores < value]
    return float((value + lower.max()) / 2) if len(lower) else float(value - 1e-6)


def _nearest_errors(fpr: Values, tpr: Values) -> tuple[int, float]:
    """Return the index of the ROC curve's point where both error rates are nearest, and their mean there."""
    nearest = int(np.argmin(np.abs(fpr - (1 - tpr))))
    return nearest, float((fpr[nearest] + 1 - tpr[nearest]) / 2)


def eer_point(labels: Labels, scores: Values) -> tuple[float, float, float]:
    """Return ``(eer, threshold, false_positive_rate)`` where false-positive and false-negative rate are nearest.

    labels: int [N], 1 = fake; scores: float [N]. Both labels must occur.
    """
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    nearest, eer = _nearest_errors(fpr, tpr)
    threshold = _midpoint_below(scores, float(thresholds[nearest])) if nearest else float(scores.max()) + 1e-6
    return eer, threshold, float(fpr[nearest])


def choose_threshold(labels: Labels, scores: Values, videos: int) -> Threshold:
    """Choose a threshold on validation scores: at most 1 % false positives from 300 real videos on, else the EER point.

    labels: int [N], 1 = fake, both must occur; scores: float [N]. videos: the number of videos of the real clips, as
    several clips of one video tell little more than one.
    """
    real = np.sort(scores[labels == 0])
    _, equal_error, rate = eer_point(labels, scores)
    value, reason = equal_error, ""
    if videos < FEWEST_VIDEOS[0.01]:
        reason = f"{videos} real validation videos; 1 % false positives needs {FEWEST_VIDEOS[0.01]}"
    elif not len(above := scores[scores > real[len(real) - 1 - len(real) // 100]]):
        reason = "1 % of the real validation clips have the highest score there is"
    else:
        value = _midpoint_below(scores, float(above.min()))
        rate = float((real > value).mean())
    rule = f"equal error rate ({reason})" if reason else "1 % false positives"
    return Threshold(value=value, false_positive_rate=rate, rule=rule, equal_error=equal_error)


def verdict_flips(
    scores: NDArray[np.floating[Any]], threshold: float, others: NDArray[np.floating[Any]], its_threshold: float
) -> float:
    """Return the share, 0..1, of items whose verdicts by two models differ.

    ``scores`` of one model and ``others`` of the other, float [N], each at its own threshold.
    """
    return float(((scores > threshold) != (others > its_threshold)).mean())


def _at_rates(fpr: Values, tpr: Values) -> dict[str, float]:
    """Return the largest true-positive rate whose false-positive rate is within each of RATES."""
    return {f"tpr_at_fpr {rate}": float(tpr[fpr <= rate].max()) for rate in RATES}


def point_figures(labels: Labels, scores: Values, threshold: float) -> dict[str, float]:
    """Return all figures by name for labels, int [N], which hold both labels, and scores, float [N]."""
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    verdicts = (scores > threshold).astype(np.int64)
    return {
        "auc": auc(labels, scores),
        "eer": _nearest_errors(fpr, tpr)[1],
        "ap": round(float(average_precision_score(labels, scores)), DIGITS),  # unrounded, it can slightly exceed 1
        "accuracy": float(accuracy_score(labels, verdicts)),
        "f1": float(f1_score(labels, verdicts)),
        **_at_rates(fpr, tpr),
    }


def weighted_figures(labels: Labels, scores: Values, threshold: float, weights: Values) -> dict[str, float]:
    """Return the figures of ``point_figures`` where each item counts as often as its weight in ``weights``, float [N].

    All come from one weighted ROC curve: scikit-learn's functions for average precision, accuracy and F1 would take
    four times as long, and a bootstrap calls this a thousand times.
    """
    fpr, tpr, _ = roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    fakes = labels == 1
    fake_weight, real_weight = weights[fakes].sum(), weights[~fakes].sum()
    precision = tpr[1:] * fake_weight / (tpr[1:] * fake_weight + fpr[1:] * real_weight)
    positives = scores > threshold
    true_positive_weight, positive_weight = weights[positives & fakes].sum(), weights[positives].sum()
    return {
        "auc": round(float(area_under(fpr, tpr)), DIGITS),
        "eer": _nearest_errors(fpr, tpr)[1],
        "ap": round(float(np.diff(tpr) @ precision), DIGITS),
        "accuracy": float(np.average(positives == fakes, weights=weights)),
        "f1": float(2 * true_positive_weight / (positive_weight + fake_weight)),
        **_at_rates(fpr, tpr),
    }


def _intervals(
    labels: Labels, scores: Values, threshold: float, identities: Identities
) -> tuple[dict[str, tuple[float, float]], str]:
    """Return the 95 % percentile intervals by figure and "", or no intervals and the reason."""
    persons = persons_of_rarer(labels, identities)
    if persons < FEWEST_PERSONS:
        return {}, f"needs {FEWEST_PERSONS} persons of each label, has {persons}"
    both_labels = len(np.unique(labels)) == 2
    resampled = []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for weights in usable_draws(labels, identities):
            if both_labels:
                resampled.append(weighted_figures(labels, scores, threshold, weights))
            else:
                correct = (scores > threshold) == (labels == 1)
                resampled.append({"accuracy": float(np.average(correct, weights=weights))})
    if len(resampled) < DRAWS:
        return {}, f"only {len(resampled)} of {MOST_DRAWS} draws of persons hold both labels"
    spans = {name: np.quantile([figures[name] for figures in resampled], (0.025, 0.975)) for name in resampled[0]}
    return {name: (float(low), float(high)) for name, (low, high) in spans.items()}, ""


def _unsupported(real: int, fake: int, videos: int) -> dict[str, str]:
    """Return the reasons, by figure, why ``real`` and ``fake`` items of ``videos`` real videos cannot support it."""
    rates = {f"tpr_at_fpr {rate}": fewest for rate, fewest in FEWEST_VIDEOS.items()}
    if not real or not fake:
        return dict.fromkeys(("auc", "eer", "ap", "f1", *rates), f"needs both labels: {real} real, {fake} fake")
    return {name: f"needs {least} real videos, has {videos}" for name, least in rates.items() if videos < least}


def compute_figures(
    labels: Labels, scores: Values, threshold: float, videos: int, identities: Identities | None = None
) -> Figures:
    """Return the figures that labels, int [N], and scores, float [N], support; ``videos``: the number of real videos.

    Intervals resample ``identities``, the persons of each item; there are none if it is None.
    """
    real, fake = int((labels == 0).sum()), int((labels == 1).sum())
    unsupported = _unsupported(real, fake, videos)
    if real and fake:
        all_figures = point_figures(labels, scores, threshold)
    else:
        all_figures = {"accuracy": float(accuracy_score(labels, scores > threshold))}
    spans, reason = ({}, "not resampled") if identities is None else _intervals(labels, scores, threshold, identities)
    if reason:
        unsupported["intervals"] = reason
    supported = {name: figure for name, figure in all_figures.items() if name not in unsupported}
    # Draws that all agree, as where the labels' scores do not overlap, do not show how certain a figure is.
    unsupported |= {
        f"interval of {name}": "all draws of persons agree"
        for name, (low, high) in spans.items()
        if name in supported and low == high
    }
    return Figures(
        real=real,
        fake=fake,
        **{name: supported.get(name) for name in ("auc", "eer", "ap", "accuracy", "f1")},
        tpr_at_fpr={str(rate): supported.get(f"tpr_at_fpr {rate}") for rate in RATES},
        intervals={name: span for name, span in spans.items() if name in supported and span[0] < span[1]},
        unsupported=unsupported,
    )


def _frame_figures(scores: "ClipScores", threshold: float) -> Figures | None:
    """Return the figures of valid frames, without intervals, which would take seconds; None for a clip model."""
    if scores.frames is None:
        return None
    valid = ~np.isnan(scores.frames)
    labels = np.broadcast_to(scores.labels[:, None], valid.shape)
    return compute_figures(labels[valid], scores.frames[valid], threshold, scores.real_videos)


def compute_metrics(scores: "ClipScores", threshold: float, intervals: bool = True) -> Metrics:
    """Return all figures at a threshold.

    ``intervals`` false leaves out the bootstrap, which takes a second per level and method on 500 clips.
    """
    persons, clips = scores.persons, scores.clips

    def figures(indices: NDArray[np.int64], values: Values) -> Figures:
        identities = [persons[index] for index in indices] if intervals else None
        return compute_figures(scores.labels[indices], values, threshold, scores.real_videos, identities)

    def method_figures(method: str) -> Figures:
        indices = np.flatnonzero((scores.labels == 0) | (np.array(scores.methods) == method))
        return figures(indices, clips[indices])

    clip_figures = figures(np.arange(len(clips)), clips)
    videos, means = scores.by_video()
    methods = sorted({method for method, label in zip(scores.methods, scores.labels, strict=True) if label})
    return Metrics(
        threshold=threshold,
        clip=clip_figures,
        video=clip_figures if len(videos) == len(clips) else figures(videos, means),
        frame=_frame_figures(scores, threshold),
        methods={methods[0]: clip_figures} if len(methods) == 1 else {name: method_figures(name) for name in methods},
    )
