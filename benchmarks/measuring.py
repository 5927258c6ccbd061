"""Start a worker process per measurement and bring its figures back."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.comparing import Subject
from benchmarks.worker import Measurement, Scores, Task
from compress.scoring import ClipScores, Takes, pictures_of
from data.store import ClipStore
from stage import StageError

TIMED_CROPS = 8


def clip_scores(scores: Scores) -> ClipScores:
    """Return scores as arrays."""
    return ClipScores(
        clip_ids=tuple(scores.clip_ids),
        video_ids=tuple(scores.video_ids),
        labels=np.array(scores.labels, np.int64),
        methods=tuple(scores.methods),
        identities=tuple(map(tuple, scores.identities)),
        frames=None if scores.frames is None else np.array(scores.frames, np.float64),
        whole=None if scores.whole is None else np.array(scores.whole, np.float64),
    )


def write_timed_crops(store: ClipStore, split: str, folder: Path, takes: Takes | None = None) -> Path:
    """Write the real crops that a row is timed on into ``folder``, the same for all rows that look at the same.

    uint8 [N, M, S, S, 3] of one frame a clip (RGB if ``takes`` is None), or [N, T, M, S, S, 3] for a clip model.
    """
    takes = takes or Takes()
    clips = store.clips(split)
    picked = [clips[index] for index in np.linspace(0, len(clips) - 1, TIMED_CROPS).round().astype(int)]
    file = folder / f"{'-'.join(takes.modalities)}-{takes.per}.bin"
    if not file.exists():
        frames = [[int(np.flatnonzero(clip.valid)[0])] if takes.per == "frame" else None for clip in picked]
        pairs = zip(picked, frames, strict=True)
        np.concatenate([pictures_of(store, clip, own, takes) for clip, own in pairs]).tofile(file)
    return file


@dataclass(frozen=True)
class Corpora:
    """What rows are scored on."""

    store: ClipStore
    split: str
    control: Path | None = None
    perturbed: dict[str, Path] = field(default_factory=dict)
    """Stores of the same clips cut otherwise, by perturbation."""

    def of(self, subject: Subject, first_threads: bool) -> dict[str, tuple[Path, str]]:
        """Return the stores and splits that a row is scored on, by the name under which scores come back."""
        if subject.meaningless is not None:
            return {}
        scored = {self.split: (self.store.path, self.split)}
        if subject.threshold is None:
            scored["val"] = (self.store.path, "val")
        if subject.row.kind == "artifact" and subject.row.status == "measured":
            if self.control is not None:
                scored["control"] = (self.control, "test")
            if first_threads:
                scored |= {name: (path, self.split) for name, path in self.perturbed.items()}
        return scored


def task_of(subject: Subject, crops: Path, repeats: int, corpora: Corpora, first_threads: bool) -> Task:
    """Return what a worker measures of a row, on the crops in a file."""
    store = corpora.store
    return Task(
        path=subject.path,
        runtime=subject.row.runtime,
        scheme=subject.row.scheme,
        threads=subject.row.threads if subject.row.status == "measured" else 1,
        repeats=repeats,
        size=subject.row.input_size,
        modalities=subject.takes.modalities,
        per=subject.takes.per,
        method=subject.artifact.method if subject.artifact else "forward",
        batch=subject.row.batch,
        frames=store.frames,
        crops=crops,
        scored=corpora.of(subject, first_threads),
        timed=subject.row.status == "measured",
    )


def measure_apart(task: Task) -> Measurement:
    """Measure in a fresh process. Raises StageError with the worker's last line if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(task.threads)}
    with tempfile.TemporaryDirectory() as folder:
        task_file, result_file = Path(folder) / "task.json", Path(folder) / "result.json"
        task_file.write_text(task.model_dump_json())
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", str(task_file), str(result_file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode or not result_file.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            raise StageError(f"measuring {task.path} failed: {lines[-1]}")
        return Measurement.model_validate_json(result_file.read_text())
