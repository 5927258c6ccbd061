"""What all stages share: progress, processes and the way errors end."""

import functools
import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import psutil
import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from stage import StageError, call, in_processes, progress, say, speaks, takes_options

ROOT = Path(__file__).parents[1]


def test_progress_says_a_plain_line_every_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    assert list(progress([10] * 12, "count")) == [10] * 12
    assert list(progress(iter("ab" * 5), "letters")) == list("ab" * 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("count")] == [
        "count: 4 of 12",
        "count: 8 of 12",
        "count: 12 of 12",
    ]
    assert lines[-1].startswith("letters: ")
    assert lines[-1].endswith(" of ?")


def test_progress_of_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(5), "count")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_processes_do_every_job(tmp_path: Path) -> None:
    in_processes(os.mkdir, [(str(tmp_path / str(n)),) for n in range(5)], 2, "make")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3", "4"]


def test_the_first_error_drops_the_jobs_that_wait() -> None:
    start = time.monotonic()
    with pytest.raises(TypeError, match="str"):
        in_processes(time.sleep, [("x",)] + [(0.3,)] * 60, 1, "sleep")
    assert time.monotonic() - start < 9


def test_a_process_that_dies_is_one_clear_error() -> None:
    with pytest.raises(StageError, match="burn: a process was killed, perhaps for want of memory"):
        in_processes(os._exit, [(1,)], 1, "burn")


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_command_stops_its_processes(kind: signal.Signals, code: int) -> None:
    work = (
        "import signal, time, typer, stage; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored where the tests run in the background
        "typer.run(lambda: stage.in_processes(time.sleep, [(0.2,)] * 300, 1, 'sleep'))"
    )
    with subprocess.Popen([sys.executable, "-c", work], cwd=ROOT, stderr=subprocess.PIPE) as command:
        children: list[psutil.Process] = []
        while not any(child.num_threads() > 1 for child in children):
            assert command.poll() is None
            time.sleep(0.05)
            children = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(kind)
        assert command.wait(timeout=20) == code
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_ctrl_c_while_processes_begin_says_one_line() -> None:
    work = (
        "import signal, time, typer, stage; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "stage.call(lambda: typer.run(lambda: stage.in_processes(time.sleep, [(0.2,)] * 300, 2, 'sleep')))"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", work], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert command.poll() is None
        children = psutil.Process(command.pid).children()
        workers = [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does
    said = command.communicate(timeout=20)[1]
    assert command.returncode == 130
    assert said == "interrupted: call the same command again; it goes on where it can\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "there is not enough memory (MemoryError): close other programs, or take smaller settings"),
        (
            RuntimeError("MPS backend out of memory (allocated: 9 GB).\n..."),
            "there is not enough memory (MPS backend out of memory (allocated: 9 GB).): close other programs, or take "
            "smaller settings",
        ),
        (
            NotImplementedError("no kernel for the MPS device"),
            "Apple's GPUs cannot compute this (no kernel for the MPS device): set PYTORCH_ENABLE_MPS_FALLBACK=1, with "
            "which the CPU does it",
        ),
        (ImportError("libx.so: no"), "a package cannot be loaded (libx.so: no): install Pocketproof again"),
    ],
)
def test_want_of_memory_and_broken_packages_end_with_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        call(fail)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {line}\n"


def test_more_processes_than_jobs_are_not_started() -> None:
    assert in_processes(abs, [(-1,)], 10**20, "count") == [1]


def test_a_stage_error_ends_with_one_line_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise StageError("a.mp4 breaks:\n  mend it  ")

    with pytest.raises(SystemExit) as ended:
        call(fail)
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "error: a.mp4 breaks: mend it\n")


def test_a_missing_file_ends_with_one_line_and_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call((tmp_path / "a.txt").read_text)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: No such file or directory: {tmp_path / 'a.txt'}\n"


def test_a_name_that_is_not_utf_8_ends_with_one_line_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    with pytest.raises(SystemExit) as ended:
        call(lambda: name.encode())
    assert ended.value.code == 1
    said = "error: 'caf\\udce9.mp4' cannot be written in utf-8: rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "an argument is empty: is a variable of the shell not set?"),
        ("--out=", "an argument is empty: is a variable of the shell not set?"),
        ("9" * 5000, f"the argument {'9' * 40}... has 5000 characters: at most 4096 are read"),
    ],
)
def test_arguments_that_nobody_means_end_with_one_line(
    argument: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pocketproof", "detect", argument])
    with pytest.raises(SystemExit) as ended:
        call(lambda: None)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


def test_a_folder_that_was_removed_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SystemExit) as ended:
        call(lambda: pytest.fail("nothing is done in no folder"))
    said = capsys.readouterr().err
    assert (ended.value.code, said) == (
        1, "error: the current folder cannot be used (No such file or directory): go to another\n"
    )  # fmt: skip


def test_what_is_said_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("note: \x1b[31mred\nand a second line\u202e of a corpus")
    assert capsys.readouterr().err == "note:  [31mred and a second line  of a corpus\n"


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_closed_streams_lead_nowhere(tmp_path: Path, closed: tuple[int, ...]) -> None:
    work = (
        f"import os, sys\nos.chdir({str(tmp_path)!r})\n"
        "def work():\n"
        "    with open('out', 'w') as out:\n"  # else the first to get a free number
        "        stage.say('a note'), print('a result', flush=True), sys.stdin.read()\n"
        "        os.write(1, b'native'), os.write(2, b'native')\n"
        "        stage.in_processes(os.write, [(1, b''), (2, b'')], 1, 'write')\n"
        "        out.write('kept')\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import stage\nstage.call(work)"
    )

    def close() -> None:
        for number in closed:
            os.close(number)

    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run([sys.executable, "-c", work], preexec_fn=close, check=False, **given)
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "kept"
    assert done.stdout == (b"" if 1 in closed else b"a result\nnative")
    assert done.stderr == (b"" if 2 in closed else b"a note\nnative")


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 // 0)


class Size(BaseModel):
    """Two options, and a field that is none."""

    width: Annotated[int, typer.Option(help="In pixels.", min=1)] = Field(default=3, ge=1)
    as_asked: Annotated[bool, typer.Option("--asked")] = False
    height: int = 4


@takes_options
def stretch(name: str, size: Size = Size(), times: int = 1) -> tuple[str, Size, int]:  # noqa: B008
    """Give back what was given."""
    return name, size, times


def test_the_options_of_a_class_are_those_of_the_command() -> None:
    assert [str(p).partition(":")[0] for p in inspect.signature(stretch).parameters.values()] == [
        "name", "width", "as_asked", "times",
    ]  # fmt: skip
    assert stretch("a", width=7, times=2) == ("a", Size(width=7), 2)
    assert stretch("a") == ("a", Size(), 1)
    app, found = typer.Typer(), []
    app.command()(functools.wraps(stretch)(lambda **given: found.append(stretch(**given))))
    result = CliRunner().invoke(app, ["a", "--width", "9", "--asked", "--times", "2"])
    assert result.exit_code == 0 and found == [("a", Size(width=9, as_asked=True), 2)]
    help_text = CliRunner().invoke(app, ["--help"]).stdout
    assert "In pixels." in help_text and "--height" not in help_text


def test_what_a_class_refuses_is_one_line() -> None:
    with pytest.raises(StageError, match=r"^--width 0: Input should be greater than or equal to 1$"):
        stretch("a", width=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'height'"):
        stretch("a", height=1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
    ],
)
def test_a_process_is_silent_only_in_company(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert speaks() is expected


def test_an_interrupted_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        call(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted: call the same command again; it goes on where it can\n"
