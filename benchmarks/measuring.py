"""Measure in a fresh process, on real crops."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from benchmarks.task import Measurement, Task
from compress.scoring import Takes, pictures_of
from data.store import ClipStore
from files import sha256_of, write_raw, writing
from models.run import Run
from stage import StageError, last_line, reason_of

TIMED_CROPS = 8
Answer = TypeVar("Answer", bound=BaseModel)


def write_timed_crops(store: ClipStore, split: str, folder: Path, takes: Takes | None = None) -> Path:
    """Write the real crops that rows are timed on into ``folder``; return the file, one for each kind of input.

    The file holds uint8 [N, M, S, S, 3], one frame of each of N clips in M modalities, or [N, T, M, S, S, 3] for clip
    models; M is left out where there is one modality. ``takes``: None for frames in RGB.
    """
    takes = takes or Takes()
    clips = store.clips(split)
    timed_clips = [clips[index] for index in np.linspace(0, len(clips) - 1, TIMED_CROPS).round().astype(int)]
    file = folder / f"{'-'.join(takes.modalities)}-{takes.per}.bin"
    if not file.exists():
        frames = [[int(np.flatnonzero(clip.valid)[0])] if takes.per == "frame" else None for clip in timed_clips]
        pairs = zip(timed_clips, frames, strict=True)
        with writing(file):
            write_raw(file, np.concatenate([pictures_of(store, clip, indices, takes) for clip, indices in pairs]))
    return file


def answer_of(module: str, task: BaseModel, kind: type[Answer], environment: Mapping[str, str] | None = None) -> Answer:
    """Run ``python -m MODULE TASK.json RESULT.json`` in a fresh process and return its result, of type ``kind``.

    The process ends when this one ends. Raises StageError with its last line of stderr, or the signal that killed it.
    """
    with tempfile.TemporaryDirectory() as folder:
        task_file, result_file = Path(folder) / "task.json", Path(folder) / "result.json"
        with writing(task_file):
            task_file.write_text(task.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", "-m", module, str(task_file), str(result_file)]
        read_end, write_end = os.pipe()  # closed when this process ends, however it does: see ``end_with_parent``
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, stdin=read_end)
        finally:
            os.close(write_end)
            os.close(read_end)
        if done.returncode < 0:
            raise StageError(f"killed by signal {-done.returncode}, perhaps for want of memory")
        if done.returncode or not result_file.exists():
            reason = last_line(done.stderr, f"exit code {done.returncode}")
            raise StageError(re.sub(r"^(\w+\.)+\w+: ", "", reason))  # without the module path of the error's class
        return kind.model_validate_json(result_file.read_text(encoding="utf-8"))


def measure_apart(task: Task) -> Measurement:
    """Measure a task in a fresh process. Raises StageError with the worker's last line if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(task.threads)}
    try:
        return answer_of("benchmarks.worker", task, Measurement, environment)
    except StageError as error:
        raise StageError(f"measuring {task.path} failed: {error}") from error


def refuse_changed(path: Path, sha256: str | None) -> None:
    """Raise StageError if the artifact or run at a path is gone, or no longer has the hash ``sha256`` of its row."""
    try:
        current = Run(path).sha256 if (path / "model.json").is_file() else sha256_of(path)
    except OSError as error:
        raise StageError(f"{path} went away while it was measured ({reason_of(error)})") from error
    if current != sha256:
        raise StageError(f"{path} was changed while it was measured")


def refuse_changed_store(store: ClipStore) -> None:
    """Raise StageError if another store is at its path by now; the files of a store are checked as they are read."""
    if ClipStore(store.path).info.fingerprint != store.info.fingerprint:
        raise StageError(f"{store.path} was changed while it was scored")
