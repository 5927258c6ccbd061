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

from benchmarks.energy import Joules
from benchmarks.processor import bound_to
from benchmarks.report import Profile, Sustained
from compress.scoring import ClipScores
from export.runtimes import ComputeUnits, Method
from stage import Modality, Scheme, reason_of

WARM_UPS = 3
FEWEST_REPEATS = 10
LEAST_SECONDS = 1.0
"""A fast model is repeated for this long, however few repeats were asked for."""
MOST_SECONDS = 5.0
"""A slow model is repeated for this long, and at least FEWEST_REPEATS times."""
FEWEST_OF_BATCH = 3
"""Repeats of a batch that takes long."""
MOST_AT_ONCE = 256
"""Frames, or clips."""
LEAST_GAIN = 1.05
"""What a batch of twice the size must bring, for the next one to be tried."""
PACKAGES = {"torch": "torch", "executorch": "executorch", "onnxruntime": "onnxruntime"}
"""Where a runtime's libraries lie, by runtime; Core ML's are the system's."""


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
    units: ComputeUnits = "all"
    """What Core ML may use."""
    threads: int
    cores: list[int] | None = None
    """Processors to be bound to while it is timed."""
    repeats: int
    sustain: float = 0.0
    """Seconds to run without a pause."""
    profiled: bool = False
    """Whether its operations are timed too, in runs that count for nothing else."""
    grown: bool = False
    """Whether ever larger batches are timed too, for the best throughput."""
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


class BatchTiming(BaseModel):
    """What a run of several samples at once takes."""

    model_config = ConfigDict(extra="forbid")

    batch: int
    """Frames, or clips, at once."""
    ms: float
    """Median of a run, divided by the frames in it."""
    frames_per_second: float
    peak_memory_mb: float
    """Of the whole process; on a GPU of the tensors there."""


class Timing(BaseModel):
    """Latency and memory."""

    model_config = ConfigDict(extra="forbid")

    load_ms: float
    first_run_ms: float
    times_ms: list[float]
    """Of each run after the warm-up, divided by the frames in it."""
    peak_memory_mb: float
    idle_memory_mb: float
    runtime_bytes: int | None
    """Of the runtime's libraries in the process."""
    cores: list[int] | None
    """To which it was bound."""
    device_memory_mb: float | None = None
    """Largest sum of tensors on the GPU; None on a CPU."""
    batches: list[BatchTiming] = []
    """Of growing batches, up to the one after that of the best throughput."""


class Measurement(BaseModel):
    """What a worker found."""

    model_config = ConfigDict(extra="forbid")

    timing: Timing | None
    """None of what was not to be timed."""
    scores: dict[str, Scores]
    sustained: Sustained | None = None
    profile: Profile | None = None
    macs: int | None = None
    """A frame's, of a float run in torch."""
    delegated_fraction: float | None = None
    """Of Core ML's operations, those off the CPU."""
    reason: str = ""
    """Why that is missing."""


Score = Callable[..., NDArray[np.float32]]


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def peak_mb() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    if sys.platform == "linux":
        # Not ru_maxrss: a child started by vfork inherits its parent's there.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak() -> bool:
    """Make ``peak_mb`` begin anew; return whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _library_bytes(runtime: str) -> int | None:
    """Return the size of a runtime's shared libraries that this process has loaded, in bytes.

    0 where the system brings them; None where the system does not say what is loaded.
    """
    if runtime not in PACKAGES:
        return 0
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    files = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    own = [file for file in files if ".so" in file.name and PACKAGES[runtime] in file.parts]
    return sum(file.stat().st_size for file in own)


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


def load_scorer(task: Task) -> Score:
    """Load what scores, to run on the task's threads."""
    if task.runtime != "torch":
        from export.runtimes import Runtime, load_artifact

        return load_artifact(task.path, cast(Runtime, task.runtime), task.threads, task.method, task.units)
    import torch

    from compress.runs import pixel_detector, torch_scorer
    from models.run import Run

    torch.set_num_threads(task.threads)
    detector = pixel_detector(Run(task.path), scheme=task.scheme).to(task.device)
    return torch_scorer(detector, torch.device(task.device))


def time_runs(
    score: Score, task: Task, inputs: Callable[[int], Inputs], fewest: int = FEWEST_REPEATS, seconds: float = 0.0
) -> list[float]:
    """Return milliseconds per frame of runs on one input after another.

    At least ``fewest`` of a slow model, and as many as go into ``seconds`` of a fast one.
    """
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < task.repeats or time.perf_counter() - started < seconds:
        pixels = inputs(len(times))
        before = time.perf_counter()
        score(*pixels)
        times.append(1e3 * (time.perf_counter() - before) / task.frames_at_once)
        if len(times) >= fewest and time.perf_counter() - started > MOST_SECONDS:
            break
    return times


def _device_mb(device: str) -> float | None:
    """Return the largest sum of tensors on a GPU since the last call, in MiB."""
    if device == "cpu":
        return None
    import torch

    largest = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return largest


def time_batches(score: Score, task: Task) -> list[BatchTiming]:
    """Double the batch until that gains less than LEAST_GAIN, or memory ends."""
    found: list[BatchTiming] = []
    batch = 1
    while batch <= MOST_AT_ONCE:
        own = task.model_copy(update={"batch": batch, "repeats": FEWEST_REPEATS})
        inputs = own.inputs()
        try:
            score(*inputs(0))
            median = float(np.median(time_runs(score, own, inputs, FEWEST_OF_BATCH)))
        except (MemoryError, RuntimeError):  # torch.OutOfMemoryError is a RuntimeError
            if not found:
                raise
            break
        memory = _device_mb(task.device) or peak_mb()
        found.append(BatchTiming(batch=batch, ms=median, frames_per_second=1e3 / median, peak_memory_mb=memory))
        if len(found) > 1 and found[-1].frames_per_second < LEAST_GAIN * found[-2].frames_per_second:
            break
        batch *= 2
    return found


def sustained(score: Score, task: Task, inputs: Callable[[int], Inputs]) -> Sustained:
    """Run without a pause for ``task.sustain`` seconds, and return the speed of each second."""
    joules = Joules()
    rates: list[float] = []
    frames, started = 0, time.perf_counter()
    second, number = started, 0
    while (now := time.perf_counter()) - started < task.sustain:
        if now - second >= 1:
            rates.append(frames / (now - second))
            second, frames = now, 0
        score(*inputs(number))
        frames, number = frames + task.frames_at_once, number + 1
    spent = time.perf_counter() - started
    if frames:
        rates.append(frames / (time.perf_counter() - second))
    quarter = max(1, len(rates) // 4)
    used = joules.spent()
    return Sustained(
        seconds=spent,
        frames_per_second=rates,
        drop=1 - float(np.median(rates[-quarter:]) / np.median(rates[:quarter])),
        joules_per_frame=None if used is None else used / (number * task.frames_at_once),
        energy=joules.origin,
    )


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


def timing(task: Task, inputs: Callable[[int], Inputs]) -> tuple[Timing, Score]:
    """Load, warm up, and time; return also what was loaded."""
    _import_runtime(task)
    idle = _resident_mb()
    before = time.perf_counter()
    score = load_scorer(task)
    load_ms = 1e3 * (time.perf_counter() - before)
    before = time.perf_counter()
    score(*inputs(0))
    first_run_ms = 1e3 * (time.perf_counter() - before)
    for index in range(WARM_UPS - 1):
        score(*inputs(index))
    times = time_runs(score, task, inputs, seconds=LEAST_SECONDS)
    found = Timing(
        load_ms=load_ms,
        first_run_ms=first_run_ms,
        times_ms=times,
        peak_memory_mb=peak_mb(),
        idle_memory_mb=idle,
        runtime_bytes=_library_bytes(task.runtime),
        cores=task.cores,
        device_memory_mb=_device_mb(task.device),
    )
    return found, score


def _macs(task: Task) -> int | None:
    """Return a frame's multiply-accumulates of a float run, fused as it was timed."""
    if task.runtime != "torch" or task.scheme not in ("fp32", "autocast"):
        return None
    from compress.runs import pixel_detector
    from models.cost import macs_of
    from models.detector import Detector
    from models.run import Run

    network = pixel_detector(Run(task.path)).network
    assert isinstance(network, Detector)
    return macs_of(network, *network.example(task.frames)) // (task.frames if task.per == "clip" else 1)


def _off_cpu(task: Task) -> tuple[float | None, str]:
    """Return the share of operations that Core ML prefers to run off the CPU, or why it is not known."""
    from export.coreml import off_cpu_fraction

    try:
        return off_cpu_fraction(task.path, task.method, task.units), ""
    except Exception as error:  # what was timed must not be lost
        return None, f"Core ML did not tell where its operations run: {reason_of(error)}"


def measure(task: Task) -> Measurement:
    """Time a model, then score with it on every core, and profile it last."""
    found = Measurement(timing=None, scores={})
    inputs = task.inputs()
    with bound_to(task.cores):
        if task.timed:
            found.timing, score = timing(task, inputs)
            if task.grown:
                found.timing.batches = time_batches(score, task)
            if task.sustain:
                found.sustained = sustained(score, task, inputs)
            del score
    if task.scored:
        score = load_scorer(task.model_copy(update={"threads": os.cpu_count() or 1}))
        found.scores = {name: _score_store(score, task, *scored) for name, scored in task.scored.items()}
    if task.profiled:
        from benchmarks.profiling import profile

        with bound_to(task.cores):
            found.profile = profile(task)
    if task.runtime == "coreml" and task.timed:
        found.delegated_fraction, found.reason = _off_cpu(task)
    found.macs = _macs(task)
    return found


def main() -> None:
    """Read a task, measure, write the result."""
    task_file, result_file = map(Path, sys.argv[1:3])
    result = measure(Task.model_validate_json(task_file.read_text()))
    result_file.write_text(result.model_dump_json())


if __name__ == "__main__":
    main()
