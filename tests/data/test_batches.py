"""Balanced batches, against counts of what was drawn."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.batches import Batch, balanced_batches, batch_pixels
from data.store import Clip, ClipStore

T = 5


def clips_of(valid: Sequence[tuple[int, str]]) -> list[Clip]:
    """Clips of T frames: a label, and ``1`` for a valid frame, ``0`` for another."""
    return [
        Clip(str(n), str(n), label, "m", (str(n),), np.array([flag == "1" for flag in flags]), 0)
        for n, (label, flags) in enumerate(valid)
    ]


FEW_FAKES = clips_of([(0, "11111"), (1, "01101"), (0, "11110"), (0, "11111"), (0, "00111")])
FEW_REALS = clips_of([(1, "11111"), (1, "11111"), (0, "10000"), (1, "10101")])
EVEN = clips_of([(0, "11111"), (1, "11111")])


def valid_rows(clips: Sequence[Clip], label: int) -> set[int]:
    return {c * T + t for c, clip in enumerate(clips) for t in range(T) if clip.label == label and clip.valid[t]}


def drawn(batches: Sequence[Batch], label: int) -> Counter[int]:
    return Counter(row for b in batches for row, of in zip(b.rows.tolist(), b.labels, strict=True) if of == label)


@pytest.mark.parametrize("clips", [FEW_FAKES, FEW_REALS, EVEN], ids=["few fakes", "few reals", "even"])
@pytest.mark.parametrize("size", [2, 4, 6, 64])
def test_batches_are_full_balanced_and_hold_every_valid_frame(clips: list[Clip], size: int) -> None:
    batches = list(balanced_batches(clips, size, (0,)))
    assert [Counter(batch.labels.tolist()) for batch in batches] == [{0: size // 2, 1: size // 2}] * len(batches)
    assert {batch.rows.shape for batch in batches} == {(size,)}
    more = max(len(valid_rows(clips, label)) for label in (0, 1))
    assert len(batches) == -(-more // (size // 2))
    for label in (0, 1):
        counts = drawn(batches, label)
        assert set(counts) == valid_rows(clips, label)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_seed_decides_the_order() -> None:
    rows = [np.concatenate([b.rows for b in balanced_batches(FEW_FAKES, 4, seed)]) for seed in ((0, 1), (0, 1), (0, 2))]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


def test_frames_of_one_clip_do_not_stay_together() -> None:
    clips = clips_of([(label, "11111") for label in (0, 1) for _ in range(20)])
    rows = np.concatenate([batch.rows for batch in balanced_batches(clips, 8, (0,))])
    assert sum(a // T == b // T for a, b in pairwise(rows.tolist())) < len(rows) / 4


def test_pixels_of_a_batch_are_those_of_the_store(demo_store: Path) -> None:
    store = ClipStore(demo_store)
    clips = store.clips("train")
    rows = np.array([47, 0, 13, 13, 12, 3, 46])
    expected = [store.pixels(clips[row // 4])[row % 4] for row in rows]
    np.testing.assert_array_equal(batch_pixels(store, clips, rows), expected)
