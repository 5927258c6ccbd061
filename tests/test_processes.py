"""Worker processes: their errors, their ends, and what a signal leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from processes import WorkerDied, in_processes
from stage import StageError

ROOT = Path(__file__).parents[1]


def test_processes_do_every_job(tmp_path: Path) -> None:
    in_processes(os.mkdir, [(str(tmp_path / str(n)),) for n in range(5)], 2, "make")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3", "4"]


def _leave_a_mark(folder: Path, number: int, fails: bool, seconds: float) -> None:
    time.sleep(seconds)
    if fails:
        raise TypeError("as it was told to")
    (folder / str(number)).touch()


@pytest.mark.parametrize(("workers", "first"), [(1, []), (2, [(False, 3.0)])], ids=["alone", "beside a long job"])
def test_the_first_error_drops_the_jobs_that_wait(
    workers: int, first: list[tuple[bool, float]], tmp_path: Path
) -> None:
    jobs = [*first, (True, 0.0), *[(False, 0.1)] * 60]
    with pytest.raises(TypeError, match="as it was told to"):
        in_processes(_leave_a_mark, [(tmp_path, number, *job) for number, job in enumerate(jobs)], workers, "mark")
    assert len(list(tmp_path.iterdir())) < 20


def test_a_process_that_dies_is_one_clear_error() -> None:
    with pytest.raises(StageError, match="burn: a process was killed, perhaps for want of memory"):
        in_processes(os._exit, [(1,)], 1, "burn")


def test_a_process_that_is_asked_to_end_is_the_same_clear_error() -> None:
    """As those that free memory ask first, with SIGTERM: the job's SystemExit would end the command without a word."""
    with pytest.raises(WorkerDied, match="burn: a process was killed, perhaps for want of memory"):
        in_processes(signal.raise_signal, [(signal.SIGTERM,), (signal.SIGTERM,)], 1, "burn")


def _told_to_end(begun: Path) -> None:
    begun.touch()
    signal.raise_signal(signal.SIGTERM)


def test_a_process_that_is_asked_to_end_begins_no_other_job(tmp_path: Path) -> None:
    """What that job began would be left where it lies, as the process ends within it."""
    with pytest.raises(WorkerDied):
        in_processes(_told_to_end, [(tmp_path / "first",), (tmp_path / "second",)], 1, "burn")
    time.sleep(1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_command_stops_its_processes(kind: signal.Signals, code: int) -> None:
    work = (
        "import command, signal, time, typer, processes; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored where the tests run in the background
        "typer.run(lambda: processes.in_processes(time.sleep, [(60,)] * 3, 1, 'sleep'))"
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
        "import command, signal, time, typer, processes; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "command.call(lambda: typer.run(lambda: processes.in_processes(time.sleep, [(0.2,)] * 300, 2, 'sleep')))"
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


def test_more_processes_than_jobs_are_not_started() -> None:
    assert in_processes(abs, [(-1,)], 10**20, "count") == [1]
