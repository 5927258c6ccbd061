"""Work that takes long: made by one process at a time, and gone on with after an interruption.

This module stands beside ``files.py``: every room uses it and it uses none of them.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from files import aside_of, refuse_existing, remove, remove_stale, writing, written_whole
from parsing import parse_json
from stage import StageError, reason_of, say, some_of


def unfinished_of(out: Path) -> Path:
    """Return the path at which unfinished work on ``out`` grows over several calls.

    Raises StageError if there is a link, which would lead what is written and removed there elsewhere.
    """
    folder = out.with_name(f".{out.name}.unfinished")
    if folder.is_symlink():
        raise StageError(f"{folder} is a link, where unfinished work would grow: remove it")
    return folder


def discard(folder: Path) -> None:
    """Remove a folder of unfinished work, all of it or nothing: one without its mark would pass for another command's.

    What a kill leaves of it is removed with other leftovers beside what was to be made.
    """
    out = folder.with_name(folder.name.removeprefix(".").removesuffix(".unfinished"))
    gone = aside_of(out)
    remove(gone)
    folder.replace(gone)
    remove(gone)


class Lock:
    """The lock of the one process that makes ``out``: a locked file beside it, released however that process ends.

    Raises StageError while another process holds it, and if ``out`` exists already, unless it ``may_exist``.
    """

    def __init__(self, out: Path, may_exist: bool = False) -> None:
        self._lock(out)
        while not os.fstat(self._file.fileno()).st_nlink:  # removed by its last holder between opening and locking
            self.close()
            self._lock(out)
        if may_exist:
            remove_stale(out)
        else:
            try:
                refuse_existing(out)
            except StageError:
                self.remove()
                raise

    def _lock(self, out: Path) -> None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = out.with_name(f".{out.name}.lock")
            # A link is not followed, and nothing is emptied: it might lead to any file.
            self._file = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b")
            self._path = file
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise StageError(f"{out} is being made by another process: wait for it or give another --out") from error
        except OSError as error:  # some network file systems have no locks
            say(f"{self._path} cannot be locked ({reason_of(error)}): start no second command that makes {out}")

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. The lock file stays, as unfinished work does."""
        self._file.close()

    def remove(self) -> None:
        """Remove the lock file, once work is finished or if it was not begun, and release the lock."""
        self._path.unlink(missing_ok=True)
        self.close()


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the lock on ``out`` while it is made. Raises StageError as ``Lock`` does."""
    lock = Lock(out)
    try:
        yield
    finally:
        lock.remove()


def versions_of(tools: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed packages by name."""
    return {tool: version(tool) for tool in tools}


def go_on_with(folder: Path, mark: str, asked: str, begun: Callable[[], bool], meaning: Mapping[str, str]) -> None:
    """Make a folder of unfinished work, or go on with one that was made with the same settings.

    mark: name of the file in it that records the settings. asked: the settings, a JSON object. begun: tells whether
    there is work that could be lost. meaning: text for settings whose values tell a user nothing. Raises StageError
    for unfinished work with other settings, or of another kind, which has no such file.
    """
    file = folder / mark
    if not file.exists() and any(path.is_file() and path.suffix != ".partial" for path in folder.rglob("*")):
        raise StageError(
            f"{folder} is unfinished work of another command: give another --out, call that command again, or remove it"
        )
    old = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if old != asked:
        if begun():
            raise StageError(
                f"{folder} is unfinished work of another call ({_differing(old, asked, meaning)}): call the command "
                "as then to go on with it, or remove it to begin anew"
            )
        if folder.exists():
            discard(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as aside:
        aside.write_text(asked, encoding="utf-8")


def _differing(old_text: str, new_text: str, meaning: Mapping[str, str]) -> str:
    """Return which values differ between two JSON objects, nested ones included, and what they were."""
    try:
        old, new = (_flat(parse_json(text)) for text in (old_text, new_text))
    except (ValueError, AttributeError):
        return "they cannot be read"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    messages = [meaning.get(name, f"{name} was {json.dumps(old.get(name))[:40]}") for name in names]
    messages = list(dict.fromkeys(messages))
    return some_of(messages)


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON object by name; those of nested objects by their own names."""
    values: dict[str, Any] = {}
    for name, entry in value.items():
        values |= _flat(entry) if isinstance(entry, dict) else {name: entry}
    return values
