"""Fills the blocks of a cache of frozen outputs: one process in place, several each into its own file first."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.compute import Compute
from data.store import DamagedClip
from data.views import View, Views
from files import CannotWrite, remove_stale, require_writable, writing, written_whole
from resuming import Lock
from stage import Modality, StageError, progress, reason_of, say

FLUSHED_VIEWS = 32
"""Number of views after which the computed arrays are flushed to the disk."""
SECONDS_BETWEEN_LOOKS = 2.0
"""Pause of a training that waits for another to fill their cache."""

OfView = Callable[[NDArray[np.uint8], NDArray[np.bool_]], Tensor]
"""From a view's pictures (``Views.pixels``) and valid frames, bool [T], to the arrays of its frames, [T, ...]."""


class Filling:
    """Fills the blocks of one cache.

    Block N holds view number N of each clip: its rows in ``block-N.npy``, which of its views are done in
    ``block-N.done.npy``.
    """

    def __init__(
        self,
        folder: Path,
        modalities: Sequence[Modality],
        views: Views,
        compute: OfView,
    ) -> None:
        self.folder, self.modalities, self.views, self.compute = folder, modalities, views, compute
        side, several = views.store.size, [len(modalities)] if len(modalities) > 1 else []
        self.shape = tuple(compute(np.zeros((1, *several, side, side, 3), np.uint8), np.ones(1, np.bool_)).shape[1:])
        """Shape of one frame's array."""

    def opened(self, number: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return a block's rows, float16 [V * T, ...], and which of its V views are done, bool [V]; both mapped."""
        block, file = self.views.blocks[number], self.folder / f"block-{number}"
        if not file.with_suffix(".npy").exists():  # removed to free the disk: its views are no longer done
            file.with_suffix(".done.npy").unlink(missing_ok=True)
        rows = _mapped(file.with_suffix(".npy"), np.float16, (len(block) * self.views.store.frames, *self.shape))
        return rows, _mapped(file.with_suffix(".done.npy"), np.bool_, (len(block),))

    def fill(self) -> None:
        """Compute all views that are not done, and write them into the blocks, one training after another."""
        with self._lock_unless_whole() as lock:
            self._merge_parts()
            for number in range(len(self.views.blocks)):
                rows, done = self.opened(number)
                _put(self.views.store.frames, self._computed(number, np.flatnonzero(~done).tolist()), rows, done)
            if lock:
                lock.remove()

    def fill_together(self, where: Compute) -> None:
        """Compute this process's share into a file of its own; then the first process alone copies all into the blocks.

        On a network disk, two machines that write into one mapped file overwrite each other's parts of a page.
        """
        with self._lock_unless_whole() if where.rank == 0 else contextlib.nullcontext() as lock:
            if lock:
                self._merge_parts()  # left by an interrupted training
            where.gathered(None)
            for number in range(len(self.views.blocks)):
                _, done = self.opened(number)
                todo = [index for index in range(where.rank, len(done), where.processes) if not done[index]]
                if todo:
                    self._write_part(
                        self.folder / f"block-{number}.{where.rank}-of-{where.processes}.part", number, todo
                    )
            where.gathered(None)
            if lock:
                self._merge_parts()
                lock.remove()
        where.gathered(None)

    def _lock_unless_whole(self) -> contextlib.AbstractContextManager[Lock | None]:
        """Return the cache's lock, once no other training fills it; None if nothing is to be done or written."""
        waits = False
        blocks = range(len(self.views.blocks))
        while any(next(self.folder.glob(f"block-{number}.*.part"), None) for number in blocks) or not all(
            self.opened(number)[1].all() for number in blocks
        ):
            try:
                return Lock(self.folder, may_exist=True)
            except CannotWrite:  # whole for these views, perhaps, except for those that cannot be read
                break
            except StageError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
            if not waits:
                say(f"{self.folder} is being filled by another training: waiting for it (or give another --cache)")
            waits = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return contextlib.nullcontext()

    @property
    def _record(self) -> np.dtype[np.void]:
        """Record type of a part file: a view's index in its block and its rows."""
        return np.dtype([("view", np.int64), ("rows", np.float16, (self.views.store.frames, *self.shape))])

    def _write_part(self, part: Path, number: int, todo: list[int]) -> None:
        """Compute views of a block and write them as records to the file ``part``, unless none can be read."""
        computed = self._computed(number, todo)
        if (first := next(computed, None)) is None:
            return
        require_writable(part, "--cache")
        with writing(part), part.open("wb") as file:
            for count, (index, arrays) in enumerate(itertools.chain([first], computed), start=1):
                file.write(np.int64(index).tobytes() + arrays.tobytes())
                if count % FLUSHED_VIEWS == 0:
                    file.flush()
                    os.fsync(file.fileno())
            file.flush()
            os.fsync(file.fileno())

    def _merge_parts(self) -> None:
        """Copy existing part files into the blocks and remove them; of a torn file only whole records are copied."""
        for number, block in enumerate(self.views.blocks):
            rows, done = self.opened(number)
            for part in sorted(self.folder.glob(f"block-{number}.*.part")):
                if whole_records := part.stat().st_size // self._record.itemsize:
                    records = np.memmap(part, self._record, "r", shape=(whole_records,))
                    arrays_by_view = ((int(record["view"]), record["rows"]) for record in records)
                    in_block = (entry for entry in arrays_by_view if 0 <= entry[0] < len(block))
                    _put(self.views.store.frames, in_block, rows, done)
                part.unlink()

    def _computed(self, number: int, todo: list[int]) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield the index and arrays, float16 [T, ...], of views of a block, without views that cannot be read."""
        first = sum(map(len, self.views.blocks[:number]))
        for index in progress(todo, self.folder.name) if todo else []:
            arrays = self._compute(self.views.blocks[number][index], first + index)
            if arrays is not None:
                yield index, arrays

    def _compute(self, view: View, number: int) -> NDArray[np.float16] | None:
        """Return the arrays of a view's frames, float16 [T, ...]; None, and mark the view, if it cannot be read.

        Raises DamagedClip for a view of another split than train, and StageError for numbers beyond half precision.
        """
        try:
            pixels = self.views.pixels(view, modalities=self.modalities)
        except DamagedClip as error:
            if self.views.split != "train":
                raise
            say(f"clip {view.clip.clip_id} is left out of training: {error}", everywhere=True)
            self.views.unreadable.add(number)
            return None
        arrays: NDArray[np.float16] = self.compute(pixels, view.valid).to(torch.float16).cpu().numpy()
        if not np.isfinite(arrays).all():
            raise StageError(
                f"clip {view.clip.clip_id}: the frozen network gives numbers beyond half precision; "
                "give --precision fp32, if that is not enough --unfreeze all (distill: --live-teacher), or others"
            )
        return arrays


def _put(frames: int, computed: Iterable[tuple[int, NDArray[np.float16]]], rows: Any, done: NDArray[np.bool_]) -> None:
    """Copy the arrays of views, ``frames`` frames each, into a block's rows, and mark the views as done."""
    fresh: list[int] = []
    try:
        for index, arrays in computed:
            require_writable(Path(rows.filename), "--cache")
            rows[index * frames : (index + 1) * frames] = arrays
            fresh.append(index)
            if len(fresh) >= FLUSHED_VIEWS:
                _mark(rows, done, fresh)
    finally:
        _mark(rows, done, fresh)


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Open a memory-mapped array; create it, filled with zeros, if it does not exist.

    It is created under another name, so that a second process never sees half of it. A file that may not be written is
    opened for reading: all views may be done. Raises StageError if the file is damaged or of another shape or dtype.
    """
    if not path.exists():
        require_writable(path, "--cache")
        remove_stale(path)  # what a kill left may be as large as the block
        with written_whole(path, keep_existing=True) as aside:
            np.lib.format.open_memmap(aside, "w+", dtype, shape).flush()
            _reserve(aside)
    damaged = StageError(f"{path} is damaged or not of this cache: remove {path.parent}")
    try:
        rows = np.lib.format.open_memmap(path, "r")
        whole = rows.offset + rows.nbytes == path.stat().st_size
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy's reader raise nearly anything else
        raise damaged from error
    if rows.shape != shape or rows.dtype != dtype or not whole:
        raise damaged
    return np.lib.format.open_memmap(path, "r+" if os.access(path, os.W_OK) else "r")


def _reserve(path: Path) -> None:
    """Allocate the disk space of a sparse file: on a full disk, writing to its mapping would kill the process.

    Raises StageError if there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            room = f"{path.stat().st_size / 1e6:.0f} MB"
            raise StageError(
                f"{path.parent} has no room for {room} ({reason_of(error)}): give --cache on a larger disk"
            ) from error


def _mark(rows: Any, done: NDArray[np.bool_], fresh: list[int]) -> None:
    """Mark views as done once their rows are on the disk, so that a power cut cannot leave zeros that count."""
    if fresh:
        rows.flush()
        done[fresh] = True
        fresh.clear()
