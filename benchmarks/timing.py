"""The clock and the memory of the process that measures: runs one after another, growing batches, without a pause."""

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
"""Frames, or clips."""
LEAST_GAIN = 1.05
"""What a batch of twice the size must bring, for the next one to be tried."""


def resident_mb() -> float:
    """Return the resident set of this process, in MiB."""
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


def time_runs(
    score: Scorer, task: Task, inputs: Callable[[int], Inputs], fewest: int = FEWEST_REPEATS, seconds: float = 0.0
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


def device_mb(device: str) -> float | None:
    """Return the largest sum of tensors on a GPU since the last call, in MiB."""
    if device == "cpu":
        return None
    import torch

    largest = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return largest


def time_batches(score: Scorer, task: Task) -> list[BatchTiming]:
    """Double the batch until that gains less than LEAST_GAIN, or memory ends."""
    found: list[BatchTiming] = []
    batch = 1
    while batch <= MOST_AT_ONCE:
        own = task.model_copy(update={"batch": batch, "repeats": FEWEST_REPEATS})
        inputs = own.inputs()
        try:
            score(*inputs(0))
            median = float(np.median(time_runs(score, own, inputs, FEWEST_OF_BATCH)))
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not found or not out_of_memory(error):
                raise
            break
        memory = device_mb(task.device) or peak_mb()
        found.append(BatchTiming(batch=batch, ms=median, frames_per_second=1e3 / median, peak_memory_mb=memory))
        if len(found) > 1 and found[-1].frames_per_second < LEAST_GAIN * found[-2].frames_per_second:
            break
        batch *= 2
    return found


def sustained(score: Scorer, task: Task, inputs: Callable[[int], Inputs]) -> Sustained:
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
