"""Files on disk: written whole or not at all, hashed, and named.

This module stands beside ``stage.py``: every room uses it and it uses none of them.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parsing import refuse_url, require_utf8, shown
from stage import StageError, reason_of

NOT_WRITABLE = (
    *(errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP),
)
"""Error numbers of a file or folder that cannot be put in place: it is not permitted, or does not fit."""
OF_BUNDLES = ("manifest.json", "SHA256SUMS")
"""Files that every bundle holds: nothing may be written into a folder that has both."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Error numbers of file systems on which a file cannot have a second name (hard link)."""


class CannotWrite(StageError):
    """A file cannot be written: whatever a command would write after it could not be, either."""


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raise CannotWrite that names ``target`` where the system says that it cannot be written, or does not fit."""
    try:
        yield
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise CannotWrite(f"cannot write {target}: {os.strerror(error.errno)}") from error
        raise


@contextlib.contextmanager
def written_whole(target: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a path beside ``target`` for a file or folder to be written; it becomes ``target`` only on success.

    After an error, a kill or a power cut, ``target`` is as it was before. With ``keep_existing``, a file that another
    process has put there meanwhile is kept. Raises StageError where the folder cannot be written.
    """
    aside = aside_of(target)
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            if keep_existing:
                _keep_first(aside, target)
            else:
                put_in_place(aside, target)
    finally:
        remove(aside)


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``out``, removed at the end; after a kill, by the next call of ``refuse_existing``.

    For pictures of faces: in the system's temporary folder a killed command would leave them for good. Raises
    StageError where the folder cannot be written.
    """
    folder = aside_of(out)
    try:
        with writing(out):
            folder.mkdir(parents=True)
        yield folder
    finally:
        remove(folder)


def write_raw(target: Path, array: NDArray[np.generic]) -> None:
    """Write an array's values in C order, without a header.

    ``ndarray.tofile`` is not used: its error does not say that the disk is full.
    """
    with target.open("wb") as file:
        file.write(np.ascontiguousarray(array).data)


def put_in_place(made: Path, target: Path) -> None:
    """Rename a finished file or folder to ``target``: after a power cut it is there whole or not at all."""
    _flush(made)
    with writing(target):
        made.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some file systems cannot flush a folder
        pass
    finally:
        os.close(folder)


def _keep_first(aside: Path, target: Path) -> None:
    """Put a file in its place unless another process has put one there first."""
    _flush(aside)
    try:
        os.link(aside, target)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if not target.exists():
            aside.replace(target)


def aside_of(target: Path) -> Path:
    """Return the path at which this process writes what becomes ``target``."""
    return target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_stale(target: Path) -> None:
    """Remove the partial files that ended processes of this machine left beside ``target``."""
    partial_name = re.compile(re.escape(f".{target.name}.{platform.node()}.") + r"(\d+)\.partial")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if (match := partial_name.fullmatch(path.name)) and not _is_another(int(match[1])):
            remove(path)


def _is_another(process: int) -> bool:
    """Return whether another process of this number is running; one of this number may have ended in its container."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _flush(path: Path) -> None:
    """Flush a file, or a folder's files, to disk: otherwise a power cut may leave the new name on empty content."""
    for file in [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def check_output(out: Path) -> None:
    """Raise StageError for a URL, a name that is not UTF-8, a link (it would be replaced) or a path in a bundle."""
    refuse_url(out)
    require_utf8(out)
    if out.is_symlink():
        raise StageError(f"{out} is a link: give the path that it leads to")
    for folder in Path(os.path.realpath(out)).parents:
        if all((folder / name).is_file() for name in OF_BUNDLES):
            raise StageError(f"{out} is in the bundle {folder}, which stays as it was exported: give a path beside it")


def require_writable(target: Path, option: str, kind: str = "a folder") -> None:
    """Raise StageError, before work that would be lost, if ``target``, which ``option`` names, may not be written.

    kind: what the option takes, for the message.
    """
    nearest = next(path for path in (target, *target.absolute().parents) if path.exists() or path.is_symlink())
    if nearest != target and not nearest.is_dir():
        raise StageError(f"{target} cannot be written, as {nearest} is no folder: give {option}, {kind}")
    if not os.access(nearest, os.W_OK):
        raise StageError(f"{target} cannot be written, as {nearest} may not: give {option}, {kind} that may")


def refuse_existing(out: Path, option: str = "--out") -> None:
    """Raise StageError if ``out``, which ``option`` names, already exists: no stage overwrites the work of another.

    What a killed process of this machine left half written there is removed, as is an empty folder.
    """
    check_output(out)
    remove_stale(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StageError(f"{out} already exists: remove it or give another {option}")
    if out.is_dir():
        _remove_empty(out)


def _remove_empty(out: Path) -> None:
    """Remove an empty folder. Raises StageError for the current one, and for one that the system keeps (a mount)."""
    try:
        if out.samefile(Path.cwd()):
            raise OSError(errno.EBUSY, "it is the current one")
        out.rmdir()
    except OSError as error:
        raise StageError(
            f"{out} is an empty folder that cannot be replaced ({reason_of(error)}): give a path in it"
        ) from error


def is_left_by_system(name: str) -> bool:
    """Tell whether a file of this name was left in a folder by a system or its file manager: it changes no folder."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or name.startswith("._")  # AppleDouble


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder and those below it, sorted, without those that systems leave there."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_left_by_system(path.name))


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, or of a folder's files in the order of their relative paths.

    Raises FileNotFoundError if ``path`` does not exist.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in files_in(path):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256_of(file_path)}\n".encode())
    return digest.hexdigest()


def bytes_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder. Raises FileNotFoundError if it is missing."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in files_in(path))


def name_of(path: Path) -> str:
    """Return a file's or folder's own name as valid UTF-8, also where the path is a link or ends in a dot."""
    return shown(Path(os.path.realpath(path)).name)  # Path.resolve() raises for a link to itself


def shortest_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return each path's last part, with as many parts before it as distinguish it from the others."""
    parts = {path: Path(os.path.realpath(path)).parts for path in paths}
    names = {}
    for path, path_parts in parts.items():
        length = 1
        while sum(other[-length:] == path_parts[-length:] for other in parts.values()) > 1 and length < len(path_parts):
            length += 1
        names[path] = "/".join(path_parts[-length:])
    return names
