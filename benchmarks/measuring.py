"""Start a worker process per measurement and bring its figures back."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.worker import Measurement, Scores, Task
from compress.scoring import ClipScores
from data.store import ClipStore
from stage import StageError

TIMED_CROPS = 8


def clip_scores(scores: Scores) -> ClipScores:
    """Return scores as arrays."""
    frames = np.array([[np.nan if p is None else p for p in row] for row in scores.frames], np.float64)
    return ClipScores(tuple(scores.clip_ids), np.array(scores.labels, np.int64), frames)


def write_timed_crops(store: ClipStore, split: str, folder: Path) -> Path:
    """Write the real crops that every row is timed on, uint8 [N, S, S, 3], into ``folder``."""
    clips = store.clips(split)
    picked = [clips[index] for index in np.linspace(0, len(clips) - 1, TIMED_CROPS).round().astype(int)]
    file = folder / "crops.bin"
    np.concatenate([store.pixels(clip, [int(np.flatnonzero(clip.valid)[0])]) for clip in picked]).tofile(file)
    return file


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
