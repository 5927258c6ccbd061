"""Train, val and test splits that share no identity and no source video."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from data.layouts import FAKE, REAL, SPLITS, Source
from stage import StageError, WrongArgument

LARGE = 0.5
"""A group of more than this part of the smallest share could leave that empty, or fill it twice, by where it lies."""


def groups_of(sources: Sequence[Source]) -> list[list[int]]:
    """Return groups of indices of sources that share an identity, directly or through others (connected components).

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
    """Parse ``0.7,0.1,0.2`` into the shares of train, val and test. Raises WrongArgument for anything else."""
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
    """Return the split prescribed by the corpus for a group, None if none is. Raises StageError if two are."""
    members = sorted((source for source in group if source.split), key=lambda source: source.name)
    source_of: dict[str, Source] = {}
    for source in members:
        for identity in source.identities:
            other = source_of.setdefault(identity, source)
            if other.split != source.split:
                raise _in_two_splits(other, source, _shared(identity, (other, source)))
    for source in members:
        if source.split != members[0].split:
            persons = f"{members[0].identities[0]!r} and {source.identities[0]!r}"
            raise _in_two_splits(members[0], source, f"other files link their identities {persons}")
    return members[0].split if members else None


def _shared(identity: str, sources: Sequence[Source]) -> str:
    """Return that two sources show one person, who may be but the name of both files."""
    only_names = all(source.is_named_by_file for source in sources)
    hint = ", which is but the name of both files (a csv may tell persons apart in its column identity)"
    return f"both show identity {identity!r}{hint if only_names else ''}"


def _in_two_splits(first: Source, second: Source, why: str) -> StageError:
    """Return the error for two sources of one group with different prescribed splits."""
    return StageError(
        f"{first.name} is prescribed for {first.split} and {second.name} for {second.split}, but {why}: "
        "give them one split or leave one out"
    )


def split_sources(sources: Sequence[Source], ratios: tuple[float, float, float], seed: int) -> list[str | None]:
    """Return the split of each source, identity-disjoint, with shares of videos as near to ``ratios`` as groups allow.

    A group with a prescribed split gets it as a whole; the others fill up the shares. If a split then lacks a label
    that the corpus has, as fakes link most persons to one another (all celebrities of Celeb-DF), the persons of the
    largest group are split one by one, provided that this helps; a source that shows persons of two splits is then left
    out (None), though none in a corpus of one label. Failing that, as persons are few, each split gets one group of
    each label before the shares are filled.

    Raises StageError if one group has two prescribed splits. The result depends on ``seed`` and the identities only,
    not on the order of the sources. If a few files come or go, nearly all persons stay in their splits.
    """
    groups = sorted(
        groups_of(sources), key=lambda group: _rank((p for i in group for p in sources[i].identities), seed)
    )
    prescribed = [_prescribed([sources[i] for i in group]) for group in groups]
    splits: list[str | None] = [None] * len(sources)
    unassigned = []
    for group, split in zip(groups, prescribed, strict=True):
        if split is None:
            unassigned.append(group)
        for index in group:
            splits[index] = split
    labels = [source.label for source in sources]
    by_groups = _filled_up(splits, unassigned, ratios, labels)
    if not unassigned or not lacks_label(labels, by_groups, ratios):
        return by_groups
    attempts = [_filled_up(splits, unassigned, ratios, labels, one_of_each=True)]
    if {REAL, FAKE} <= set(labels):
        largest = max(unassigned, key=len)
        splits_without_largest = list(splits)
        for index, split in _by_persons(sources, largest, ratios, seed).items():
            splits_without_largest[index] = split
        others = [group for group in unassigned if group is not largest]
        attempts.insert(0, _filled_up(splits_without_largest, others, ratios, labels))
    return next((attempt for attempt in attempts if not lacks_label(labels, attempt, ratios)), by_groups)


def _rank(identities: Iterable[str], seed: int) -> bytes:
    """Return what persons are ordered by before splits are filled: the least hash of a name, which no other changes."""
    return min(hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest() for name in identities)


class _Filling:
    """The splits of sources while groups are put into them; ``None`` are those that are in none yet."""

    def __init__(
        self, splits: Sequence[str | None], ratios: tuple[float, float, float], labels: Sequence[int], total: int
    ) -> None:
        self.splits, self._labels = list(splits), labels
        shares = dict(zip(SPLITS, ratios, strict=True))
        self.missing = {split: share * total - self.splits.count(split) for split, share in shares.items()}
        """Sources that each split lacks of its share; below 0 if it has more."""
        self._used = {split for split, share in shares.items() if share}
        self._present = set(zip(splits, labels, strict=True))

    def labels_of(self, group: list[int]) -> tuple[int, ...]:
        """Return the labels in a group, each once, in order."""
        return tuple(sorted({self._labels[index] for index in group}))

    def lacks_label(self, split: str, group: list[int]) -> bool:
        """Tell whether a split with a share above 0 has no source of one of a group's labels."""
        return split in self._used and any((split, label) not in self._present for label in self.labels_of(group))

    def put(self, group: list[int], split: str) -> None:
        """Put a group into a split."""
        self.missing[split] -= len(group)
        for index in group:
            self.splits[index] = split
            self._present.add((split, self._labels[index]))

    def put_in_turn(self, groups: list[list[int]]) -> None:
        """Fill one split after the other, each up to its part of these groups.

        A group belongs to the split in whose part of all of them its middle lies.
        """
        ends = np.cumsum([max(0.0, self.missing[split]) for split in SPLITS])
        scale = ends[-1] / sum(map(len, groups))
        start = 0
        for group in groups:
            middle = (start + len(group) / 2) * scale
            start += len(group)
            self.put(group, SPLITS[min(int(np.searchsorted(ends, middle, side="right")), len(SPLITS) - 1)])


def _filled_up(
    splits: Sequence[str | None],
    groups: list[list[int]],
    ratios: tuple[float, float, float],
    labels: Sequence[int],
    one_of_each: bool = False,
) -> list[str | None]:
    """Return each source's split, with ``groups`` distributed so that all splits reach their shares.

    Groups that are large compared with the smallest share come first, in order of size, each into the split that is
    furthest below its share; with ``one_of_each`` all groups do so, and splits that lack one of a group's labels come
    before the others. The small ones fill the rest, those of equal labels in their given order, one split after the
    other: thus each split gets its share of both labels.
    """
    total = sum(split is not None for split in splits) + sum(map(len, groups))
    filling = _Filling(splits, ratios, labels, total)
    limit = 0 if one_of_each else LARGE * total * min(ratio for ratio in ratios if ratio)
    for group in sorted((group for group in groups if len(group) > limit), key=len, reverse=True):
        lacking = [split for split in SPLITS if filling.lacks_label(split, group)] if one_of_each else []
        filling.put(group, max(lacking or SPLITS, key=filling.missing.__getitem__))
    small: dict[tuple[int, ...], list[list[int]]] = {}
    for group in groups:
        if len(group) <= limit:
            small.setdefault(filling.labels_of(group), []).append(group)
    for _, groups_of_labels in sorted(small.items()):
        filling.put_in_turn(groups_of_labels)
    return filling.splits


def lacks_label(labels: Sequence[int], splits: Sequence[str | None], ratios: tuple[float, float, float]) -> bool:
    """Tell whether a split with a share above 0 lacks a label that the corpus has."""
    present = set(zip(splits, labels, strict=True))
    used_splits = [split for split, ratio in zip(SPLITS, ratios, strict=True) if ratio]
    return any((split, label) not in present for split in used_splits for label in set(labels))


def _by_persons(
    sources: Sequence[Source], group: list[int], ratios: tuple[float, float, float], seed: int
) -> dict[int, str | None]:
    """Split a group's persons by the shares; return each source's split, None if it shows persons of two splits."""
    persons = sorted({person for i in group for person in sources[i].identities}, key=lambda name: _rank([name], seed))
    groups = [[number] for number in range(len(persons))]
    splits_of_persons = _filled_up([None] * len(persons), groups, ratios, labels=[REAL] * len(persons))
    split_of = dict(zip(persons, splits_of_persons, strict=True))
    splits_in = {index: {split_of[person] for person in sources[index].identities} for index in group}
    return {index: splits.pop() if len(splits) == 1 else None for index, splits in splits_in.items()}
