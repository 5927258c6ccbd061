"""Journal of work on many files: each gets a row when it is done, so that an interrupted command can resume."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.parquet import Row
from files import written_whole
from processes import WorkerDied, in_processes
from stage import StageError, say

KILLER = "a process died of it, perhaps for want of memory"
"""Reason in the row of a file that kills every process that works on it."""


class Journal:
    """Rows in a folder, one JSON file per name; several processes may write at the same time."""

    def __init__(self, folder: Path) -> None:
        self._rows, self._started = folder / "rows", folder / "started"

    def open(self) -> None:
        """Make the folders, and remove marks and partial files of an interrupted run."""
        for folder in (self._rows, self._started):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in (*self._started.iterdir(), *self._rows.glob(".*.partial")):
            stale.unlink()

    def begin(self, name: str) -> None:
        """Mark a file as begun, so that a file that kills its process can be identified."""
        (self._started / name).touch()

    def note(self, name: str, row: Row) -> None:
        """Write a file's row, with which it is done."""
        with written_whole(self._rows / f"{name}.json") as aside:
            aside.write_text(json.dumps(row), encoding="utf-8")
        (self._started / name).unlink(missing_ok=True)

    def row(self, name: str) -> Row | None:
        """Return a file's row, or None if it is not done; after a power cut a row's file can be empty."""
        try:
            row: Row = json.loads((self._rows / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return row

    def noted(self, name: str) -> int | None:
        """Return when a file's row was written, in nanoseconds since the epoch; None if it has none."""
        file = self._rows / f"{name}.json"
        return file.stat().st_mtime_ns if file.exists() else None

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all files that are done."""
        for file in sorted(self._rows.glob("*.json")):
            if row := self.row(file.stem):
                yield row

    def forget(self, name: str) -> None:
        """Remove a file's row, so that it is worked on again."""
        (self._rows / f"{name}.json").unlink(missing_ok=True)

    def taken_up(self) -> Iterator[str]:
        """Yield the names of files that were begun and not finished, and remove their marks."""
        for mark in sorted(self._started.iterdir()):
            mark.unlink()
            yield mark.name


def in_noted_processes(
    function: Callable[..., object],
    jobs: Mapping[str, tuple[Any, ...]],
    journal: Journal,
    workers: int,
    description: str,
    note_killer: Callable[[str], None],
) -> None:
    """Call ``function(*job)``, which begins and notes its file, for every job in local processes.

    A file that kills its process is tried again alone; if it kills that process too, ``note_killer(name)`` notes it.
    Raises StageError if processes die twice in a row without working on a file.
    """
    died_idle = False
    before = {name: journal.noted(name) for name in jobs}
    pending = dict(jobs)
    while True:
        try:
            in_processes(function, pending.values(), workers, description)
            return
        except WorkerDied as error:
            suspects = set(journal.taken_up())
            if died_idle and not suspects:
                raise StageError(f"{error}: run again with fewer --workers, what is done is kept") from error
            died_idle = not suspects
            say(f"{error}; trying {'what it was at alone' if suspects else 'again'}")
        for name in sorted(suspects):
            try:
                in_processes(function, [jobs[name]], 1, description)
            except WorkerDied:
                note_killer(name)
        pending = {name: job for name, job in pending.items() if journal.noted(name) == before[name]}
