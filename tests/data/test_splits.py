"""Splits, on random graphs of identities against scipy's connected components, and on corpora of known shape."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from data.layouts import SPLITS, Source
from data.splits import groups_of, parse_ratios, split_sources
from stage import StageError

SEEDS = range(150)


def sources_of(*identities: tuple[str, ...]) -> list[Source]:
    return [Source(Path(f"{n}.mp4"), f"{n}.mp4", 0, "real", persons) for n, persons in zip(count(), identities)]


def random_sources(seed: int) -> list[Source]:
    """Videos with one to three persons each, from graphs of few to many connections."""
    rng = np.random.default_rng(seed)
    persons, videos = int(rng.integers(2, 60)), int(rng.integers(1, 80))
    return sources_of(
        *(tuple(map(str, rng.choice(persons, rng.integers(1, min(persons, 3) + 1)))) for _ in range(videos))
    )


def faceforensics(pairs: int) -> list[Source]:
    """Two originals and the two swaps between them, ``pairs`` times."""
    names = [(f"{2 * n:03d}", f"{2 * n + 1:03d}") for n in range(pairs)]
    return sources_of(*(persons for a, b in names for persons in ((a,), (b,), (a, b), (b, a))))


def test_groups_are_the_connected_components() -> None:
    for seed in SEEDS:
        sources = random_sources(seed)
        edges = np.array([(n, int(person)) for n, source in enumerate(sources) for person in source.identities])
        nodes = len(sources) + edges[:, 1].max() + 1
        graph = coo_array((np.ones(len(edges)), (edges[:, 0], len(sources) + edges[:, 1])), (nodes, nodes))
        component = connected_components(graph, directed=False)[1][: len(sources)]
        groups = groups_of(sources)
        assert sorted(index for group in groups for index in group) == list(range(len(sources)))
        expected = {frozenset(np.flatnonzero(component == number).tolist()) for number in component}
        assert {frozenset(group) for group in groups} == expected, f"seed {seed}"


def test_no_identity_is_in_two_splits() -> None:
    for seed in SEEDS:
        sources = random_sources(seed)
        splits_of: dict[str, set[str]] = defaultdict(set)
        for source, split in zip(sources, split_sources(sources, (0.5, 0.2, 0.3), seed), strict=True):
            for person in source.identities:
                splits_of[person].add(str(split))
        assert {len(splits) for splits in splits_of.values()} == {1}, f"seed {seed}"
        assert set.union(*splits_of.values()) <= set(SPLITS)


def test_order_of_the_sources_does_not_matter() -> None:
    ratios = (0.6, 0.2, 0.2)
    for seed in SEEDS:
        sources = random_sources(seed)
        shuffled = [sources[n] for n in np.random.default_rng(seed).permutation(len(sources))]
        split_of = dict(zip([s.name for s in sources], split_sources(sources, ratios, 3), strict=True))
        assert split_sources(shuffled, ratios, 3) == [split_of[source.name] for source in shuffled], f"seed {seed}"


@pytest.mark.parametrize("ratios", [(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_shares_of_single_persons_are_exact(ratios: tuple[float, float, float]) -> None:
    counts = Counter(split_sources(sources_of(*((str(n),) for n in range(100))), ratios, 0))
    assert {split: counts[split] for split in SPLITS} == {
        s: round(100 * r) for s, r in zip(SPLITS, ratios, strict=True)
    }


@pytest.mark.parametrize("pairs", [10, 33, 500])
def test_shares_of_faceforensics_are_within_a_group(pairs: int) -> None:
    counts = Counter(split_sources(faceforensics(pairs), (0.72, 0.14, 0.14), 0))
    for split, share in zip(SPLITS, (0.72, 0.14, 0.14), strict=True):
        assert abs(counts[split] - 4 * pairs * share) <= 4


@pytest.mark.parametrize("seed", range(20))
def test_nearly_all_persons_stay_where_they_were_when_a_few_files_come_or_go(seed: int) -> None:
    """At each of two borders between splits at most the groups move that come or go, and one for rounding."""
    sources, ratios = faceforensics(250), (0.72, 0.14, 0.14)
    before = dict(zip([s.name for s in sources], split_sources(sources, ratios, seed), strict=True))
    fewer = [source for n, source in enumerate(sources) if n // 4 not in (3, 141, 200)]  # three groups of four files
    after = split_sources(fewer, ratios, seed)
    moved = sum(before[source.name] != split for source, split in zip(fewer, after, strict=True))
    assert moved <= 2 * (3 + 1) * 4
    assert (
        sum(before[s.name] != o for s, o in zip(sources, split_sources(sources, ratios, seed + 1), strict=True)) > 200
    )


def test_large_groups_are_spread_over_the_splits() -> None:
    """Six families of 20 files each, where shares are of 84, 12 and 24 files: the smallest gets one all the same."""
    families = [tuple(f"{family} {child}" for child in range(3)) for family in "abcdef"]
    sources = sources_of(*(persons for persons in families for _ in range(20)))
    counts = Counter(split_sources(sources, (0.7, 0.1, 0.2), 0))
    assert counts == {"train": 80, "val": 20, "test": 20}


def celebdf(celebrities: int, others: int) -> list[Source]:
    """Each of some celebrities' originals, swaps of each with each, and originals of others."""
    ids = range(celebrities)
    reals = [(f"id{n}",) for n in ids for _ in range(3)] + [(f"youtube{n}",) for n in range(others)]
    fakes = [(f"id{a}", f"id{b}") for a in ids for b in ids if a != b]
    sources = sources_of(*reals, *fakes)
    return [replace(source, label=int(number >= len(reals))) for number, source in enumerate(sources)]


@pytest.mark.parametrize("seed", range(20))
def test_persons_linked_by_fakes_are_split_one_by_one(seed: int) -> None:
    sources, ratios = celebdf(30, 40), (0.7, 0.1, 0.2)
    splits = split_sources(sources, ratios, seed)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for source, split in zip(sources, splits, strict=True):
        for person in source.identities:
            splits_of[person] |= {split} if split else set()
    assert {len(found) for found in splits_of.values()} == {1}
    for source, split in zip(sources, splits, strict=True):
        found = set.union(*(splits_of[person] for person in source.identities))
        assert (split is None) == (len(found) > 1), source
    # 30 persons in 21, 3 and 6: swaps among them
    fakes = Counter(split for source, split in zip(sources, splits, strict=True) if source.label)
    assert fakes == {"train": 21 * 20, "val": 3 * 2, "test": 6 * 5, None: 30 * 29 - 420 - 6 - 30}
    # which leaves room in val and test alone
    others = {
        split for source, split in zip(sources, splits, strict=True) if source.identities[0].startswith("youtube")
    }
    assert others == {"val", "test"}


@pytest.mark.parametrize(
    "sources",
    [
        pytest.param(celebdf(2, 10), id="a split would lack fakes all the same"),
        pytest.param([replace(source, label=0) for source in celebdf(30, 0)], id="a corpus of originals"),
        pytest.param([replace(s, split="train" if n == 0 else None) for n, s in enumerate(celebdf(30, 9))], id="given"),
    ],
)
def test_nothing_is_left_out_where_that_would_not_help(sources: list[Source]) -> None:
    assert None not in split_sources(sources, (0.7, 0.1, 0.2), 0)


def prescribed(**splits: str) -> list[Source]:
    """``prescribed(a_b="train", c="")`` is a video of a and b that has to be in train, and one of c."""
    return [
        Source(Path(f"{n}.mp4"), f"{n}.mp4", 0, "real", tuple(n.split("_")), split or None)
        for n, split in splits.items()
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("reals", "fakes"), [(10, 10), (10, 190), (5, 5), (3, 3), (3, 60), (4, 7), (3, 0), (4, 0), (0, 5)]
)
def test_each_split_has_both_labels_where_persons_allow(reals: int, fakes: int, seed: int) -> None:
    ratios = (0.7, 0.1, 0.2)
    sources = sources_of(*((str(n),) for n in range(reals + fakes)))
    sources = [replace(source, label=int(n >= reals)) for n, source in enumerate(sources)]
    counts = Counter(zip(split_sources(sources, ratios, seed), (s.label for s in sources), strict=True))
    for label, number in enumerate((reals, fakes)):
        assert all(counts[split, label] for split in SPLITS) or not number
        if min(reals, fakes) >= 10:
            shares = {split: number * ratio for split, ratio in zip(SPLITS, ratios, strict=True)}
            assert all(abs(counts[split, label] - share) <= 1 for split, share in shares.items())


def test_a_prescribed_split_takes_its_whole_group() -> None:
    sources = prescribed(a="test", a_b="", b_c="", c="", d="val", d_e="val", f="", g="")
    assert split_sources(sources, (1.0, 0.0, 0.0), 0) == ["test"] * 4 + ["val"] * 2 + ["train"] * 2


def test_the_others_fill_up_to_the_shares() -> None:
    sources = sources_of(*((str(n),) for n in range(100)))
    given = [replace(source, split="test") if n < 20 else source for n, source in enumerate(sources)]
    counts = Counter(split_sources(given, (0.5, 0.2, 0.3), 0))
    assert counts == {"train": 50, "val": 20, "test": 30}


def test_prescribed_splits_are_kept_whatever_the_order() -> None:
    for seed in SEEDS:
        sources = random_sources(seed)
        rng = np.random.default_rng(seed)
        for group in groups_of(sources):
            split = SPLITS[rng.integers(3)]
            for index in rng.permutation(group)[: rng.integers(len(group) + 1)]:
                sources[index] = replace(sources[index], split=split)
        splits = split_sources(sources, (0.6, 0.2, 0.2), 3)
        assert all(source.split in (None, split) for source, split in zip(sources, splits, strict=True))
        split_of = dict(zip([s.name for s in sources], splits, strict=True))
        shuffled = [sources[n] for n in rng.permutation(len(sources))]
        assert split_sources(shuffled, (0.6, 0.2, 0.2), 3) == [split_of[source.name] for source in shuffled]
        for group in groups_of(sources):
            assert len({splits[index] for index in group}) == 1, f"seed {seed}"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"c": "train", "b_a": "test", "a": "val"},
            r"^a\.mp4 is prescribed for val and b_a\.mp4 for test, but both show "
            r"identity 'a': give them one split or leave one out$",
        ),
        (
            {"a": "train", "a_b": "", "b_c": "", "c": "test"},
            r"^a\.mp4 is prescribed for train and c\.mp4 for test, but "
            r"other files link their identities 'a' and 'c': give them one split or leave one out$",
        ),
    ],
)
def test_one_group_in_two_prescribed_splits_is_refused(splits: dict[str, str], message: str) -> None:
    for sources in (prescribed(**splits), prescribed(**splits)[::-1]):
        with pytest.raises(StageError, match=message):
            split_sources(sources, (0.7, 0.1, 0.2), 0)


def test_a_person_who_is_but_the_name_of_files_in_two_prescribed_splits_is_said_to_be_that() -> None:
    sources = [
        Source(Path(f"{split}/7.mp4"), f"{split}/7.mp4", 0, "real", ("7",), split) for split in ("train", "test")
    ]
    message = r"both show identity '7', which is but the name of both files \(a csv may tell persons apart in its"
    with pytest.raises(StageError, match=message):
        split_sources(sources, (0.7, 0.1, 0.2), 0)


def test_the_seed_decides() -> None:
    sources = faceforensics(20)
    ratios = (0.5, 0.2, 0.3)
    assert split_sources(sources, ratios, 1) == split_sources(sources, ratios, 1)
    assert split_sources(sources, ratios, 1) != split_sources(sources, ratios, 2)


@pytest.mark.parametrize(
    ("text", "ratios"), [("0.7,0.1,0.2", (0.7, 0.1, 0.2)), ("0,0,1", (0, 0, 1)), (" .5, .25 ,.25", (0.5, 0.25, 0.25))]
)
def test_ratios_are_parsed(text: str, ratios: tuple[float, float, float]) -> None:
    assert parse_ratios(text) == ratios


@pytest.mark.parametrize(
    "text", ["", "1", "0.7,0.3", "0.5,0.5,0.5", "1.5,-0.5,0", "a,b,c", "nan,0.5,0.5", "inf,0,0", "1,0,0,0"]
)
def test_other_ratios_are_refused(text: str) -> None:
    with pytest.raises(
        StageError, match=rf"--ratios '{text}': give three shares for train, val and test that sum to 1"
    ):
        parse_ratios(text)
