"""Splits that share no identity and no source video."""

from collections.abc import Sequence

import numpy as np

from data.layouts import SPLITS, Source
from stage import StageError

__all__ = ["SPLITS", "groups_of", "parse_ratios", "split_sources"]


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


def _prescribed(group: Sequence[Source]) -> str | None:
    """Return the split that the corpus prescribes for members of a group, if any. Raises StageError for two splits."""
    members = sorted((source for source in group if source.split), key=lambda source: source.name)
    first: dict[str, Source] = {}
    for source in members:
        for identity in source.identities:
            other = first.setdefault(identity, source)
            if other.split != source.split:
                raise _in_two_splits(other, source, f"both show identity {identity!r}")
    for source in members:
        if source.split != members[0].split:
            persons = f"{members[0].identities[0]!r} and {source.identities[0]!r}"
            raise _in_two_splits(members[0], source, f"other files link their identities {persons}")
    return members[0].split if members else None


def _in_two_splits(one: Source, other: Source, why: str) -> StageError:
    return StageError(
        f"{one.name} is prescribed for {one.split} and {other.name} for {other.split}, but {why}: "
        "give them one split or leave one out"
    )


def split_sources(sources: Sequence[Source], ratios: tuple[float, float, float], seed: int) -> list[str]:
    """Return the split of each source, identity-disjoint, with shares of videos as near to ``ratios`` as groups allow.

    A group with a prescribed split gets it whole; the others fill up to the shares. Raises StageError if one has two.
    Deterministic in ``seed`` and in the identities alone, whatever the order of the sources.
    """
    groups = sorted(groups_of(sources), key=lambda group: sorted(sources[i].identities for i in group))
    np.random.default_rng(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    filled = dict.fromkeys(SPLITS, 0)
    wanted = dict(zip(SPLITS, ratios, strict=True))
    splits = [""] * len(sources)
    prescribed = [_prescribed([sources[i] for i in group]) for group in groups]
    for group, split in sorted(zip(groups, prescribed, strict=True), key=lambda pair: pair[1] is None):
        chosen = split or max(SPLITS, key=lambda split: wanted[split] * len(sources) - filled[split])
        filled[chosen] += len(group)
        for index in group:
            splits[index] = chosen
    return splits
