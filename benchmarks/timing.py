"""Time and memory of a model in this process: single runs, growing batches, and runs without a pause."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.energy import Joules
from benchmarks.figures import Sustained
from benchmarks.task import BatchTiming, Task
from export.golden import Inputs
from stage import Scorer, out_of_memory

FEWEST_REPEATS = 10
MOST_SECONDS = 5.0
"""A slow model is repeated for this long, and at least FEWEST_REPEATS times."""
FEWEST_OF_BATCH = 3
"""Repeats of a batch that takes long."""
MOST_AT_ONCE = 256
"""Largest batch that is tried, in frames or clips."""
LEAST_GAIN = 1.05
"""Least factor of throughput that doubling the batch must gain for the next batch to be tried."""


def resident_mb() -> float:
    """Return the resident set of this process, in MiB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def peak_mb() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    if sys.platform == "linux":
        # Not ru_maxrss: a child started by vfork inherits its parent's there.
        line = Path("/proc/self/status").read_text(encoding="utf-8").partition("VmHWM:")[2]
        if line:  # some sandboxes do not tell
            return int(line.split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak() -> bool:
    """Reset ``peak_mb`` to the current resident set; return whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def time_runs(
    score: Scorer, task: Task, inputs: Callable[[int], Inputs], fewest: int = FEWEST_REPEATS, seconds: float = 0.0
) -> list[float]:
    """Return the milliseconds per frame of each run, on one input after another.

    There are ``task.repeats`` runs; unless the task is to be timed again, more of a fast model until ``seconds`` have
    passed, and of a slow model fewer, at least ``fewest``, after MOST_SECONDS.
    """
    if task.again:
        seconds, fewest = 0.0, task.repeats
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


def device_mb(device: str) -> float | None:
    """Return the largest sum of tensors on a GPU since the last call, in MiB; None on a CPU."""
    if device == "cpu":
        return None
    import torch

    largest = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return largest


def time_batches(score: Scorer, task: Task) -> list[BatchTiming]:
    """Time batches of 1, 2, 4, ... until doubling gains less than LEAST_GAIN, or memory runs out.

    Raises the error of the first batch, and of any batch that fails for another reason than memory.
    """
    timings: list[BatchTiming] = []
    batch = 1
    while batch <= MOST_AT_ONCE:
        batch_task = task.model_copy(update={"batch": batch, "repeats": FEWEST_REPEATS})
        inputs = batch_task.inputs()
        try:
            score(*inputs(0))
            median = float(np.median(time_runs(score, batch_task, inputs, FEWEST_OF_BATCH)))
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not timings or not out_of_memory(error):
                raise
            break
        memory = device_mb(task.device) or peak_mb()
        timings.append(BatchTiming(batch=batch, ms=median, frames_per_second=1e3 / median, peak_memory_mb=memory))
        if len(timings) > 1 and timings[-1].frames_per_second < LEAST_GAIN * timings[-2].frames_per_second:
            break
        batch *= 2
    return timings


def sustained(score: Scorer, task: Task, inputs: Callable[[int], Inputs]) -> Sustained:
    """Run without a pause for ``task.sustain`` seconds, and return the speed of each second."""
    joules = Joules()
    rates: list[float] = []
    started = time.perf_counter()
    second_started = started
    frames = runs = 0
    while (now := time.perf_counter()) - started < task.sustain:
        if now - second_started >= 1:
            rates.append(frames / (now - second_started))
            second_started, frames = now, 0
            joules.spent()  # in an hour, its counters wrap around more than once
        score(*inputs(runs))
        frames += task.frames_at_once
        runs += 1
    seconds = time.perf_counter() - started
    if frames:
        rates.append(frames / (time.perf_counter() - second_started))
    quarter = max(1, len(rates) // 4)
    energy = joules.spent()
    return Sustained(
        seconds=seconds,
        frames_per_second=rates,
        drop=1 - float(np.median(rates[-quarter:]) / np.median(rates[:quarter])) if len(rates) > 1 else None,
        joules_per_frame=None if energy is None else energy / (runs * task.frames_at_once),
        energy=joules.origin,
    )
