"""Draws of persons with replacement, from which every interval of an accuracy figure comes."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Of a bootstrap: what Efron and Tibshirani (1993, 14.2) hold to be the least for a percentile interval."""
MOST_DRAWS = 10 * DRAWS
"""Counting those that lack a class and are drawn again."""
FEWEST_IDENTITIES = 10
"""Of each label: with 2 or 3 persons of one of them, intervals of 95 % hold 60 % of the time (docs/lab-notes.md)."""
BOOTSTRAP_SEED = 0

Labels = NDArray[np.int64]
"""int64 [N], 1 = fake."""
Values = NDArray[np.float64]
"""float64 [N]."""
Identities = Sequence[tuple[str, ...]]
"""The persons of each of N items."""


def identity_draws(identities: Identities, rng: np.random.Generator) -> Iterator[Values]:
    """Yield, without end, how often each of N items counts when its persons are drawn with replacement: float [N].

    An item of persons a and b counts c_a * c_b times, because both had to be drawn: the pigeonhole bootstrap of Owen
    (2007, Annals of Applied Statistics 1(2)) for data crossed by two factors.
    """
    names = sorted({name for item in identities for name in item})
    places = {name: place for place, name in enumerate(names)}
    members = np.full((len(identities), max(len(set(item)) for item in identities)), len(names))
    for row, item in enumerate(identities):
        members[row, : len(set(item))] = sorted({places[name] for name in item})
    while True:
        counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names) + 1)
        counts[-1] = 1  # for items of fewer persons than others have
        yield counts[members].prod(axis=1).astype(np.float64)


def persons_of_rarer(labels: Labels, identities: Identities) -> int:
    """Return how many persons the items of the label have that has fewer: the draws vary by no more than these."""
    return min(
        len({name for item, label in zip(identities, labels, strict=True) if label == own for name in item})
        for own in np.unique(labels)
    )


def usable_draws(labels: Labels, identities: Identities) -> Iterator[Values]:
    """Yield at most DRAWS draws in which every label of the sample occurs; others are drawn again, within bounds."""
    draws = identity_draws(identities, np.random.default_rng(BOOTSTRAP_SEED))
    of_label = [labels == label for label in np.unique(labels)]
    found = 0
    for _ in range(MOST_DRAWS):
        weights = next(draws)
        if all(weights[own].any() for own in of_label):
            found += 1
            yield weights
        if found == DRAWS:
            return
