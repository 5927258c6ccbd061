"""Corpora and stores behind URLs (s3://, gs://, ... all that fsspec knows), handled through local files.

The layout of a remote corpus is read from its shadow, a local tree with the same names and sizes; the worker that
prepares a video fetches it. A store is made locally and uploaded when it is complete, ``store.json`` last.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from upath import UPath

from data.picture import UnreadableVideo
from stage import StageError, WrongArgument, progress, reason_of

PAUSES = (1.0, 5.0)
"""Seconds to wait before each retry of a file that could not be fetched."""
TABLES = frozenset({".json", ".csv", ".txt"})
"""Suffixes of files whose content layouts read: shadows keep it."""


class NotFetched(UnreadableVideo):
    """A file could not be fetched: connection or storage failed, which says nothing about the file."""


def place(text: str) -> Path:
    """Return a local path, or for ``scheme://...`` a universal_pathlib path, which has the same methods.

    Raises WrongArgument for a URL of no file or folder, StageError if fsspec cannot handle it.
    """
    if "://" not in text:
        return Path(text)
    with answering(text):
        path = cast(Path, UPath(text))
        if not is_remote(path):  # some invalid URLs show only here that they are none
            raise WrongArgument(f"{text} is not the URL of a file or folder")
        return path


def is_remote(path: Path) -> bool:
    """Tell whether a path is behind a URL."""
    return "://" in str(path)


@contextlib.contextmanager
def answering(path: object) -> Iterator[None]:
    """Turn any error of fsspec's file systems into a one-line StageError that names ``path``."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # each storage client has its own errors
        raise StageError(f"{path} cannot be reached: {reason_of(error)}") from error


@contextlib.contextmanager
def at_hand(roots: Sequence[Path]) -> Iterator[tuple[list[Path], Callable[[Path], Path]]]:
    """Yield local roots that layouts can read (shadows for URLs), and a function from a path in them to its origin.

    Raises StageError if a corpus cannot be listed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            Path(scratch) / str(number) / _name_of(root): root for number, root in enumerate(roots) if is_remote(root)
        }

        def origin(path: Path) -> Path:
            for folder, root in folders.items():
                if path.is_relative_to(folder):
                    base: Path = root.parent if root.suffix.lower() == ".csv" else root
                    return base / path.relative_to(folder).as_posix() if path != folder else base
            return path.absolute()

        shadows = {root: _shadow(root, folder) for folder, root in folders.items()}
        try:
            yield [shadows.get(root, root) for root in roots], origin
        except StageError as error:
            message = str(error)
            for folder in folders:
                message = message.replace(str(folder), str(origin(folder)))
            raise type(error)(message) from error


def _name_of(root: Path) -> str:
    """Return the last name in a URL, which notes call the corpus by; ``corpus`` if it has none."""
    name = PurePosixPath(cast(Any, root).path).name
    return name if name not in ("", "..") else "corpus"


def _shadow(root: Path, folder: Path) -> Path:
    """Make a local tree in ``folder`` with the names and sizes of a remote corpus; return its root.

    Tables keep their content; other files are sparse, with the right size and no content. Raises StageError if the
    corpus is empty, a file or cannot be reached, or if a name leads out of it.
    """
    remote: Any = root
    with answering(root):
        table = root.suffix.lower() == ".csv"
        files = _table_and_note(remote) if table else _listing(remote)
        base = PurePosixPath(remote.path).parent if table else PurePosixPath(remote.path)
        if not files:
            fault = "is not a folder" if remote.fs.isfile(remote.path) else "does not exist or is empty"
            raise StageError(f"{root} {fault}: give the folder of a corpus")
        for path, info in files.items():
            if ".." in PurePosixPath(path).parts:
                raise StageError(f"{path} leads out of {root}: remove it, or give its folder")
            copy = folder / PurePosixPath(path).relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if copy.suffix.lower() in TABLES:
                copy.write_bytes(remote.fs.cat_file(path))
            else:
                copy.touch()
                os.truncate(copy, info["size"] or 0)  # servers of web pages tell no sizes
    return folder / root.name if table else folder


def _table_and_note(remote: Any) -> dict[str, dict[str, Any]]:
    """Return the fsspec infos, by path, of a table and of the ``corpus.json`` beside it, if there is one."""
    note_path = remote.path[: remote.path.rfind("/") + 1] + "corpus.json"
    return {
        path: remote.fs.info(path) for path in (remote.path, note_path) if path == remote.path or remote.fs.exists(path)
    }


def _listing(remote: Any) -> dict[str, dict[str, Any]]:
    """Return the fsspec infos of all files below a remote folder, by path."""
    infos: dict[str, dict[str, Any]] = remote.fs.find(remote.path, detail=True)
    # Web consoles of object stores mark folders by empty files of the same name.
    folders = {str(folder) for path in infos for folder in PurePosixPath(path).parents} | {remote.path.rstrip("/")}
    return {path: info for path, info in infos.items() if not path.endswith("/") and path not in folders}


@contextlib.contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Yield a local path to a file: its own, or that of a temporary copy of a remote one.

    Raises UnreadableVideo if a remote file does not exist, NotFetched if three attempts to fetch it fail.
    """
    if not is_remote(path):
        yield path
        return
    remote: Any = path
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for pause in (*PAUSES, None):
            try:
                remote.fs.get_file(remote.path, str(copy))
                break
            except FileNotFoundError as error:
                raise UnreadableVideo(path, "cannot be fetched: there is no such file") from error
            except Exception as error:  # each storage client has its own errors
                if pause is None:
                    raise NotFetched(path, f"cannot be fetched: {reason_of(error)}") from error
                time.sleep(pause)
        yield copy


def refuse_occupied(out: Path, store: Path) -> None:
    """Raise StageError if a URL already holds files, unless an interrupted upload of ``store`` left them.

    Raises WrongArgument for a URL that names no folder.
    """
    remote: Any = out
    if not remote.path.strip("/"):
        raise WrongArgument(f"--out {out} names no folder: give one below it")
    with answering(out):
        existing = _listing(remote)
        if existing and not _has_begun(store, remote, existing):
            raise StageError(
                f"{out} already exists: remove it or give another --out (an interrupted upload goes on in the folder "
                f"that holds {store})"
            )


def _has_begun(store: Path, remote: Any, existing: dict[str, Any]) -> bool:
    """Tell whether an upload of this very store was begun: its ``videos.parquet``, which has all hashes, went first."""
    videos, listed = store / "videos.parquet", (remote / "videos.parquet").path
    unfinished = listed in existing and (remote / "store.json").path not in existing and videos.is_file()
    if not unfinished:
        return False
    remote_bytes, local_bytes = remote.fs.cat_file(listed), videos.read_bytes()
    # Some file systems already show a file while it is being written.
    return bool(remote_bytes == local_bytes) or (len(existing) == 1 and local_bytes.startswith(remote_bytes))


def upload(store: Path, out: Path) -> None:
    """Copy a local store to a URL, ``videos.parquet`` first and ``store.json`` last: without it, it is no store.

    An interrupted upload is resumed: files that are there in full size are not sent again.
    """
    remote: Any = out
    files = sorted(path for path in store.rglob("*") if path.is_file())
    order = {"videos.parquet": 0, "store.json": 2}
    with answering(out):
        refuse_occupied(out, store)
        uploaded_sizes = {path: info["size"] for path, info in _listing(remote).items()}
        for path in progress(sorted(files, key=lambda path: order.get(path.name, 1)), "upload"):
            target = remote / path.relative_to(store).as_posix()
            if uploaded_sizes.get(target.path) == path.stat().st_size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            remote.fs.put_file(str(path), target.path)
