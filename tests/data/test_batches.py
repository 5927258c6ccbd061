"""Balanced batches, against counts of what was drawn."""

import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.batches import Batch, balanced_batches, label_shares, natural_batches, read_batch
from data.store import Clip, ClipStore
from data.views import View, ViewRule, Views
from stage import Per, StageError, WrongArgument
from tests.conftest import note_anew

T = 5


class Drawn(Views):
    """Views of made-up clips, whose pictures nobody asks for."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.views = [View(clip, 0, False) for clip in clips]
        self.unreadable, self.split = set(), "train"


def clip(name: str, label: int, flags: str, method: str = "m") -> Clip:
    valid = np.array([flag == "1" for flag in flags])
    return Clip(name, name, label, method, (name,), valid, np.zeros((len(flags), 4), np.float32), 0)


def views_of(valid: Sequence[tuple[int, str]]) -> Views:
    """Clips of T frames: a label, and ``1`` for a valid frame, ``0`` for another."""
    return Drawn([clip(str(n), label, flags) for n, (label, flags) in enumerate(valid)])


FEW_FAKES = views_of([(0, "11111"), (1, "01101"), (0, "11110"), (0, "11111"), (0, "00111")])
FEW_REALS = views_of([(1, "11111"), (1, "11111"), (0, "10000"), (1, "10101")])
EVEN = views_of([(0, "11111"), (1, "11111")])


def valid_rows(views: Views, label: int) -> set[int]:
    return {v * T + t for v, view in enumerate(views.views) for t in range(T) if view.label == label and view.valid[t]}


def drawn(batches: Sequence[Batch], label: int) -> Counter[int]:
    return Counter(row for b in batches for row, of in zip(b.rows.tolist(), b.labels, strict=True) if of == label)


@pytest.mark.parametrize("views", [FEW_FAKES, FEW_REALS, EVEN], ids=["few fakes", "few reals", "even"])
@pytest.mark.parametrize("size", [2, 4, 6, 64])
def test_batches_are_full_balanced_and_hold_every_valid_frame(views: Views, size: int) -> None:
    batches = list(balanced_batches(views, size, (0,)))
    assert [Counter(batch.labels.tolist()) for batch in batches] == [{0: size // 2, 1: size // 2}] * len(batches)
    assert {batch.rows.shape for batch in batches} == {(size,)}
    more = max(len(valid_rows(views, label)) for label in (0, 1))
    assert len(batches) == -(-more // (size // 2))
    for label in (0, 1):
        counts = drawn(batches, label)
        assert set(counts) == valid_rows(views, label)
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("unit", ["frame", "clip"])
@pytest.mark.parametrize("size", [2, 6, 64])
def test_natural_batches_are_full_and_hold_everything_once(unit: Per, size: int) -> None:
    batches = list(natural_batches(FEW_FAKES, size, (0,), unit))
    assert {batch.rows.shape for batch in batches} == {(size,)}
    everything = set(range(5)) if unit == "clip" else valid_rows(FEW_FAKES, 0) | valid_rows(FEW_FAKES, 1)
    assert len(batches) == -(-len(everything) // size)
    counts = drawn(batches, 0) + drawn(batches, 1)
    assert set(counts) == everything
    assert max(counts.values()) - min(counts.values()) <= 1
    for row in drawn(batches, 1):
        assert FEW_FAKES.views[row if unit == "clip" else row // T].label == 1


def test_shares_of_labels_count_valid_frames_or_clips() -> None:
    assert label_shares(FEW_FAKES, "frame").tolist() == [17 / 20, 3 / 20]
    assert label_shares(FEW_FAKES, "clip").tolist() == [4 / 5, 1 / 5]


def test_batches_of_clips_hold_every_view_and_both_labels() -> None:
    for batch in balanced_batches(FEW_FAKES, 4, (0,), "clip"):
        assert [FEW_FAKES.views[row].label for row in batch.rows] == batch.labels.tolist() == [0, 0, 1, 1]


def test_a_pass_over_one_number_of_views_pairs_forgeries_with_their_originals(demo_store: Path) -> None:
    views = Views(ClipStore(demo_store), ViewRule(views=3, forge=True))
    views.views = [view for view in views.views if view.clip.label == 0]
    for batch in balanced_batches(views, 8, (0,), number=2):
        chosen = [views.views[row] for row in (batch.rows // 4).tolist()]
        assert {view.number for view in chosen} == {2}
        assert [view.clip for view in chosen[:4]] == [view.clip for view in chosen[4:]]
        assert (batch.rows[:4] % 4).tolist() == (batch.rows[4:] % 4).tolist()


def test_a_part_of_a_batch_is_balanced_too() -> None:
    batch = Batch(np.arange(8), np.repeat([0, 1], 4))
    assert [batch.part(n, 2).rows.tolist() for n in (0, 1)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert batch.part(1, 2).labels.tolist() == [0, 0, 1, 1]


def test_seed_decides_the_order() -> None:
    rows = [np.concatenate([b.rows for b in balanced_batches(FEW_FAKES, 4, seed)]) for seed in ((0, 1), (0, 1), (0, 2))]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


def test_frames_of_one_clip_do_not_stay_together() -> None:
    views = views_of([(label, "11111") for label in (0, 1) for _ in range(20)])
    rows = np.concatenate([batch.rows for batch in balanced_batches(views, 8, (0,))])
    assert sum(a // T == b // T for a, b in pairwise(rows.tolist())) < len(rows) / 4


def test_methods_of_forgery_are_mixed_in_proportion() -> None:
    methods = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    views = Drawn([clip(f"f{n}", 1, "1" * T, m) for n, m in enumerate(methods)] + [clip("r", 0, "1" * T, "real")])
    for batch in list(balanced_batches(views, 24, (0,))):
        counts = Counter(views.views[row // T].method for row in batch.rows[batch.labels == 1])
        assert [abs(counts[method] - share) <= 1 for method, share in (("a", 6), ("b", 4), ("c", 2))] == [True] * 3


def test_views_that_cannot_be_read_are_not_drawn() -> None:
    views = views_of([(0, "11111"), (0, "11111"), (1, "11111")])
    views.unreadable.add(1)
    rows = np.concatenate([batch.rows for batch in balanced_batches(views, 4, (0,))])
    assert set((rows // T).tolist()) == {0, 2}
    views.unreadable.add(0)
    views.store = type("Store", (), {"path": Path("store")})()  # type: ignore[assignment]
    with pytest.raises(StageError, match="no real view of store can be read: prepare it again"):
        next(balanced_batches(views, 4, (0,)))


def test_pixels_of_a_batch_are_those_of_the_store(demo_store: Path) -> None:
    views = Views(ClipStore(demo_store), ViewRule())
    rows = np.array([47, 0, 13, 13, 12, 3, 46])
    expected = [views.store.pixels(views.views[row // 4].clip)[row % 4] for row in rows]
    np.testing.assert_array_equal(read_batch(views, Batch(rows, np.zeros(7, np.int64))).pixels, expected)


def test_pictures_of_clips_come_with_their_valid_frames(demo_store: Path) -> None:
    views = Views(ClipStore(demo_store), ViewRule())
    read = read_batch(views, Batch(np.array([5, 1]), np.zeros(2, np.int64)), "clip")
    pixels, valid = read.pixels, read.valid
    np.testing.assert_array_equal(pixels, [views.store.pixels(views.views[n].clip) for n in (5, 1)])
    np.testing.assert_array_equal(valid, [views.views[n].valid for n in (5, 1)])


@pytest.fixture
def damaged(demo_store: Path, tmp_path: Path) -> Views:
    """Views of a store of which the pictures of the first real and the first fake clip are damaged."""
    store = shutil.copytree(demo_store, tmp_path / "store")
    views = Views(ClipStore(store), ViewRule())
    for label in (0, 1):
        file = store / "clips" / f"{next(v.clip.video_id for v in views.views if v.label == label)}.parquet"
        content = bytearray(file.read_bytes())
        for start in (place for place in range(len(content)) if content[place : place + 4] == b"IDAT"):
            content[start + 8 : start + 40] = bytes(32)
        file.write_bytes(content)
    note_anew(store)
    return Views(ClipStore(store), ViewRule())


def test_batches_stay_full_and_balanced_when_clips_cannot_be_read(
    damaged: Views, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = [next(n for n, view in enumerate(damaged.views) if view.label == label) for label in (0, 1)]
    for batch in list(balanced_batches(damaged, 16, (0,))):
        pixels = read_batch(damaged, batch).pixels
        assert pixels.shape == (16, 64, 64, 3)
        for row, label, crop in zip(batch.rows.tolist(), batch.labels.tolist(), pixels, strict=True):
            whole = [n for n, view in enumerate(damaged.views) if view.label == label and n not in broken]
            sources = whole if row // 4 in broken else [row // 4]
            assert any((crop == frame).all() for n in sources for frame in damaged.pixels(damaged.views[n]))
    assert damaged.unreadable == set(broken)
    assert damaged.summary()["replaced_clips"] == sorted(damaged.views[n].clip.clip_id for n in broken)
    said = capfd.readouterr().err
    assert all(said.count(f"clip {damaged.views[n].clip.clip_id} is replaced by others: ") == 1 for n in broken)
    assert {row // 4 for batch in balanced_batches(damaged, 16, (1,)) for row in batch.rows.tolist()}.isdisjoint(broken)


def test_outside_training_nothing_is_replaced(damaged: Views) -> None:
    damaged.split = "val"
    broken = next(n for n, view in enumerate(damaged.views) if view.label == 0)
    with pytest.raises(StageError, match=r"is missing or damaged \(.+\): prepare the store again"):
        read_batch(damaged, Batch(np.array([broken]), np.array([0])), "clip")


def test_a_policy_that_is_refused_ends_the_training_and_blames_no_clip(demo_store: Path) -> None:
    views = Views(ClipStore(demo_store), ViewRule(views=2, augment="rand-m9.5"))
    with pytest.raises(WrongArgument, match=r"timm refuses --augment rand-m9\.5"):
        read_batch(views, Batch(np.array([len(views.views) - 1]), np.array([0])), "clip")
    assert views.unreadable == set()
