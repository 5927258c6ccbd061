"""Splits that share no identity and no source video."""

from collections.abc import Sequence

import numpy as np

from data.layouts import Source
from stage import StageError

SPLITS = ("train", "val", "test")


def groups_of(sources: Sequence[Source]) -> list[list[int]]:
    """Group indices of sources that share an identity, directly or through others (connected components).

    A fake carries the identities of its source videos, so that a group also holds whole source videos.
    """
    parent: dict[str, str] = {}

    def root(identity: str) -> str:
        while parent.setdefault(identity, identity) != identity:
            parent[identity] = identity = parent[parent[identity]]
        return identity

    for source in sources:
        for other in source.identities[1:]:
            parent[root(other)] = root(source.identities[0])
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(root(source.identities[0]), []).append(index)
    return list(groups.values())


def parse_ratios(text: str) -> tuple[float, float, float]:
    """Parse ``0.7,0.1,0.2`` into the shares of train, val and test. Raises StageError for anything else."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 0 or not np.isclose(sum(shares), 1.0):
        raise StageError(f"--ratios {text!r}: give three shares for train, val and test that sum to 1, as 0.7,0.1,0.2")
    return shares


def split_sources(sources: Sequence[Source], ratios: tuple[float, float, float], seed: int) -> list[str]:
    """Return the split of each source, identity-disjoint, with shares of videos as near to ``ratios`` as groups allow.

    Deterministic in ``seed`` and in the identities alone, whatever the order of the sources.
    """
    groups = sorted(groups_of(sources), key=lambda group: sorted(sources[i].identities for i in group))
    np.random.default_rng(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    filled = dict.fromkeys(SPLITS, 0)
    wanted = dict(zip(SPLITS, ratios, strict=True))
    splits = [""] * len(sources)
    for group in groups:
        lacking = max(SPLITS, key=lambda split: wanted[split] * len(sources) - filled[split])
        filled[lacking] += len(group)
        for index in group:
            splits[index] = lacking
    return splits
