"""Caches that several processes or trainings fill: what each computes, what is left half done, and who waits."""

import multiprocessing
import os
import platform
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compress.caches import FrameCache
from compress.filling import Filling
from data.store import ClipStore
from data.views import ViewRule, Views
from files import CannotWrite
from resuming import Lock
from stage import StageError
from tests.compress.means_cache import Means, check, fill, key_of


def _fill(store: Path, root: Path) -> None:
    views = Views(ClipStore(store), ViewRule(views=2))
    check(fill(root, key_of(views), views, Means()), views)


def test_two_writers_at_once_give_one_whole_cache(demo_store: Path, opened_store: ClipStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_fill, args=(demo_store, tmp_path)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    views, means = Views(opened_store, ViewRule(views=2)), Means()
    check(fill(tmp_path, key_of(views), views, means), views)
    assert means.calls == 1


class Together:
    """Of processes that fill a cache together, each a thread here: they meet where they gather."""

    def __init__(self, rank: int, barrier: threading.Barrier) -> None:
        self.rank, self.processes, self._barrier = rank, barrier.parties, barrier

    def gathered(self, found: object) -> list[object]:
        self._barrier.wait(60)
        return [found] * self.processes


def fill_together(store: Path, root: Path, processes: int, fail_after: int = 10**9) -> list[tuple[Means, FrameCache]]:
    """Fill a cache by so many processes, of which the last one fails after some calls."""
    barrier = threading.Barrier(processes)

    def work(rank: int) -> tuple[Means, FrameCache]:
        means = Means(fail_after if rank == processes - 1 else 10**9)
        views = Views(ClipStore(store), ViewRule(views=2))
        try:
            return means, FrameCache.fill(root, key_of(views), views, means, Together(rank, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(processes) as pool:
        return [own.result() for own in [pool.submit(work, rank) for rank in range(processes)]]


def test_a_whole_cache_on_a_disk_that_is_only_read_serves_and_one_that_lacks_views_says_what_to_do(
    opened_store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (Views(opened_store, ViewRule(views=n)) for n in (1, 2))
    fill(tmp_path, key_of(one), one, Means())
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "half", key_of(one), one, Means(fail_after=6))
    monkeypatch.setattr(os, "access", lambda path, _: tmp_path not in Path(path).parents)
    check(fill(tmp_path, key_of(one), one, Means()), one)
    with monkeypatch.context() as patch:  # several processes make no lock there either
        patch.setattr("compress.filling.Lock", None)
        own = Filling(tmp_path / key_of(one).folder, ["rgb"], one, Means())
        own.fill_together(Together(0, threading.Barrier(1)))
    for root, views in ((tmp_path, two), (tmp_path / "half", one), (tmp_path / "new", one)):
        with pytest.raises(StageError, match=r" cannot be written, as .* may not: give --cache, a folder that may"):
            fill(root, key_of(views), views, Means())


def test_what_a_kill_left_of_a_block_makes_room_for_it(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    folder = tmp_path / key_of(views).folder
    folder.mkdir()
    left = folder / f".block-0.npy.{platform.node()}.{2**22 + 1}.partial"  # more than Linux gives as a process's number
    left.write_bytes(b"half")
    check(fill(tmp_path, key_of(views), views, Means()), views)
    assert not left.exists()


def test_a_cache_that_is_only_read_serves_when_a_clip_is_damaged(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip's views were never done; they are left out again, and nothing needs to be written."""
    store = shutil.copytree(demo_store, tmp_path / "store")
    clip = ClipStore(store).clips("train")[0]
    file = store / "clips" / f"{clip.video_id}.parquet"
    table = pq.read_table(file)
    column = table.schema.get_field_index("rgb")
    spoiled = pa.array([[b"no picture"] * len(row) for row in table["rgb"].to_pylist()], table.schema.types[column])
    pq.write_table(table.set_column(column, table.schema.field(column), spoiled), file)
    views, root = Views(ClipStore(store), ViewRule()), tmp_path / "cache"
    fill(root, key_of(views), views, Means())
    assert not all(np.load(done).all() for done in root.rglob("*.done.npy"))

    def refused(folder: Path, **_: object) -> None:
        raise CannotWrite(f"cannot write {folder}: Read-only file system")

    monkeypatch.setattr("compress.filling.Lock", refused)
    monkeypatch.setattr(os, "access", lambda path, _: root not in Path(path).parents)
    again = Means()
    fill(root, key_of(views), views, again)
    Filling(root / key_of(views).folder, ["rgb"], views, again).fill_together(Together(0, threading.Barrier(1)))
    assert again.calls <= 2  # for the shape alone


def test_processes_together_give_the_cache_of_one(demo_store: Path, opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule(views=2))
    for means, cache in fill_together(demo_store, tmp_path, 3):
        check(cache, views)
        assert means.calls == 1 + len(views) // 3
    assert not list(tmp_path.rglob("*.part"))
    alone = Means()
    check(fill(tmp_path, key_of(views), views, alone), views)
    assert alone.calls == 1


def test_what_processes_left_half_done_is_taken_in(demo_store: Path, opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule(views=2))
    with pytest.raises((KeyboardInterrupt, threading.BrokenBarrierError)):
        fill_together(demo_store, tmp_path, 2, fail_after=4)
    (torn,) = tmp_path.rglob("block-0.1-of-2.part")
    record = torn.stat().st_size // 3
    torn.write_bytes(torn.read_bytes()[: 2 * record + 5])  # as a power cut leaves it
    calls = [means.calls - 1 for means, cache in fill_together(demo_store, tmp_path, 3) if not check(cache, views)]
    assert sum(calls) == len(views) // 2 - 2  # the first process had its half, the other one two views
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_waits_while_another_fills_their_cache(
    processes: int,
    demo_store: Path,
    opened_store: ClipStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a network disk, two that write into one mapped file overwrite each other's parts of a page."""
    views = Views(opened_store, ViewRule(views=2))
    other = Lock(tmp_path / key_of(views).folder, may_exist=True)

    def filled_by_the_other(_seconds: float) -> None:
        other.remove()
        fill(tmp_path, key_of(views), views, Means())

    monkeypatch.setattr("compress.filling.time.sleep", filled_by_the_other)
    for means, cache in fill_together(demo_store, tmp_path, processes):
        check(cache, views)
        assert means.calls == 1
    said = capsys.readouterr().err
    assert said.count("is being filled by another training: waiting for it (or give another --cache)") == 1


def test_what_a_process_did_not_see_is_missed(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    fill(tmp_path, key_of(views), views, Means())
    done = next(tmp_path.rglob("block-0.done.npy"))
    cache = FrameCache([], [np.arange(12) % 2 == 0], done.parent)
    with pytest.raises(StageError, match=r"lacks 6 views that another process was to fill: give --cache on a disk"):
        cache.require_whole(set())
    cache.require_whole(set(range(1, 12, 2)))
