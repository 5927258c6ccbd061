"""Splits that share no identity and no source video."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from data.layouts import FAKE, REAL, SPLITS, Source
from stage import StageError, WrongArgument

__all__ = ["SPLITS", "groups_of", "parse_ratios", "split_sources"]

LARGE = 0.5
"""A group of more than this part of the smallest share could leave that empty, or fill it twice, by where it lies."""


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
        raise WrongArgument(
            f"--ratios {text!r}: give three shares for train, val and test that sum to 1, as 0.7,0.1,0.2"
        )
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


def split_sources(sources: Sequence[Source], ratios: tuple[float, float, float], seed: int) -> list[str | None]:
    """Return the split of each source, identity-disjoint, with shares of videos as near to ``ratios`` as groups allow.

    A group with a prescribed split gets it whole; the others fill up to the shares. Where a split then lacks a label,
    because fakes link most persons to one another (all celebrities of Celeb-DF), the persons of the largest group are
    split one by one if that mends it; a source that shows persons of two splits is left out: None.

    Raises StageError if one group has two prescribed splits. Deterministic in ``seed`` and in the identities alone,
    whatever the order of the sources: with a few files more or less, nearly all persons stay in their splits.
    """
    groups = sorted(
        groups_of(sources), key=lambda group: _place((p for i in group for p in sources[i].identities), seed)
    )
    prescribed = [_prescribed([sources[i] for i in group]) for group in groups]
    splits: list[str | None] = [None] * len(sources)
    free = []
    for group, split in zip(groups, prescribed, strict=True):
        if split is None:
            free.append(group)
        for index in group:
            splits[index] = split
    whole = _filled_up(splits, free, ratios)
    if not free or not _lacks_label(sources, whole, ratios):
        return whole
    largest = max(free, key=len)
    for index, split in _by_persons(sources, largest, ratios, seed).items():
        splits[index] = split
    apart = _filled_up(splits, [group for group in free if group is not largest], ratios)
    return whole if _lacks_label(sources, apart, ratios) else apart


def _place(identities: Iterable[str], seed: int) -> bytes:
    """Return where persons stand in the order in which splits are filled: a hash, which no other person changes."""
    return min(
        hashlib.sha256(f"{seed} {identity}".encode("utf-8", "surrogateescape")).digest() for identity in identities
    )


def _filled_up(
    splits: Sequence[str | None], groups: list[list[int]], ratios: tuple[float, float, float]
) -> list[str | None]:
    """Fill the splits up to their shares of all that is in a split at the end.

    Groups that are large beside the smallest share come first, the largest before others, each into the split that
    lacks most. The others follow in their order: so many into the first split, then into the next.
    """
    filled_up = list(splits)
    total = sum(split is not None for split in splits) + sum(map(len, groups))
    room = {split: ratio * total - splits.count(split) for split, ratio in zip(SPLITS, ratios, strict=True)}
    largest = LARGE * total * min(ratio for ratio in ratios if ratio)
    for group in sorted((group for group in groups if len(group) > largest), key=len, reverse=True):
        chosen = max(SPLITS, key=lambda split: room[split])
        room[chosen] -= len(group)
        for index in group:
            filled_up[index] = chosen
    small = [group for group in groups if len(group) <= largest]
    ends = np.cumsum([max(0.0, room[split]) for split in SPLITS])
    count, before = sum(map(len, small)), 0
    for group in small:
        middle = (before + len(group) / 2) / count * ends[-1]
        chosen = SPLITS[min(int(np.searchsorted(ends, middle, side="right")), len(SPLITS) - 1)]
        before += len(group)
        for index in group:
            filled_up[index] = chosen
    return filled_up


def _lacks_label(sources: Sequence[Source], splits: Sequence[str | None], ratios: tuple[float, float, float]) -> bool:
    """Tell whether a split that is to have files lacks one of the two labels, though the corpus has both."""
    there = {(split, source.label) for split, source in zip(splits, sources, strict=True)}
    wanted = [split for split, ratio in zip(SPLITS, ratios, strict=True) if ratio]
    both = {source.label for source in sources} == {REAL, FAKE}
    return both and any((split, label) not in there for split in wanted for label in (REAL, FAKE))


def _by_persons(
    sources: Sequence[Source], group: list[int], ratios: tuple[float, float, float], seed: int
) -> dict[int, str | None]:
    """Split the persons of a group by the shares; return the split of each of its sources, None for two splits."""
    persons = sorted({person for i in group for person in sources[i].identities}, key=lambda name: _place([name], seed))
    drawn = _filled_up([None] * len(persons), [[number] for number in range(len(persons))], ratios)
    split_of = dict(zip(persons, drawn, strict=True))
    found = {index: {split_of[person] for person in sources[index].identities} for index in group}
    return {index: splits.pop() if len(splits) == 1 else None for index, splits in found.items()}
