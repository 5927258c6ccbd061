"""Measure one artifact or run in a process of its own: ``python -m benchmarks.worker TASK.json RESULT.json``.

Nothing is imported before it is needed, because the process's memory is one of the figures.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.report import Latency
from export.runtimes import Method
from stage import Modality, Scheme

WARM_UPS = 3
FEWEST_REPEATS = 10
MOST_SECONDS = 5.0
"""A slow model is repeated for this long, and at least FEWEST_REPEATS times."""


Inputs = tuple[NDArray[np.generic], ...]
"""What a model takes in one run."""


class Task(BaseModel):
    """What a worker measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    runtime: str
    scheme: Scheme
    """The run's own, or one in which an fp32 run is to compute."""
    device: str = "cpu"
    threads: int
    repeats: int
    size: int
    modalities: tuple[Modality, ...] = ("rgb",)
    per: Literal["frame", "clip"] = "frame"
    """Whether the model scores frames or whole clips."""
    method: Method = "forward"
    """How an artifact scores."""
    batch: int = 1
    """Crops, or clips, that it is timed on at once."""
    frames: int = 1
    """Frames of a clip."""
    crops: Path
    """File of real crops to time on, uint8 [N, size, size, 3], of each modality and of all frames where it takes them.
    """
    scored: dict[str, tuple[Path, str]]
    """Stores to score and their splits, by the name under which the scores come back."""
    timed: bool = True

    @property
    def frames_at_once(self) -> int:
        """Frames that one run of the model takes."""
        return self.batch * (self.frames if self.per == "clip" else 1)

    def inputs(self) -> Callable[[int], Inputs]:
        """Read what the model is timed on; return how a run's batch is made from its number."""
        of_clip = (self.frames,) if self.per == "clip" else ()
        several = (len(self.modalities),) if len(self.modalities) > 1 else ()
        crops = np.fromfile(self.crops, np.uint8).reshape(-1, *of_clip, *several, self.size, self.size, 3)
        valid = (np.ones((self.batch, self.frames), np.bool_),) if self.per == "clip" else ()

        def batch(number: int) -> Inputs:
            return crops[(number + np.arange(self.batch)) % len(crops)], *valid

        return batch


class Scores(BaseModel):
    """Scores of the clips of a split, as ``compress.scoring.ClipScores``."""

    model_config = ConfigDict(extra="forbid")

    clip_ids: list[str]
    video_ids: list[str]
    labels: list[int]
    methods: list[str]
    identities: list[list[str]]
    frames: list[list[float | None]] | None
    """None where a frame is not valid; no list at all from a clip model."""
    whole: list[float] | None


class Timing(BaseModel):
    """Latency and memory."""

    model_config = ConfigDict(extra="forbid")

    load_ms: float
    first_run_ms: float
    latency_ms: Latency
    repeats: int
    throughput: float
    peak_memory_mb: float
    idle_memory_mb: float


class Measurement(BaseModel):
    """What a worker found."""

    model_config = ConfigDict(extra="forbid")

    timing: Timing | None
    """None of what was not to be timed."""
    scores: dict[str, Scores]


Score = Callable[..., NDArray[np.float32]]


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def _peak_mb() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    if sys.platform == "linux":
        # Not ru_maxrss: a child started by vfork inherits its parent's there.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _import_runtime(task: Task) -> None:
    """Import what the runtime needs, so that loading is timed without it."""
    if task.runtime == "torch":
        import compress.runs  # noqa: F401

        if task.scheme.startswith("int8"):
            import torchao.quantization  # noqa: F401
    elif task.runtime == "executorch":
        import executorch.runtime  # noqa: F401
    elif task.runtime == "onnxruntime":
        import onnxruntime  # noqa: F401
    else:
        import coremltools  # noqa: F401


def _load(task: Task) -> Score:
    if task.runtime != "torch":
        from export.runtimes import Runtime, load_artifact

        return load_artifact(task.path, cast(Runtime, task.runtime), task.threads, task.method)
    import torch

    from compress.runs import pixel_detector, torch_scorer
    from models.run import Run

    torch.set_num_threads(task.threads)
    detector = pixel_detector(Run(task.path), scheme=task.scheme).to(task.device)
    return torch_scorer(detector, torch.device(task.device))


def time_runs(score: Score, task: Task, inputs: Callable[[int], Inputs]) -> list[float]:
    """Return milliseconds per frame of runs on one input after another."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < task.repeats:
        pixels = inputs(len(times))
        before = time.perf_counter()
        score(*pixels)
        times.append(1e3 * (time.perf_counter() - before) / task.frames_at_once)
        if len(times) >= FEWEST_REPEATS and time.perf_counter() - started > MOST_SECONDS:
            break
    return times


def _score_store(score: Score, task: Task, store_path: Path, split: str) -> Scores:
    from compress.scoring import Takes, score_clip_list
    from data.store import ClipStore

    store = ClipStore(store_path)
    clips = store.clips(split, both=False)  # crops cut otherwise may be of one label
    scores = score_clip_list(score, store, clips, f"score {split}", Takes(task.modalities, task.per))
    rows = None if scores.frames is None else scores.frames.tolist()
    return Scores(
        clip_ids=list(scores.clip_ids),
        video_ids=list(scores.video_ids),
        labels=scores.labels.tolist(),
        methods=list(scores.methods),
        identities=[list(persons) for persons in scores.identities],
        frames=rows and [[None if np.isnan(p) else p for p in row] for row in rows],
        whole=None if scores.whole is None else scores.whole.tolist(),
    )


def timing(task: Task) -> Timing:
    """Load, warm up, and time."""
    inputs = task.inputs()
    _import_runtime(task)
    idle = _resident_mb()
    before = time.perf_counter()
    score = _load(task)
    load_ms = 1e3 * (time.perf_counter() - before)
    before = time.perf_counter()
    score(*inputs(0))
    first_run_ms = 1e3 * (time.perf_counter() - before)
    for index in range(WARM_UPS - 1):
        score(*inputs(index))
    times = time_runs(score, task, inputs)
    peak = _peak_mb()
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return Timing(
        load_ms=load_ms,
        first_run_ms=first_run_ms,
        latency_ms=Latency(p50=p50, p90=p90, p99=p99),
        repeats=len(times),
        throughput=1e3 * len(times) / sum(times),
        peak_memory_mb=peak,
        idle_memory_mb=idle,
    )


def measure(task: Task) -> Measurement:
    """Time a model, and then score with it on every core."""
    found = Measurement(timing=timing(task) if task.timed else None, scores={})
    if task.scored:
        score = _load(task.model_copy(update={"threads": os.cpu_count() or 1}))
        found.scores = {name: _score_store(score, task, *scored) for name, scored in task.scored.items()}
    return found


def main() -> None:
    """Read a task, measure, write the result."""
    task_file, result_file = map(Path, sys.argv[1:3])
    result = measure(Task.model_validate_json(task_file.read_text()))
    result_file.write_text(result.model_dump_json())


if __name__ == "__main__":
    main()
