"""Measure in a fresh process, on real crops."""

import os
from pathlib import Path

import numpy as np

from benchmarks.apart import answer_of
from benchmarks.task import Measurement, Task
from compress.scoring import Takes, pictures_of
from data.store import ClipStore
from files import CannotWrite, sha256_of, write_raw, writing
from models.run import Run
from stage import StageError, reason_of

TIMED_CROPS = 8


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


def measure_apart(task: Task) -> Measurement:
    """Measure a task in a fresh process. Raises StageError with the worker's last line if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(task.threads)}
    try:
        return answer_of("benchmarks.worker", task, Measurement, environment)
    except CannotWrite:
        raise
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
