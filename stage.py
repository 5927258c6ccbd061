"""What every stage of Pocketproof shares: errors, types, messages and progress.

This module stands beside ``pocketproof.py`` because every room uses it and it uses none of them.
"""

import logging
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
import typer.models
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
# ONNX Runtime from 1.29 on reports each model that it opens to Microsoft, and keeps a device's number and a database
# in the home folder. Set before it is imported, this stops all of it; with 0 in the environment it stays on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Importing torchao makes torch warn of its own internals, on the standard error of every command.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: record.levelno >= logging.ERROR)
T = TypeVar("T")
Modality = Literal["rgb", "depth", "flow"]
"""What a model looks at: each is a picture of S x S x 3 bytes per frame."""
Per = Literal["frame", "clip"]
"""Unit that a model scores and a batch holds: the crop of one frame, or a whole clip."""
Scorer = Callable[..., "NDArray[np.float32]"]
"""A model of any kind as a function: raw pixels to P(fake), float32 [N].

A frame model takes uint8 [N, S, S, 3] RGB 0..255, or [N, M, S, S, 3] for M modalities. A clip model takes uint8
[N, T, (M,) S, S, 3] and the mask of valid frames, bool [N, T].
"""
LowPrecision = Literal["autocast", "fp16", "int8", "int8-dynamic", "int8-qat", "palette4", "palette6", "palette8"]
"""Schemes with fewer bits than fp32."""
Scheme = Literal["fp32", LowPrecision]
"""How numbers are stored and computed."""
PALETTES: dict[Scheme, int] = {"palette4": 4, "palette6": 6, "palette8": 8}
"""Bits of each weight's index into a table of values, by scheme. Only Core ML stores weights so."""
STATIC_INT8 = ("int8", "int8-qat")
"""Schemes of integer programs with calibrated scales."""
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.", min=0, max=2**32 - 1)]
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how many microseconds of processor time a container may use in each period of so many."""


class StageError(Exception):
    """The requested work cannot be done. The text is one line: what is wrong, where, and how to mend it."""


class WrongArgument(StageError):
    """An option has a wrong value or must be left out. The command exits with code 2, as when typer refuses one."""


def reason_of(error: Exception) -> str:
    """Return an error's reason as one line: its text, else its class; for a schema the first fault and its place."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__


def last_line(text: str, default: str) -> str:
    """Return the last line of a process's output that is not blank, or ``default``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else default


def some_of(names: Sequence[str]) -> str:
    """Return the first three names, joined by commas, with "..." if there are more."""
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def counted(count: int, noun: str) -> str:
    """Return a number of things as text: ``1 thread``, ``2 threads``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def usable_cores() -> int:
    """Return how many processors this process may use: by its affinity, and its container's quota (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota ("max"), another system
        return allowed


def several_processes() -> bool:
    """Tell whether torchrun or accelerate launch started this process beside others that train with it."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def speaks() -> bool:
    """Tell whether this process prints for the user: of those that torchrun starts, only the first does.

    RANK without WORLD_SIZE, which some schedulers leave set, does not count.
    """
    return not several_processes() or os.environ.get("RANK", "0") == "0"


def printable(text: str) -> str:
    """Return text, such as a file name, as one line: characters that a terminal would obey become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*[]|~#$"})


def in_markdown(text: str) -> str:
    """Return text as one line, escaped so that Markdown shows it as it is, in a table too."""
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", printable(text).translate(MARKDOWN))


def say(line: str, everywhere: bool = False) -> None:
    """Print one line for the user on standard error, so that standard output stays for results.

    ``everywhere``: print from every process, not only from the first (``speaks``).
    """
    if everywhere or speaks():
        print(printable(line), file=sys.stderr, flush=True)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items`` with a bar on a terminal, or a plain line at most every 15 seconds elsewhere.

    A worker process of ``in_processes`` shows nothing: its parent does.
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
    last_printed = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last_printed > 15:
            last_printed = time.monotonic()
            say(f"{description}: {count} of {total or '?'}")


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error reports a lack of memory: Python's own, or one that torch raises on any device."""
    phrases = (
        "out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "could not create a primitive",
    )  # fmt: skip
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def heed_quota() -> None:
    """Let torch use no more threads than the cores that this process may use: it does not see a container's quota."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def refuse_tf32() -> None:
    """Make torch compute float32 in full precision on GPUs too, where it would run convolutions in TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
