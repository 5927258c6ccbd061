"""AUC and verdicts of an artifact on crops that are cut in another way than the manifest's rule."""

from collections.abc import Mapping

import numpy as np

from benchmarks.figures import Robustness
from compress.auc import auc, auc_change
from compress.metrics import Threshold, verdict_flips
from compress.scoring import ClipScores
from data.perturb import UNCHANGED


def robustness_of(found: Mapping[str, ClipScores], prepared: ClipScores, threshold: Threshold) -> list[Robustness]:
    """Compare the scores of each perturbation, ``found`` by its name, with those of the same clips unchanged.

    The unchanged clips themselves are compared with ``prepared``, the scores of the clips as the store holds them:
    forgeries, and real clips beside them, are compressed once more, with more around the face than ``prepare`` leaves,
    and differ a little.
    """
    shipped, equal_error = threshold.value, threshold.equal_error
    rows = []
    for name, scores in found.items():
        base = prepared if name == UNCHANGED.name else found[UNCHANGED.name]
        positions = {clip_id: position for position, clip_id in enumerate(base.clip_ids)}
        before = base.clips[[positions[clip_id] for clip_id in scores.clip_ids]]
        after, labels = scores.clips, scores.labels
        both_labels = len(np.unique(labels)) > 1
        rows.append(
            Robustness(
                perturbation=name,
                clips=len(after),
                auc=scores.auc if both_labels else None,
                delta_auc=auc_change(scores.auc, auc(labels, before)) if both_labels else None,
                verdict_flips=verdict_flips(before, shipped, after, shipped),
                equal_error_flips=(
                    None if equal_error is None else verdict_flips(before, equal_error, after, equal_error)
                ),
            )
        )
    return rows
