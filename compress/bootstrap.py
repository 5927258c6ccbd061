"""Bootstrap draws of persons with replacement, from which all intervals of accuracy figures are computed."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Number of bootstrap draws: a rough minimum for percentile intervals (Efron, 1987, JASA 82, section 9)."""
MOST_DRAWS = 10 * DRAWS
"""Limit of draws, including those that lack a class and are repeated."""
FEWEST_PERSONS = 10
"""Minimum of persons per label: with 2 or 3 persons of a label, 95 % intervals cover only 60 % (docs/lab-notes.md)."""
BOOTSTRAP_SEED = 0

Labels = NDArray[np.int64]
"""Labels, int64 [N], 1 = fake."""
Values = NDArray[np.float64]
"""Scores or weights, float64 [N]."""
Identities = Sequence[tuple[str, ...]]
"""Names of the persons in each of N items."""


def person_draws(identities: Identities, rng: np.random.Generator) -> Iterator[Values]:
    """Yield endlessly the weights of N items, float [N], when their persons are drawn with replacement.

    An item of persons a and b, drawn c_a and c_b times, has the weight c_a * c_b: the pigeonhole bootstrap of Owen
    (2007, Annals of Applied Statistics 1(2)) for data crossed by two factors.
    """
    names = sorted({name for item in identities for name in item})
    indices = {name: index for index, name in enumerate(names)}
    members = np.full((len(identities), max(len(set(item)) for item in identities)), len(names))
    for row, item in enumerate(identities):
        members[row, : len(set(item))] = sorted({indices[name] for name in item})
    while True:
        counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names) + 1)
        counts[-1] = 1  # the padding of items with fewer persons
        yield counts[members].prod(axis=1).astype(np.float64)


def persons_of_rarer(labels: Labels, identities: Identities) -> int:
    """Return the number of persons of the label that has fewer: it limits how much draws can vary."""
    return min(
        len({name for item, label in zip(identities, labels, strict=True) if label == chosen for name in item})
        for chosen in np.unique(labels)
    )


def usable_draws(labels: Labels, identities: Identities) -> Iterator[Values]:
    """Yield at most DRAWS weights, float [N], under which every label of the sample still occurs.

    Other draws are repeated, up to MOST_DRAWS in all.
    """
    draws = person_draws(identities, np.random.default_rng(BOOTSTRAP_SEED))
    label_masks = [labels == label for label in np.unique(labels)]
    usable = 0
    for _ in range(MOST_DRAWS):
        weights = next(draws)
        if all(weights[mask].any() for mask in label_masks):
            usable += 1
            yield weights
        if usable == DRAWS:
            return
