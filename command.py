"""How a stage is called: its options, its streams, and errors as one line with an exit code."""

import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import typer
import typer.models
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from processes import do_nothing
from stage import StageError, T, WrongArgument, out_of_memory, reason_of, say, several_processes

LONGEST = 4096
"""Most characters that a command-line argument may have: those of a path in Linux."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end; the first is Ctrl-C's."""


def _check_arguments(arguments: Iterable[str]) -> None:
    """Raise WrongArgument for arguments that nobody means: empty (as a path, the current folder) or too long."""
    for argument in arguments:
        if not argument or re.fullmatch(r"--[a-z-]+=", argument):
            raise WrongArgument("an argument is empty: is a variable of the shell not set?")
        value = argument.rpartition("=")[2]
        if re.fullmatch("[+-]?(nan|inf|infinity)", value, re.IGNORECASE):
            # The bounds of an option would let it through: no comparison with it is true.
            raise WrongArgument(f"{value} is no number that an option takes (a path of this name: ./{value})")
        if len(argument) > LONGEST:
            raise WrongArgument(
                f"the argument {argument[:40]}... has {len(argument)} characters: at most {LONGEST} are read"
            )


def _check_folder() -> None:
    """Raise StageError if the current folder is gone: libraries would fail later with unclear errors."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise StageError(f"the current folder cannot be used ({reason_of(error)}): go to another") from error


def _open_closed_streams() -> None:
    """Open closed standard streams on the null device: libraries write to them, or to whatever has their number.

    After ``>&-`` the next file to be opened, perhaps an output, would be standard output to native code.
    """
    streams = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
    while (number := os.open(os.devnull, os.O_RDWR)) < len(streams):
        name, mode = streams[number]
        os.set_inheritable(number, True)  # child processes need them open, too
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    os.close(number)


def _problem(error: Exception) -> str | None:
    """Return what is wrong, where, and the mend, for an error that a user can do something about; None for a bug."""
    reason = reason_of(error)
    match error:
        case StageError():
            return " ".join(str(error).split())
        case UnicodeEncodeError():  # in a file name that is not valid UTF-8
            excerpt = error.object[max(0, error.start - 40) : error.end + 40]
            problem = f"{excerpt!a} cannot be written in {error.encoding}"
            return f"{problem}: rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)"
        case PydanticSerializationError() if "surrogates" in str(error):
            problem = f"the name of a file or folder is not valid UTF-8, and cannot be written ({reason})"
            return f"{problem}: rename it"
        case ImportError():
            return f"a package cannot be loaded ({reason}): install Pocketproof again"
        case NotImplementedError() if "MPS" in str(error):
            remedy = "set PYTORCH_ENABLE_MPS_FALLBACK=1, with which the CPU does it"
            return f"Apple's GPUs cannot compute this ({reason}): {remedy}"
        case MemoryError() | RuntimeError() if out_of_memory(error):
            return f"there is not enough memory ({reason}): close other programs, or take smaller settings"
        case RuntimeError() if several_processes() and "onnection closed by peer" in reason:
            return "another process of this training has ended: its line says why"
        case RuntimeError() if "CUDA error" in reason:
            return (
                f"this GPU does not compute ({reason}): set CUDA_VISIBLE_DEVICES to nothing, with which the CPU does "
                "it, or install a torch that knows the GPU"
            )
        case OSError() if error.errno is not None:
            return f"{error.strerror}: {error.filename or 'while reading or writing'}"
    return None


def _end_as_after_ctrl_c() -> None:
    """Let the signals that end a process end it as Ctrl-C does, which removes its temporary files.

    A signal that is ignored (nohup), or that a library handles, is left as it is. Processes that train together are
    left out: while they wait for each other, in native code, Python answers no signal.
    """
    if several_processes():
        return
    for ending in ENDINGS[1:]:
        if signal.getsignal(ending) == signal.SIG_DFL:
            signal.signal(ending, _interrupt)


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt once: a second one would break into what ends the workers."""
    for ending in ENDINGS[1:]:
        signal.signal(ending, do_nothing)
    raise KeyboardInterrupt


def call(app: Callable[[], Any]) -> None:
    """Run a command; bad input ends it with one line and exit code 1, never with a traceback."""
    ended: SystemExit | None = None
    try:
        _call(app)
    except SystemExit as error:
        ended = error
    unwritten = _flush_output()
    if unwritten and not (ended and ended.code):
        if not isinstance(unwritten, BrokenPipeError):  # whoever read it, as head, has had enough
            say(f"error: standard output cannot be written: {reason_of(unwritten)}", everywhere=True)
        sys.exit(1)
    if ended:
        raise ended


def _flush_output() -> OSError | None:
    """Write what standard output still holds; return why that cannot be, before Python tries it again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return error
    return None


def _call(app: Callable[[], Any]) -> None:
    """Run a command. Raises SystemExit as ``call`` does."""
    try:
        _end_as_after_ctrl_c()
        _open_closed_streams()
        _check_folder()
        _check_arguments(sys.argv[1:])
        app()
    except (KeyboardInterrupt, SystemExit) as exit_error:
        interrupted = isinstance(exit_error, KeyboardInterrupt) or exit_error.code == INTERRUPTED  # as typer raises it
        if not interrupted:
            raise
        for ending in ENDINGS:  # a second one would break into what ends the threads
            signal.signal(ending, do_nothing)
        say("interrupted: call the same command again; it goes on where it can", everywhere=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        problem = _problem(error)
        if problem is None:
            raise
        say(f"error: {problem}", everywhere=True)
        sys.exit(2 if isinstance(error, WrongArgument) else 1)


def _options_of(option_class: Any) -> list[inspect.Parameter]:
    """Return the fields of a class that carry a typer option in their annotation, as parameters of a signature."""
    if not inspect.isclass(option_class) or not (is_dataclass(option_class) or issubclass(option_class, BaseModel)):
        return []
    hints = get_type_hints(option_class, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hints[name])
        for name, parameter in inspect.signature(option_class).parameters.items()
        if any(isinstance(metadata, typer.models.OptionInfo) for metadata in get_args(hints.get(name))[1:])
    ]


def takes_options(stage: Callable[..., T]) -> Callable[..., T]:
    """Let typer call a stage with the fields of its option classes as separate options.

    A parameter whose class (a dataclass or a pydantic model) has options among its fields is replaced by them; fields
    that are not passed keep their defaults. Raises WrongArgument for a value that a pydantic model refuses.
    """
    grouped = inspect.signature(stage, eval_str=True)
    groups = {name: options for name, param in grouped.parameters.items() if (options := _options_of(param.annotation))}
    flat = [option for name, parameter in grouped.parameters.items() for option in groups.get(name, [parameter])]
    signature = grouped.replace(parameters=flat)

    @functools.wraps(stage)
    def wrapper(*args: Any, **kwargs: Any) -> T:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        for group, options in groups.items():
            option_class = grouped.parameters[group].annotation
            names = [option.name for option in options if option.name in arguments]
            try:
                arguments[group] = option_class(**{name: arguments.pop(name) for name in names})
            except ValidationError as error:
                first = error.errors()[0]
                option = str(first["loc"][0]).replace("_", "-")
                raise WrongArgument(f"--{option} {first['input']}: {first['msg']}") from error
        return stage(**arguments)

    wrapper.__dict__["__signature__"] = signature
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return wrapper


def run_as_script(stage: Callable[..., Any]) -> None:
    """Run one stage as ``python -m room.stage``: the same function as ``pocketproof stage``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(stage)
    call(app)
