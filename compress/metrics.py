"""Accuracy figures from scores, through scikit-learn, with intervals that resample persons.

What the data cannot support is None, and ``unsupported`` says why.
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
    FEWEST_IDENTITIES,
    MOST_DRAWS,
    Identities,
    Labels,
    Values,
    persons_of_rarer,
    usable_draws,
)

if TYPE_CHECKING:
    from compress.scoring import ClipScores

REALS_FOR_LOW_FPR = 300
"""Below this many real videos a rate of 1 % false positives rests on two or fewer of them."""
RATES = (0.01, 0.05)
"""False-positive rates at which the true-positive rate is told."""


class Threshold(BaseModel):
    """The score above which a verdict is "fake", and how it was set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(ge=-0.001, le=1.001)
    """A little beyond 0 or 1 where no score is beyond it."""
    false_positive_rate: float = Field(ge=0, le=1)
    """Share of real validation clips above it."""
    rule: str
    equal_error: float | None = None
    """Where false positives and false negatives are nearest on the same scores, whatever the rule; older runs do not
    say."""


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
    """95 % bootstrap intervals by figure: "auc", "tpr_at_fpr 0.05"."""
    unsupported: dict[str, str]
    """Why a figure, or "intervals", is not given."""


class Metrics(BaseModel):
    """All figures of a model on a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    """At which ``accuracy`` and ``f1`` hold."""
    clip: Figures
    video: Figures
    """A video's score is the mean over its valid frames, or of a clip model over its clips."""
    frame: Figures | None
    """None for a model that scores whole clips."""
    methods: dict[str, Figures]
    """By method of forgery: its fake clips against all real ones."""

    @property
    def auc(self) -> float | None:
        """The AUC of clips."""
        return self.clip.auc

    @property
    def auc_interval(self) -> tuple[float, float] | None:
        """Its 95 % interval."""
        return self.clip.intervals.get("auc")

    @property
    def frame_auc(self) -> float | None:
        """The AUC of single frames."""
        return self.frame.auc if self.frame else None


def _midpoint_below(scores: Values, value: float) -> float:
    """Return the middle between ``value`` and the next lower score, so that "above" does not hang on rounding."""
    lower = scores[scores < value]
    return float((value + lower.max()) / 2) if len(lower) else float(value - 1e-6)


def _nearest_errors(fpr: Values, tpr: Values) -> tuple[int, float]:
    """Return the point of a ROC curve where both error rates are nearest, and their mean there."""
    nearest = int(np.argmin(np.abs(fpr - (1 - tpr))))
    return nearest, float((fpr[nearest] + 1 - tpr[nearest]) / 2)


def eer_point(labels: Labels, scores: Values) -> tuple[float, float, float]:
    """Return ``(eer, threshold, false_positive_rate)`` where false positives and false negatives are nearest.

    labels: int [N], 1 = fake; scores: float [N]. Both labels must occur.
    """
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    nearest, eer = _nearest_errors(fpr, tpr)
    threshold = _midpoint_below(scores, float(thresholds[nearest])) if nearest else float(scores.max()) + 1e-6
    return eer, threshold, float(fpr[nearest])


def choose_threshold(labels: Labels, scores: Values, videos: int) -> Threshold:
    """Set a threshold on validation scores: at most 1 % false positives from 300 real videos on, else the EER point.

    videos: those of the real clips; several clips of one tell little more than one.
    """
    real = np.sort(scores[labels == 0])
    _, equal_error, rate = eer_point(labels, scores)
    value, why_not = equal_error, ""
    if videos < REALS_FOR_LOW_FPR:
        why_not = f"{videos} real validation videos; 1 % false positives needs {REALS_FOR_LOW_FPR}"
    elif not len(above := scores[scores > real[len(real) - 1 - len(real) // 100]]):
        why_not = "1 % of the real validation clips have the highest score there is"
    else:
        value = _midpoint_below(scores, float(above.min()))
        rate = float((real > value).mean())
    rule = f"equal error rate ({why_not})" if why_not else "1 % false positives"
    return Threshold(value=value, false_positive_rate=rate, rule=rule, equal_error=equal_error)


def verdict_flips(
    scores: NDArray[np.floating[Any]], threshold: float, others: NDArray[np.floating[Any]], its_threshold: float
) -> float:
    """Return the share of items whose verdict differs, scores float [N] each, each model's at its own threshold."""
    return float(((scores > threshold) != (others > its_threshold)).mean())


def _at_rates(fpr: Values, tpr: Values) -> dict[str, float]:
    """Return the largest true-positive rate within each of RATES."""
    return {f"tpr_at_fpr {rate}": float(tpr[fpr <= rate].max()) for rate in RATES}


def point_figures(labels: Labels, scores: Values, threshold: float) -> dict[str, float]:
    """Return every figure by name, of labels int [N] that hold both classes and scores float [N]."""
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    verdicts = (scores > threshold).astype(np.int64)
    return {
        "auc": auc(labels, scores),
        "eer": _nearest_errors(fpr, tpr)[1],
        "ap": round(float(average_precision_score(labels, scores)), DIGITS),  # 1 and a rounding error of all in order
        "accuracy": float(accuracy_score(labels, verdicts)),
        "f1": float(f1_score(labels, verdicts)),
        **_at_rates(fpr, tpr),
    }


def weighted_figures(labels: Labels, scores: Values, threshold: float, weights: Values) -> dict[str, float]:
    """Return the same figures of items that count ``weights`` times each, float [N].

    All come from one weighted ROC curve: scikit-learn's functions for average precision, accuracy and F1 would take
    four times as long, and a bootstrap calls this a thousand times.
    """
    fpr, tpr, _ = roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    fakes = labels == 1
    of_fake, of_real = weights[fakes].sum(), weights[~fakes].sum()
    precision = tpr[1:] * of_fake / (tpr[1:] * of_fake + fpr[1:] * of_real)
    called = scores > threshold
    hits, calls = weights[called & fakes].sum(), weights[called].sum()
    return {
        "auc": round(float(area_under(fpr, tpr)), DIGITS),
        "eer": _nearest_errors(fpr, tpr)[1],
        "ap": round(float(np.diff(tpr) @ precision), DIGITS),
        "accuracy": float(np.average(called == fakes, weights=weights)),
        "f1": float(2 * hits / (calls + of_fake)),
        **_at_rates(fpr, tpr),
    }


def _intervals(
    labels: Labels, scores: Values, threshold: float, identities: Identities
) -> tuple[dict[str, tuple[float, float]], str]:
    """Return 95 % percentile intervals of every figure, or none and the reason."""
    persons = persons_of_rarer(labels, identities)
    if persons < FEWEST_IDENTITIES:
        return {}, f"needs {FEWEST_IDENTITIES} identities of each label, has {persons}"
    both = len(np.unique(labels)) == 2
    found = []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for weights in usable_draws(labels, identities):
            correct = np.average((scores > threshold) == (labels == 1), weights=weights)
            found.append(weighted_figures(labels, scores, threshold, weights) if both else {"accuracy": correct})
    if len(found) < DRAWS:
        return {}, f"only {len(found)} of {MOST_DRAWS} draws of identities hold both classes"
    spans = {name: np.quantile([figures[name] for figures in found], (0.025, 0.975)) for name in found[0]}
    # Where no draw differs, as between labels that do not overlap, the draws say nothing of how sure a figure is.
    return {name: (float(low), float(high)) for name, (low, high) in spans.items() if low < high}, ""


def _unsupported(real: int, fake: int, videos: int) -> dict[str, str]:
    """Return the figures that so many items, the real ones of so many videos, cannot support, and why."""
    rates = {f"tpr_at_fpr {rate}": math.ceil(3 / rate) for rate in RATES}  # fewer than 3 false positives tell little
    if not real or not fake:
        return dict.fromkeys(("auc", "eer", "ap", "f1", *rates), f"needs both classes: {real} real, {fake} fake")
    return {name: f"needs {least} real videos, has {videos}" for name, least in rates.items() if videos < least}


def compute_figures(
    labels: Labels, scores: Values, threshold: float, videos: int, identities: Identities | None = None
) -> Figures:
    """Compute the figures that labels, int [N], and scores, float [N], of so many real ``videos`` support.

    Intervals resample ``identities``, the persons of each item; without them there are none.
    """
    real, fake = int((labels == 0).sum()), int((labels == 1).sum())
    unsupported = _unsupported(real, fake, videos)
    if real and fake:
        found = point_figures(labels, scores, threshold)
    else:
        found = {"accuracy": float(accuracy_score(labels, scores > threshold))}
    spans, reason = ({}, "not resampled") if identities is None else _intervals(labels, scores, threshold, identities)
    if reason:
        unsupported["intervals"] = reason
    given = {name: figure for name, figure in found.items() if name not in unsupported}
    return Figures(
        real=real,
        fake=fake,
        **{name: given.get(name) for name in ("auc", "eer", "ap", "accuracy", "f1")},
        tpr_at_fpr={str(rate): given.get(f"tpr_at_fpr {rate}") for rate in RATES},
        intervals={name: span for name, span in spans.items() if name in given},
        unsupported=unsupported,
    )


def _frame_figures(scores: "ClipScores", threshold: float) -> Figures | None:
    """Return the figures of single valid frames; they are not resampled, which would take seconds."""
    if scores.frames is None:
        return None
    seen = ~np.isnan(scores.frames)
    labels = np.broadcast_to(scores.labels[:, None], seen.shape)
    return compute_figures(labels[seen], scores.frames[seen], threshold, scores.real_videos)


def compute_metrics(scores: "ClipScores", threshold: float, intervals: bool = True) -> Metrics:
    """Compute all figures at a threshold.

    ``intervals`` false leaves out the bootstrap, which takes a second for each level and method of 500 clips.
    """
    persons, clips = scores.persons, scores.clips

    def figures(first: NDArray[np.int64], values: Values) -> Figures:
        own = [persons[clip] for clip in first] if intervals else None
        return compute_figures(scores.labels[first], values, threshold, scores.real_videos, own)

    def method_figures(method: str) -> Figures:
        chosen = np.flatnonzero((scores.labels == 0) | (np.array(scores.methods) == method))
        return figures(chosen, clips[chosen])

    of_clips = figures(np.arange(len(clips)), clips)
    videos, means = scores.by_video()
    methods = sorted({method for method, label in zip(scores.methods, scores.labels, strict=True) if label})
    return Metrics(
        threshold=threshold,
        clip=of_clips,
        video=of_clips if len(videos) == len(clips) else figures(videos, means),
        frame=_frame_figures(scores, threshold),
        methods={methods[0]: of_clips} if len(methods) == 1 else {name: method_figures(name) for name in methods},
    )
