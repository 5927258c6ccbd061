"""How an artifact takes crops that an app cuts in its own way: AUC and verdicts against the manifest's rule."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.figures import Robustness
from compress.metrics import Threshold
from compress.scoring import ClipScores
from data.perturb import UNCHANGED


def _auc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float | None:
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) > 1 else None


def robustness_of(found: Mapping[str, ClipScores], threshold: Threshold) -> list[Robustness]:
    """Compare the scores of every perturbation, by its name, with those of the same clips unchanged."""
    unchanged = found[UNCHANGED.name]
    places = {clip: number for number, clip in enumerate(unchanged.clip_ids)}
    rows = []
    for name, scores in found.items():
        before = unchanged.clips[[places[clip] for clip in scores.clip_ids]]
        after, labels = scores.clips, scores.labels
        auc, base = _auc(labels, after), _auc(labels, before)
        at, equal = threshold.value, threshold.equal_error
        rows.append(
            Robustness(
                perturbation=name,
                clips=len(after),
                auc=auc,
                delta_auc=None if auc is None or base is None else auc - base,
                verdict_flips=float(((before > at) != (after > at)).mean()),
                equal_error_flips=None if equal is None else float(((before > equal) != (after > equal)).mean()),
            )
        )
    return rows
