"""One task in a process of its own: how it is called, and how that process answers."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from files import CannotWrite, writing
from stage import StageError, last_line, say

Answer = TypeVar("Answer", bound=BaseModel)
Asked = TypeVar("Asked", bound=BaseModel)
NOT_WRITTEN = 3
"""Exit code of a process whose result could not be written: another one's could not be, either."""


def answer_of(module: str, task: BaseModel, kind: type[Answer], environment: Mapping[str, str] | None = None) -> Answer:
    """Run ``python -m MODULE TASK.json RESULT.json`` in a fresh process and return its result, of type ``kind``.

    It imports what this one does (``-P``: not from the current folder first, in which a user's data/ would hide ours),
    and ends when this one ends. ``environment``: its variables; None for those of this process. Raises CannotWrite if
    the task or the result does not fit on the disk of temporary files, else StageError with the process's last line of
    stderr, or the signal that killed it.
    """
    with tempfile.TemporaryDirectory() as folder:
        task_file, result_file = Path(folder) / "task.json", Path(folder) / "result.json"
        with writing(task_file):
            task_file.write_text(task.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-P", "-W", "ignore", "-m", module, str(task_file), str(result_file)]
        variables = {
            **(environment or os.environ),
            "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
        }
        read_end, write_end = os.pipe()  # closed when this process ends, however it does: see ``_end_with_parent``
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False, stdin=read_end)
        finally:
            os.close(write_end)
            os.close(read_end)
        if done.returncode < 0:
            raise StageError(f"killed by signal {-done.returncode}, perhaps for want of memory")
        if done.returncode or not result_file.exists():
            reason = last_line(done.stderr, f"exit code {done.returncode}")
            if done.returncode == NOT_WRITTEN:
                raise CannotWrite(reason)
            raise StageError(re.sub(r"^(\w+\.)+\w+: ", "", reason))  # without the module path of the error's class
        return kind.model_validate_json(result_file.read_text(encoding="utf-8"))


def serve(task: type[Asked], measure: Callable[[Asked], BaseModel]) -> None:
    """In the process that ``answer_of`` starts: read the task, measure, and write the result."""
    _end_with_parent()
    task_file, result_file = map(Path, sys.argv[1:3])
    result = measure(task.model_validate_json(task_file.read_text(encoding="utf-8")))
    try:
        with writing(result_file):
            result_file.write_text(result.model_dump_json(), encoding="utf-8")
    except CannotWrite as error:
        say(str(error))
        sys.exit(NOT_WRITTEN)


def _end_with_parent() -> None:
    """End this worker process when its parent ends, which closes this process's standard input."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock a thread must not hold when Python ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
