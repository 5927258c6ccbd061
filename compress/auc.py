"""The area under the ROC curve, as the toolkit compares it: figures, differences and limits to 12 digits."""

from typing import TYPE_CHECKING

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from compress.bootstrap import DRAWS, FEWEST_IDENTITIES, Labels, Values, persons_of_rarer, usable_draws

if TYPE_CHECKING:
    from compress.scoring import ClipScores

DIGITS = 12
"""scikit-learn's sum differs in the 16th digit between score sets of one order, and a loss of exactly a limit would be
above it as often as not. Different orders of fewer than a million clips are told apart."""


def auc(labels: Labels, scores: Values) -> float:
    """Return the AUC of scores, float [N], for labels, int [N], 1 = fake, that hold both; equal orders, equal figures.

    Raises ValueError for labels of one class.
    """
    return round(float(roc_auc_score(labels, scores)), DIGITS)


def auc_change(now: float, before: float) -> float:
    """Return ``now - before`` of two AUCs, to be compared with a limit."""
    return round(now - before, DIGITS)


def auc_difference(own: "ClipScores", other: "ClipScores") -> tuple[float, tuple[float, float] | None]:
    """Return the AUC of ``own`` less that of ``other`` on the same clips of both labels, and its 95 % interval.

    Both sides of a draw have the same persons. No interval below FEWEST_IDENTITIES of each label.
    """
    persons, labels = own.persons, own.labels
    point = auc_change(own.auc, other.auc)
    if persons_of_rarer(labels, persons) < FEWEST_IDENTITIES:
        return point, None
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        drawn = [
            roc_auc_score(labels, own.clips, sample_weight=weights)
            - roc_auc_score(labels, other.clips, sample_weight=weights)
            for weights in usable_draws(labels, persons)
        ]
    if len(drawn) < DRAWS:
        return point, None
    low, high = np.quantile(drawn, (0.025, 0.975)).round(DIGITS)
    return point, (float(low), float(high))
