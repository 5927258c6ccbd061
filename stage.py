"""What every stage of Pocketproof shares: its error, whole-or-nothing files, progress and the way it is called.

This module stands beside ``pocketproof.py`` because every room uses it and it uses none of them.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import track

# torchao, while it is imported, makes torch warn of its own internals on every command's standard error.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: record.levelno >= logging.ERROR)

T = TypeVar("T")
Schema = TypeVar("Schema", bound=BaseModel)
Modality = Literal["rgb", "depth", "flow"]
"""What a model looks at: each is a picture of S x S x 3 bytes per frame."""
Scheme = Literal["fp32", "autocast", "fp16", "int8", "int8-dynamic", "int8-qat", "palette4", "palette6", "palette8"]
"""How numbers are stored and computed."""
PALETTES: dict[Scheme, int] = {"palette4": 4, "palette6": 6, "palette8": 8}
"""Bits of a weight that says which value of a table it has, by scheme: Core ML alone stores such."""
STATIC_INT8 = ("int8", "int8-qat")
"""Integer programs with scales that were calibrated."""
NOT_WRITABLE = (
    *(errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
)
"""What the system says where a file or folder cannot be put: it may not be, or does not fit."""
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.", min=0)]


class StageError(Exception):
    """Asked-for work that cannot be done. The text is one line: what, where, and the mend."""


class WorkerDied(StageError):
    """A process of a stage was killed, or crashed in native code."""


def reason_of(error: Exception) -> str:
    """Return an error's reason as one line, or its class where it gives none; of a schema its first fault and where."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raise StageError that names ``target`` where the system says that it cannot be put there, or does not fit."""
    try:
        yield
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise StageError(f"cannot write {target}: {os.strerror(error.errno)}") from error
        raise


@contextlib.contextmanager
def written_whole(target: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Give a path beside ``target`` to write a file or a folder at; it becomes ``target`` only when all went well.

    After an error or a kill, ``target`` is as it was before. With ``keep_existing``, a file that another process has
    put there meanwhile stays. Raises StageError where the folder cannot be written.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            if keep_existing:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, target)
            else:
                aside.replace(target)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                aside.unlink()


def refuse_existing(out: Path) -> None:
    """Raise StageError if there already is something at ``out``: no stage overwrites the work of another."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StageError(f"{out} already exists: remove it or give another --out")
    if out.is_dir():
        out.rmdir()


def locked(out: Path) -> IO[str]:
    """Return a locked file beside ``out``; the lock ends with this process, however that ends.

    Raises StageError while another process holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.with_name(f".{out.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StageError(f"{out} is being made by another process: wait for it or give another --out") from error
    except OSError as error:  # some network file systems have no locks
        say(f"{lock.name} cannot be locked ({reason_of(error)}): start no second command with this --out")
    return lock


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, or of a folder's files in the order of their relative paths.

    Raises FileNotFoundError if there is nothing.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256_of(file_path)}\n".encode())
    return digest.hexdigest()


def load_tensors(path: Path) -> Any:
    """Read what a .safetensors or torch file holds, without unpickling anything but tensors and plain containers.

    Raises ValueError with the reason if the file is damaged or would have to be unpickled without restriction.
    """
    import torch
    from safetensors.torch import load_file

    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        raise ValueError(reason_of(error)) from error


def card_licence(folder: Path) -> str:
    """Return the licence in the front matter of a model card (README.md). Raises StageError if it is damaged."""
    from huggingface_hub.repocard import metadata_load

    card = folder / "README.md"
    if not card.is_file():
        return "unknown (no model card beside the weights)"
    try:
        licence = (metadata_load(card) or {}).get("license")
    except Exception as error:  # the card is anybody's YAML
        raise StageError(f"{card} cannot be read as a model card: {reason_of(error)}; mend or remove it") from error
    return str(licence or "unknown (the model card names none)")


def bytes_of(path: Path) -> int:
    """Return the size of a file in bytes, or the sum over a folder's files. Raises FileNotFoundError for nothing."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def speaks() -> bool:
    """Tell whether this process talks to the user: of the many that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str, everywhere: bool = False) -> None:
    """Print one line for the user on standard error, so that standard output stays for results.

    ``everywhere``: also from processes that otherwise leave it to the first.
    """
    if everywhere or speaks():
        print(line, file=sys.stderr, flush=True)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items`` with a bar on a terminal, or a plain line at most every 15 seconds elsewhere.

    A process of ``in_processes`` leaves that to its parent.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not speaks() or multiprocessing.parent_process():
        yield from items
        return
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, description, total=total, console=console, transient=True)
        return
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > 15:
            last = time.monotonic()
            say(f"{description}: {count} of {total or '?'}")


def _end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it was killed, which a waiting worker never notices."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_processes(
    function: Callable[..., T], jobs: Iterable[tuple[Any, ...]], workers: int, description: str
) -> list[T]:
    """Call ``function(*job)`` for every job in ``workers`` fresh processes, with progress; return what they give.

    The first error, or Ctrl-C, drops the jobs that wait. Raises WorkerDied if a process dies.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            futures = [pool.submit(function, *job) for job in jobs]
            return [future.result() for future in progress(futures, description)]
        except BrokenProcessPool as error:
            # Python 3.11 would wait for ever for a process that was being started when the other died.
            for child in multiprocessing.active_children():
                child.terminate()
            raise WorkerDied(f"{description}: a process was killed, perhaps for want of memory") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def parse_json(text: str | bytes) -> Any:
    """Parse the JSON of a user's file. Raises ValueError if it is damaged, or nested deeper than Python follows."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, schema: type[Schema], version: int, missing: str, mend: str = "") -> Schema:
    """Read a file of Pocketproof's own.

    Raises StageError: ``missing`` where there is none, or what is wrong with it and then ``mend``. Another version than
    the known one is told first, as its parts may be of any form.
    """
    mend = mend and f": {mend}"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StageError(missing) from error
    with contextlib.suppress(ValueError, KeyError, TypeError):  # which its schema tells better
        if (stated := parse_json(text)["schema_version"]) != version:
            raise StageError(f"{path} is of schema version {stated}, this program reads {version}{mend}")
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        raise StageError(f"{path} is not valid: {reason_of(error)}{mend}") from error


def call(app: Callable[[], Any]) -> None:
    """Run a command; bad input ends it with one line and exit code 1, never with a traceback."""
    try:
        app()
    except UnicodeEncodeError as error:  # in a name that Python has read byte by byte
        said = f"{error.object!a} cannot be written in UTF-8"
        say(f"error: {said}: rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)", everywhere=True)
        sys.exit(1)
    except StageError as error:
        say(f"error: {' '.join(str(error).split())}", everywhere=True)
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        say(f"error: {error.strerror}: {error.filename or 'while reading or writing'}", everywhere=True)
        sys.exit(1)


def run_as_script(stage: Callable[..., Any]) -> None:
    """Run one stage as ``python -m room.stage``: the same function as ``pocketproof stage``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(stage)
    call(app)
