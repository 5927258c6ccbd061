"""How commands are called: errors as one line, streams, arguments, and options that classes hold."""

import functools
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from command import _problem, call, takes_options
from stage import StageError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MemoryError(),
            "there is not enough memory (MemoryError): close other programs, or take smaller settings",
        ),
        (
            RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors ..."
            ),
            "this GPU does not compute (CUDA error: no kernel image is available for execution on the device): set "
            "CUDA_VISIBLE_DEVICES to nothing, with which the CPU does it, or install a torch that knows the GPU",
        ),
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
        (
            RuntimeError("could not create a primitive"),
            "there is not enough memory (could not create a primitive): close other programs, or take smaller settings",
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


def test_a_name_that_is_not_utf_8_in_a_file_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Task(BaseModel):
        path: Path

    with pytest.raises(SystemExit) as ended:
        call(Task(path=Path(os.fsdecode(b"run\xff"))).model_dump_json)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert said.startswith("error: the name of a file or folder is not valid UTF-8, and cannot be written (")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "an argument is empty: is a variable of the shell not set?"),
        ("--out=", "an argument is empty: is a variable of the shell not set?"),
        ("nan", "nan is no number that an option takes (a path of this name: ./nan)"),
        ("--max-auc-drop=-Inf", "-Inf is no number that an option takes (a path of this name: ./-Inf)"),
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


def test_output_that_cannot_be_written_is_one_line_or_none_where_its_reader_has_had_enough() -> None:
    """Small texts stay with Python until its end, which says so in lines of its own and ends with 120."""
    work = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport command\ncommand.call(lambda: print('a result'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open("/dev/full", "w") as full, os.fdopen(write_end, "w") as unread:
        for stdout, said in (
            (full, "error: standard output cannot be written: No space left on device\n"),
            (unread, ""),
        ):
            done = subprocess.run(
                [sys.executable, "-c", work],
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                check=False,
            )
            assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_closed_streams_lead_nowhere(tmp_path: Path, closed: tuple[int, ...]) -> None:
    work = (
        f"import os, sys\nos.chdir({str(tmp_path)!r})\n"
        "def work():\n"
        "    with open('out', 'w') as out:\n"  # else the first to get a free number
        "        stage.say('a note'), print('a result', flush=True), sys.stdin.read()\n"
        "        os.write(1, b'native'), os.write(2, b'native')\n"
        "        processes.in_processes(os.write, [(1, b''), (2, b'')], 1, 'write')\n"
        "        out.write('kept')\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import command, processes, stage\ncommand.call(work)"
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


def test_a_process_that_trains_with_others_ends_at_once_when_it_is_told_to() -> None:
    """It may wait for them in native code, where Python answers no signal."""
    work = """if True:
        import signal
        from command import call
        call(lambda: signal.raise_signal(signal.SIGTERM))
    """
    together = os.environ | {"WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, env=together, check=False)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_command_says_so_and_ends_in_peace(kind: str) -> None:
    work = f"""if True:
        import atexit, signal
        from command import call
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
        for again in ("SIGINT", "SIGTERM", "SIGHUP"):
            atexit.register(signal.raise_signal, getattr(signal, again))
        call(lambda: signal.raise_signal(signal.{kind}))
    """
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, capture_output=True, text=True, check=False)
    said = "interrupted: call the same command again; it goes on where it can\n"
    assert (done.returncode, done.stderr) == (130, said)


def test_a_process_that_trains_with_one_that_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]")
    assert _problem(error) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _problem(error) == "another process of this training has ended: its line says why"
