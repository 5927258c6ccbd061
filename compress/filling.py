"""Filling the blocks of a cache of frozen outputs: by one process in place, by several each into a file of its own."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.store import DamagedClip
from data.views import View, Views
from files import require_writable, writing, written_whole
from stage import Modality, StageError, progress, say

FLUSHED_VIEWS = 32
"""Views after which what was computed is forced to the disk."""

OfView = Callable[[NDArray[np.uint8], NDArray[np.bool_]], Tensor]
"""A view's pictures (``Views.pixels``) and valid frames, bool [T], to what is kept of its frames, [T, ...]."""


class ProcessGroup(Protocol):
    """The processes that train together (``Compute``)."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def processes(self) -> int:
        """How many there are."""

    def gathered(self, found: Any) -> list[Any]:
        """Return what every process found, when all have."""


class Filling:
    """Fills the blocks of one cache.

    A block is the views of one number: ``block-N.npy`` holds their rows, ``block-N.done.npy`` which of them are there.
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
        """Of one frame's array."""

    def opened(self, number: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the rows of a block of views and which of the views are done, both mapped."""
        block, file = self.views.blocks[number], self.folder / f"block-{number}"
        if not file.with_suffix(".npy").exists():  # removed to free the disk: what was done is not any more
            file.with_suffix(".done.npy").unlink(missing_ok=True)
        rows = _mapped(file.with_suffix(".npy"), np.float16, (len(block) * self.views.store.frames, *self.shape))
        return rows, _mapped(file.with_suffix(".done.npy"), np.bool_, (len(block),))

    def fill(self) -> None:
        """Compute what is not done into its place."""
        for number in range(len(self.views.blocks)):
            rows, done = self.opened(number)
            _put(self.views.store.frames, self._computed(number, np.flatnonzero(~done).tolist()), rows, done)

    def fill_together(self, where: ProcessGroup) -> None:
        """Compute shares into files of their own; the first process alone puts them into their places.

        On a disk of a network, two machines that write into one mapped file overwrite each other's parts of a page.
        """
        if where.rank == 0:
            self._take_in()  # what an interrupted training has left
        where.gathered(None)
        for number in range(len(self.views.blocks)):
            _, done = self.opened(number)
            todo = [index for index in range(where.rank, len(done), where.processes) if not done[index]]
            if todo:
                self._note(self.folder / f"block-{number}.{where.rank}-of-{where.processes}.part", number, todo)
        where.gathered(None)
        if where.rank == 0:
            self._take_in()
        where.gathered(None)

    @property
    def _record(self) -> np.dtype[np.void]:
        """Of a part: a view's number in its block and its rows."""
        return np.dtype([("view", np.int64), ("rows", np.float16, (self.views.store.frames, *self.shape))])

    def _note(self, part: Path, number: int, todo: list[int]) -> None:
        with writing(part), part.open("wb") as file:
            for count, (index, found) in enumerate(self._computed(number, todo), start=1):
                file.write(np.int64(index).tobytes() + found.tobytes())
                if count % FLUSHED_VIEWS == 0:
                    file.flush()
                    os.fsync(file.fileno())
            file.flush()
            os.fsync(file.fileno())

    def _take_in(self) -> None:
        """Put into their places, and remove, the parts that are there; of one that was torn, what is whole."""
        for number, block in enumerate(self.views.blocks):
            rows, done = self.opened(number)
            for part in sorted(self.folder.glob(f"block-{number}.*.part")):
                if whole := part.stat().st_size // self._record.itemsize:
                    records = np.memmap(part, self._record, "r", shape=(whole,))
                    known = ((int(record["view"]), record["rows"]) for record in records)
                    _put(self.views.store.frames, (own for own in known if 0 <= own[0] < len(block)), rows, done)
                part.unlink()

    def _computed(self, number: int, todo: list[int]) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield the arrays of views of a block, by their numbers in it, but of those that cannot be read."""
        first = sum(map(len, self.views.blocks[:number]))
        for index in progress(todo, self.folder.name) if todo else []:
            found = self._compute(self.views.blocks[number][index], first + index)
            if found is not None:
                yield index, found

    def _compute(self, view: View, number: int) -> NDArray[np.float16] | None:
        """Return the arrays of a view's frames, or None if it cannot be read: it is marked so."""
        try:
            pixels = self.views.pixels(view, modalities=self.modalities)
        except DamagedClip as error:
            if self.views.split != "train":
                raise
            say(f"clip {view.clip.clip_id} is left out of training: {error}", everywhere=True)
            self.views.unreadable.add(number)
            return None
        found: NDArray[np.float16] = self.compute(pixels, view.valid).to(torch.float16).cpu().numpy()
        if not np.isfinite(found).all():
            raise StageError(
                f"clip {view.clip.clip_id}: the frozen network gives numbers beyond half precision; "
                "give --precision fp32, if that is not enough --unfreeze all (distill: --live-teacher), or others"
            )
        return found


def _put(frames: int, found: Iterable[tuple[int, NDArray[np.float16]]], rows: Any, done: NDArray[np.bool_]) -> None:
    """Put views' arrays, of so many frames, into their places in a block's rows, and mark the views as done."""
    fresh: list[int] = []
    try:
        for index, own in found:
            require_writable(Path(rows.filename), "--cache")
            rows[index * frames : (index + 1) * frames] = own
            fresh.append(index)
            if len(fresh) >= FLUSHED_VIEWS:
                _mark(rows, done, fresh)
    finally:
        _mark(rows, done, fresh)


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Open an array on disk, made of zeros if it is not there. Made aside, so that a second process sees it whole.

    Where it may not be written it is opened to be read: all may be done.
    """
    if not path.exists():
        require_writable(path, "--cache")
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
    """Take the disk that a file of zeros will need: on a full disk, writing to its mapping would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _mark(rows: Any, done: NDArray[np.bool_], fresh: list[int]) -> None:
    """Mark views as done once their rows are on the disk, so that a power cut cannot leave zeros that count."""
    if fresh:
        rows.flush()
        done[fresh] = True
        fresh.clear()
