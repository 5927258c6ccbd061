"""Processes that measure: they end with the one that asked, and say what ended them."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pydantic import BaseModel

from benchmarks.apart import answer_of
from files import CannotWrite
from stage import StageError


class Figure(BaseModel):
    """What a process is asked, and answers."""

    value: float


def ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))

    def write(body: str) -> str:
        (tmp_path / "answering.py").write_text(textwrap.dedent(body))
        return "answering"

    return write


def test_a_process_that_was_killed_is_said_to_be(module):
    name = module("""
        import os, signal, sys
        print("score test: 12 of 40", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    with pytest.raises(StageError, match=r"^killed by signal 9, perhaps for want of memory$"):
        answer_of(name, Figure(value=1), Figure)


def test_a_process_imports_what_this_one_does_whatever_lies_in_the_current_folder(module, tmp_path, monkeypatch):
    name = module("""
        import data.store
        from benchmarks.apart import serve
        from tests.benchmarks.test_apart import Figure
        serve(Figure, lambda task: Figure(value=task.value + len(data.store.ClipStore.__name__)))
    """)
    (tmp_path / "project" / "data" / "store").mkdir(parents=True)
    (tmp_path / "project" / "data" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "project")
    assert answer_of(name, Figure(value=1), Figure) == Figure(value=10)
    assert answer_of(name, Figure(value=1), Figure, {"HOME": "/"}) == Figure(value=10)


def test_an_error_is_told_without_the_path_of_its_class(module):
    name = module("""
        from stage import StageError
        raise StageError("nothing to measure")
    """)
    with pytest.raises(StageError, match=r"^nothing to measure$"):
        answer_of(name, Figure(value=1), Figure)


def test_what_is_asked_comes_back_measured(module):
    name = module("""
        from benchmarks.apart import serve
        from tests.benchmarks.test_apart import Figure
        serve(Figure, lambda task: Figure(value=2 * task.value))
    """)
    assert answer_of(name, Figure(value=4), Figure) == Figure(value=8)


def test_a_result_for_which_there_is_no_room_ends_more_than_its_row(module, monkeypatch):
    """Else a bench with a full temporary folder would fail each row that is left, and throw the measured ones away."""
    name = module("""
        import resource
        from benchmarks.apart import serve
        from tests.benchmarks.test_apart import Figure
        resource.setrlimit(resource.RLIMIT_FSIZE, (4, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        serve(Figure, lambda task: Figure(value=2 * task.value))
    """)
    with pytest.raises(CannotWrite, match=r"^cannot write .*result\.json: File too large$"):
        answer_of(name, Figure(value=4), Figure)
    from benchmarks.rounds import Rounds  # imported here, as the processes of these tests import this file

    monkeypatch.setattr("benchmarks.measuring.answer_of", lambda *_: answer_of(name, Figure(value=4), Figure))
    subject = SimpleNamespace(row=SimpleNamespace(status="measured", reason=""))
    task = SimpleNamespace(path="run", threads=1)
    with pytest.raises(CannotWrite):
        Rounds(None, None)._measure_apart(subject, task)


def test_a_process_ends_with_the_one_that_asked(module):
    name = module("""
        import time
        from benchmarks.apart import serve
        from tests.benchmarks.test_apart import Figure
        serve(Figure, lambda task: time.sleep(600))
    """)
    asking = f"""
        import os, signal, subprocess, threading, time
        from benchmarks.apart import answer_of
        from tests.benchmarks.test_apart import Figure
        started = []
        call = subprocess.Popen.__init__
        def noting(self, *args, **options):
            call(self, *args, **options)
            print(self.pid, flush=True)
            started.append(self)
        subprocess.Popen.__init__ = noting
        threading.Thread(target=answer_of, args=({name!r}, Figure(value=1), Figure), daemon=True).start()
        while not started:
            time.sleep(0.01)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(asking)], capture_output=True, text=True, timeout=60, check=False
    )
    child, started = int(done.stdout), time.monotonic()
    while not ended(child):
        assert time.monotonic() - started < 10
        time.sleep(0.05)
