"""The area under the ROC curve (AUC), rounded to 12 digits so that differences can be compared with limits."""

from typing import TYPE_CHECKING

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from compress.bootstrap import DRAWS, FEWEST_PERSONS, Labels, Values, persons_of_rarer, usable_draws

if TYPE_CHECKING:
    from compress.scoring import ClipScores

DIGITS = 12
"""Decimal digits that AUCs are rounded to. scikit-learn's sum differs in the 16th digit between score sets of equal
ranking, so that an AUC loss of exactly the limit would exceed it half of the time. 12 digits still tell different
rankings of fewer than a million clips apart."""


def auc(labels: Labels, scores: Values) -> float:
    """Return the AUC, 0..1, of scores, float [N], for labels, int [N], 1 = fake; the same ranking gives the same AUC.

    Raises ValueError unless both labels occur.
    """
    return round(float(roc_auc_score(labels, scores)), DIGITS)


def auc_change(now: float, before: float) -> float:
    """Return the difference of two AUCs, ``now - before``, rounded so that it can be compared with a limit."""
    return round(now - before, DIGITS)


def auc_difference(own: "ClipScores", other: "ClipScores") -> tuple[float, tuple[float, float] | None]:
    """Return the AUC of ``own`` minus that of ``other`` on the same clips, of both labels, and its 95 % interval.

    Each bootstrap draw resamples the same persons for both models. The interval is None with fewer than
    FEWEST_PERSONS persons of a label, or where fewer than DRAWS draws hold both labels.
    """
    persons, labels, scores, other_scores = own.persons, own.labels, own.clips, other.clips
    difference = auc_change(own.auc, other.auc)
    if persons_of_rarer(labels, persons) < FEWEST_PERSONS:
        return difference, None
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        resampled = [
            roc_auc_score(labels, scores, sample_weight=weights)
            - roc_auc_score(labels, other_scores, sample_weight=weights)
            for weights in usable_draws(labels, persons)
        ]
    if len(resampled) < DRAWS:
        return difference, None
    low, high = np.quantile(resampled, (0.025, 0.975)).round(DIGITS)
    return difference, (float(low), float(high))
