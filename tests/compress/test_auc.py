"""AUC against the count of pairs, and limits that scores lie on exactly."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from compress.auc import auc, auc_change, auc_difference
from compress.bootstrap import DRAWS
from compress.scoring import ClipScores

REALS, FAKES = 20, 10
"""Of 200 pairs one in the wrong order costs 0.005."""


def pairs_in_order(labels, scores):
    """Return the share of pairs of a real and a fake whose fake has the higher score, ties half (Mann-Whitney)."""
    fakes, reals = scores[labels == 1].tolist(), scores[labels == 0].tolist()
    higher = sum(Fraction((fake > real) + (fake >= real), 2) for fake in fakes for real in reals)
    return higher / (len(fakes) * len(reals))


def scores_of(labels, values):
    names = tuple(map(str, range(len(labels))))
    return ClipScores(names, names, labels, names, (("one",),) * len(names), whole=values)


@pytest.mark.parametrize("seed", range(30))
def test_auc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * REALS + [1] * FAKES)
    scores = rng.integers(0, 12, len(labels)) / 12
    assert auc(labels, scores) == round(float(pairs_in_order(labels, scores)), 12)


@pytest.mark.parametrize("seed", range(30))
def test_one_pair_of_200_costs_exactly_a_limit_of_5_thousandths(seed):
    """Which a difference of two floats is above as often as not."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * REALS + [1] * FAKES)
    before = np.empty(len(labels))
    before[np.argsort(rng.normal(0, 1, len(labels)) + labels)] = np.linspace(0.1, 0.9, len(labels))
    order = np.argsort(before)
    pair = next(place for place in range(len(order) - 1) if list(labels[order[place : place + 2]]) == [0, 1])
    after = before.copy()
    after[order[pair : pair + 2]] = before[order[pair : pair + 2][::-1]]
    own, other = scores_of(labels, after), scores_of(labels, before)
    assert auc_change(own.auc, other.auc) == auc_difference(own, other)[0] == -0.005


def test_the_interval_of_a_difference_is_of_95_percent_of_the_draws(monkeypatch):
    labels, persons = np.tile([0, 1], 30), tuple((str(number),) for number in range(60))
    own, other = (replace(scores_of(labels, labels + np.arange(60.0)), identities=persons) for _ in "ab")

    def planted(_, scores, sample_weight=0.0):
        return sample_weight if scores is own.clips else 0.0

    monkeypatch.setattr("compress.auc.usable_draws", lambda *_: np.arange(DRAWS + 1) / DRAWS)
    monkeypatch.setattr("compress.auc.roc_auc_score", planted)
    assert auc_difference(own, other) == (0.0, pytest.approx((0.025, 0.975)))
