"""Files that go away or change while they are read: deleted, replaced, still written, or on a disk that has gone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from data.picture import UnreadableVideo


def is_there(path: Path) -> bool:
    """Tell whether a local file can be seen."""
    return _state(path) is not None


def disk_has_gone(path: Path) -> bool:
    """Tell whether a local file is gone with all that lay beside it, and was not deleted alone."""
    if is_there(path):
        return False
    try:
        return not any(path.parent.iterdir())
    except OSError:
        return True


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Raise UnreadableVideo at the end of the block if a local file has changed in it, or went away with its disk.

    Some formats end early, without an error, where a disk has gone. A file that is deleted is read to its end.
    """
    before = _state(path)
    yield
    after = _state(path)
    if after != before and (after is not None or disk_has_gone(path)):
        raise UnreadableVideo(path, "changed or went away while it was read")


def _state(path: Path) -> tuple[int, int] | None:
    """Return a file's size, in bytes, and the time of its last change, in nanoseconds; None if it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
