"""How an artifact takes crops that an app cuts in its own way: AUC and verdicts against the manifest's rule."""

from collections.abc import Mapping

import numpy as np

from benchmarks.figures import Robustness
from compress.auc import auc, auc_change
from compress.metrics import Threshold, verdict_flips
from compress.scoring import ClipScores
from data.perturb import UNCHANGED


def robustness_of(found: Mapping[str, ClipScores], prepared: ClipScores, threshold: Threshold) -> list[Robustness]:
    """Compare the scores of every perturbation, by its name, with those of the same clips unchanged.

    What is unchanged is compared with the clips as the store holds them, ``prepared``: forgeries, and real clips beside
    them, are compressed once more, with more around the face than ``prepare`` leaves, and come out a little otherwise.
    """
    at, equal = threshold.value, threshold.equal_error
    rows = []
    for name, scores in found.items():
        base = prepared if name == UNCHANGED.name else found[UNCHANGED.name]
        places = {clip: number for number, clip in enumerate(base.clip_ids)}
        before = base.clips[[places[clip] for clip in scores.clip_ids]]
        after, labels = scores.clips, scores.labels
        both = len(np.unique(labels)) > 1
        rows.append(
            Robustness(
                perturbation=name,
                clips=len(after),
                auc=scores.auc if both else None,
                delta_auc=auc_change(scores.auc, auc(labels, before)) if both else None,
                verdict_flips=verdict_flips(before, at, after, at),
                equal_error_flips=None if equal is None else verdict_flips(before, equal, after, equal),
            )
        )
    return rows
