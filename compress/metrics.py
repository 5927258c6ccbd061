"""Accuracy figures from scores, through scikit-learn. What the data cannot support is None."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

REALS_FOR_LOW_FPR = 300
"""Below this many real clips a true-positive rate at 1 % false positives rests on two or fewer of them."""


class Threshold(BaseModel):
    """The score above which a verdict is "fake", and how it was set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    false_positive_rate: float
    """Share of real validation clips above it."""
    rule: str


class Metrics(BaseModel):
    """Figures of one set of scores. ``eer``, ``accuracy`` and rates are shares in 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clips_real: int
    clips_fake: int
    auc: float
    frame_auc: float
    eer: float
    ap: float
    accuracy: float
    """At the threshold that came with the scores."""
    tpr_at_fpr: dict[str, float | None]
    """True-positive rate at 1 % and 5 % false positives; None below 300 real clips."""


def _midpoint_below(scores: NDArray[np.float64], value: float) -> float:
    """Return the middle between ``value`` and the next lower score, so that "above" does not hang on rounding."""
    lower = scores[scores < value]
    return float((value + lower.max()) / 2) if len(lower) else float(value - 1e-6)


def eer_point(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return ``(eer, threshold, false_positive_rate)`` where false positives and false negatives are nearest.

    labels: int [N], 1 = fake; scores: float [N]. Both labels must occur.
    """
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    nearest = int(np.argmin(np.abs(fpr - (1 - tpr))))
    threshold = _midpoint_below(scores, float(thresholds[nearest])) if nearest else float(scores.max()) + 1e-6
    return float((fpr[nearest] + 1 - tpr[nearest]) / 2), threshold, float(fpr[nearest])


def choose_threshold(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> Threshold:
    """Set a threshold on validation scores: 1 % false positives from 300 real clips on, else the EER point."""
    real = scores[labels == 0]
    if len(real) < REALS_FOR_LOW_FPR:
        _, value, rate = eer_point(labels, scores)
        rule = f"equal error rate ({len(real)} real validation clips; 1 % false positives needs {REALS_FOR_LOW_FPR})"
        return Threshold(value=value, false_positive_rate=rate, rule=rule)
    value = float(np.quantile(real, 0.99, method="higher"))
    return Threshold(value=value, false_positive_rate=float((real > value).mean()), rule="1 % false positives")


def _auc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve, rounded so that equal orders of scores give equal figures."""
    return round(float(roc_auc_score(labels, scores)), 12)


def compute_metrics(
    labels: NDArray[np.int64], clip_scores: NDArray[np.float64], frame_scores: NDArray[np.float64], threshold: float
) -> Metrics:
    """Compute all figures. labels: int [N]; clip_scores: float [N]; frame_scores: float [N, T], NaN where not valid."""
    seen = ~np.isnan(frame_scores)
    frame_labels = np.broadcast_to(labels[:, None], seen.shape)
    fpr, tpr, _ = roc_curve(labels, clip_scores)
    reals = int((labels == 0).sum())
    enough = reals >= REALS_FOR_LOW_FPR
    return Metrics(
        clips_real=reals,
        clips_fake=int((labels == 1).sum()),
        auc=_auc(labels, clip_scores),
        frame_auc=_auc(frame_labels[seen], frame_scores[seen]),
        eer=eer_point(labels, clip_scores)[0],
        ap=float(average_precision_score(labels, clip_scores)),
        accuracy=float(((clip_scores > threshold) == (labels == 1)).mean()),
        tpr_at_fpr={str(rate): float(tpr[fpr <= rate].max()) if enough else None for rate in (0.01, 0.05)},
    )
