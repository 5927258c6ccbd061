"""What every stage of Pocketproof shares: its error, its words, progress, processes and the way it is called.

This module stands beside ``pocketproof.py`` because every room uses it and it uses none of them.
"""

import contextlib
import functools
import inspect
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import typer
import typer.models
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# torchao, while it is imported, makes torch warn of its own internals on every command's standard error.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: record.levelno >= logging.ERROR)

T = TypeVar("T")
Modality = Literal["rgb", "depth", "flow"]
"""What a model looks at: each is a picture of S x S x 3 bytes per frame."""
Per = Literal["frame", "clip"]
"""What a model scores, and a batch holds: crops of frames one by one, or whole clips."""
Scorer = Callable[..., "NDArray[np.float32]"]
"""A model of any kind, as it is called: raw pixels to P(fake), float32 [N].

One of frames takes uint8 [N, S, S, 3] RGB 0..255, or [N, M, S, S, 3] of several modalities. One of clips takes uint8
[N, T, (M,) S, S, 3] and which frames are valid, bool [N, T].
"""
LowPrecision = Literal["autocast", "fp16", "int8", "int8-dynamic", "int8-qat", "palette4", "palette6", "palette8"]
"""In fewer bits than fp32."""
Scheme = Literal["fp32", LowPrecision]
"""How numbers are stored and computed."""
PALETTES: dict[Scheme, int] = {"palette4": 4, "palette6": 6, "palette8": 8}
"""Bits of a weight that says which value of a table it has, by scheme: Core ML alone stores such."""
STATIC_INT8 = ("int8", "int8-qat")
"""Integer programs with scales that were calibrated."""
LONGEST = 4096
"""Characters of an argument, as of a path in Linux."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.", min=0, max=2**32 - 1)]


class StageError(Exception):
    """Asked-for work that cannot be done. The text is one line: what, where, and the mend."""


class WrongArgument(StageError):
    """An option must be given otherwise, or left out: a command ends with 2, as for what typer refuses."""


class WorkerDied(StageError):
    """A process of a stage was killed, or crashed in native code."""


def reason_of(error: Exception) -> str:
    """Return an error's reason as one line, or its class where it gives none; of a schema its first fault and where."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__


def some_of(names: Sequence[str]) -> str:
    """Return the first three names, and a sign of more."""
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def speaks() -> bool:
    """Tell whether this process talks to the user: of the many that torchrun starts, the first.

    A lone RANK, as schedulers leave it behind, makes no company.
    """
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def printable(text: str) -> str:
    """Return text, such as a file's name or a corpus's note, as one line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def say(line: str, everywhere: bool = False) -> None:
    """Print one line for the user on standard error, so that standard output stays for results.

    ``everywhere``: also from processes that otherwise leave it to the first.
    """
    if everywhere or speaks():
        print(printable(line), file=sys.stderr, flush=True)


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


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let Ctrl-C wait for a moment; processes that begin in it have it wait until they pass over it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_processes(
    function: Callable[..., T], jobs: Iterable[tuple[Any, ...]], workers: int, description: str
) -> list[T]:
    """Call ``function(*job)`` for every job in ``workers`` fresh processes, with progress; return what they give.

    The first error, or Ctrl-C, drops the jobs that wait. Raises WorkerDied if a process dies.
    """
    context, jobs = multiprocessing.get_context("spawn"), list(jobs)
    workers = min(workers, max(1, len(jobs)))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            with _deaf():
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


def _check_arguments(arguments: Iterable[str]) -> None:
    """Raise StageError for arguments that nobody means: empty, which as a path is the current folder, or endless."""
    for argument in arguments:
        if not argument or re.fullmatch(r"--[a-z-]+=", argument):
            raise WrongArgument("an argument is empty: is a variable of the shell not set?")
        if len(argument) > LONGEST:
            raise WrongArgument(
                f"the argument {argument[:40]}... has {len(argument)} characters: at most {LONGEST} are read"
            )


def _check_folder() -> None:
    """Raise StageError where the current folder is gone, without which libraries fail in ways of their own."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise StageError(f"the current folder cannot be used ({reason_of(error)}): go to another") from error


def _open_closed_streams() -> None:
    """Give the standard streams that are closed somewhere to go: libraries write to them, or to what has their number.

    With ``>&-`` the next file that is opened, an output perhaps, would be standard output to native code.
    """
    streams = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
    while (number := os.open(os.devnull, os.O_RDWR)) < len(streams):
        name, mode = streams[number]
        os.set_inheritable(number, True)  # by the processes that this one starts, too
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    os.close(number)


def call(app: Callable[[], Any]) -> None:
    """Run a command; bad input ends it with one line and exit code 1, never with a traceback."""
    try:
        _open_closed_streams()
        _check_folder()
        _check_arguments(sys.argv[1:])
        app()
    except (KeyboardInterrupt, SystemExit) as ended:
        interrupted = isinstance(ended, KeyboardInterrupt) or ended.code == INTERRUPTED  # as typer says it
        if not interrupted:
            raise
        say("interrupted: call the same command again; it goes on where it can", everywhere=True)
        sys.exit(INTERRUPTED)
    except UnicodeEncodeError as error:  # in a name that Python has read byte by byte
        near = error.object[max(0, error.start - 40) : error.end + 40]
        said = f"{near!a} cannot be written in {error.encoding}"
        say(f"error: {said}: rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)", everywhere=True)
        sys.exit(1)
    except StageError as error:
        say(f"error: {' '.join(str(error).split())}", everywhere=True)
        sys.exit(2 if isinstance(error, WrongArgument) else 1)
    except ImportError as error:
        say(f"error: a package cannot be loaded ({reason_of(error)}): install Pocketproof again", everywhere=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) and "MPS" in str(error):
            mend = "set PYTORCH_ENABLE_MPS_FALLBACK=1, with which the CPU does it"
            say(f"error: Apple's GPUs cannot compute this ({reason_of(error)}): {mend}", everywhere=True)
        elif out_of_memory(error):
            said = f"there is not enough memory ({reason_of(error)})"
            say(f"error: {said}: close other programs, or take smaller settings", everywhere=True)
        else:
            raise
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        say(f"error: {error.strerror}: {error.filename or 'while reading or writing'}", everywhere=True)
        sys.exit(1)


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error is one of the many that say so: Python's, and torch's of each kind of device."""
    signs = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def refuse_tf32() -> None:
    """Let torch's float32 be float32 on a GPU too, where convolutions would else be in TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def _options_of(kind: Any) -> list[inspect.Parameter]:
    """Return the fields of a class that are options, as parameters: those annotated as typer wants them."""
    if not inspect.isclass(kind) or not (is_dataclass(kind) or issubclass(kind, BaseModel)):
        return []
    hints = get_type_hints(kind, include_extras=True)
    return [
        own.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hints[name])
        for name, own in inspect.signature(kind).parameters.items()
        if any(isinstance(extra, typer.models.OptionInfo) for extra in get_args(hints.get(name))[1:])
    ]


def takes_options(stage: Callable[..., T]) -> Callable[..., T]:
    """Let a stage be called with the options of its classes one by one, as typer calls it.

    A parameter whose class (a dataclass or a pydantic model) has options among its fields is taken as these; what is
    not given keeps its default, as all other fields of the class do. Raises StageError for what a model refuses.
    """
    own = inspect.signature(stage, eval_str=True)
    groups = {name: options for name, p in own.parameters.items() if (options := _options_of(p.annotation))}
    flat = [option for name, parameter in own.parameters.items() for option in groups.get(name, [parameter])]
    signature = own.replace(parameters=flat)

    @functools.wraps(stage)
    def called(*args: Any, **kwargs: Any) -> T:
        bound = signature.bind(*args, **kwargs)
        given = dict(bound.arguments)
        for name, options in groups.items():
            kind = own.parameters[name].annotation
            try:
                given[name] = kind(**{o.name: given.pop(o.name) for o in options if o.name in given})
            except ValidationError as error:
                first = error.errors()[0]
                option = str(first["loc"][0]).replace("_", "-")
                raise WrongArgument(f"--{option} {first['input']}: {first['msg']}") from error
        return stage(**given)

    called.__dict__["__signature__"] = signature
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return called


def run_as_script(stage: Callable[..., Any]) -> None:
    """Run one stage as ``python -m room.stage``: the same function as ``pocketproof stage``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(stage)
    call(app)
