"""Programs for phones that time a model: how each is called, and how its output is read.

ExecuTorch's ``executor_runner`` (examples/portable/executor_runner) and ONNX Runtime's ``onnxruntime_perf_test``
(onnxruntime/test/perftest). Both make up their inputs; neither scores clips.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.worker import WARM_UPS
from export.runtimes import ProgramName, Runtime
from stage import StageError, WrongArgument

NUMBER = r"([0-9.]+(?:e[-+]?[0-9]+)?)"


class RunnerTimes(BaseModel):
    """The times that a runner reported for one call, in milliseconds a run; None where it did not report them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: int
    """Timed runs."""
    p50_ms: float
    """The median; the mean where the runner reports nothing else."""
    mean_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    mean_alone: bool = False
    """Whether the runner reported a mean only, so that ``p50_ms`` is that mean; ExecuTorch's includes warm-ups."""
    peak_memory_mb: float | None = None
    """Largest resident set of the runner's process, in MiB."""


@dataclass(frozen=True)
class Tool:
    """A kind of runner: how to recognize, call and read it."""

    in_name: str
    """Text that the name of the runner's file contains."""
    runtime: Runtime
    arguments: Callable[[str, ProgramName, int, int], list[str]]
    """Function from a model's file, its program, and the numbers of threads and of timed runs to the arguments."""
    read: Callable[[str], RunnerTimes]
    """Function from all that the runner printed to its times; raises ValueError if these are missing."""
    log_tag: str | None
    """Tag under which the runner writes to Android's log instead of printing; None if it prints."""
    silent: str
    """Why the runner may report no times, and the mend."""


def _executorch_arguments(file: str, program: ProgramName, threads: int, runs: int) -> list[str]:
    options = {"model_path": file, "cpu_threads": threads, "num_executions": WARM_UPS + runs}
    if program != "forward":  # the default of all runners; older ones do not know the option
        options["method_name"] = program
    return [f"--{name}={value}" for name, value in options.items()]


def _number(pattern: str, text: str, unit: float = 1.0) -> float | None:
    """Return ``unit`` times the number that the pattern's first group matches; None if the pattern is not there."""
    match = re.search(pattern, text)
    return float(match[1]) * unit if match else None


def read_executorch(text: str) -> RunnerTimes:
    """Return the times in the log of ``executor_runner``; of one that logs no iterations, the mean, warm-ups included.

    Raises ValueError if it did not run to the end.
    """
    summary = re.search(rf"Model executed successfully (\d+) time\(s\) in {NUMBER} ms", text)
    if not summary:
        raise ValueError("no line 'Model executed successfully N time(s) in X ms'")
    load = _number(rf"Model loaded in {NUMBER} ms", text)
    times_ms = [float(ms) for ms in re.findall(rf"Iteration \d+ of \d+: {NUMBER} ms", text)]
    if len(times_ms) <= WARM_UPS:
        mean = float(summary[2]) / int(summary[1])
        return RunnerTimes(runs=int(summary[1]), p50_ms=mean, mean_ms=mean, load_ms=load, mean_alone=True)
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms[WARM_UPS:], [50, 90, 99]))
    mean = float(np.mean(times_ms[WARM_UPS:]))
    return RunnerTimes(
        runs=len(times_ms) - WARM_UPS,
        p50_ms=p50,
        mean_ms=mean,
        p90_ms=p90,
        p99_ms=p99,
        load_ms=load,
        first_run_ms=times_ms[0],
    )


def _onnxruntime_arguments(file: str, _: ProgramName, threads: int, runs: int) -> list[str]:
    return ["-I", "-e", "cpu", "-m", "times", "-r", str(runs), "-x", str(threads), "-s", file]


def read_onnxruntime(text: str) -> RunnerTimes:
    """Return the times that ``onnxruntime_perf_test`` prints, with its statistics (``-s``) or without.

    The program warms up by one run.

    Raises ValueError if it did not run to the end.
    """
    mean = _number(rf"Average inference time cost(?: total)?: {NUMBER} ms", text)
    runs = _number(r"Total inference requests: (\d+)", text)
    if mean is None or runs is None:
        raise ValueError("no line 'Average inference time cost: X ms'")
    p50, p90, p99 = (_number(rf"P{percent} Latency: {NUMBER} s", text, 1e3) for percent in (50, 90, 99))
    return RunnerTimes(
        runs=int(runs),
        p50_ms=mean if p50 is None else p50,
        mean_ms=mean,
        mean_alone=p50 is None,
        p90_ms=p90,
        p99_ms=p99,
        load_ms=_number(rf"Session creation time cost: {NUMBER} s", text, 1e3),
        first_run_ms=_number(rf"First inference time cost: {NUMBER} ms", text),
        peak_memory_mb=_number(r"Peak working set size: (\d+)", text, 1 / 2**20),
    )


TOOLS = (
    Tool(
        in_name="executor_runner",
        runtime="executorch",
        arguments=_executorch_arguments,
        read=read_executorch,
        log_tag="ExecuTorch",
        silent="a release build logs nothing: build it with -DEXECUTORCH_ENABLE_LOGGING=ON",
    ),
    Tool(
        in_name="perf_test",
        runtime="onnxruntime",
        arguments=_onnxruntime_arguments,
        read=read_onnxruntime,
        log_tag=None,
        silent="give the onnxruntime_perf_test of ONNX Runtime's own build",
    ),
)


def tool_of(runner: Path) -> Tool:
    """Return the kind of a runner by its name. Raises WrongArgument if it fits none, StageError without the file."""
    tool = next((tool for tool in TOOLS if tool.in_name in runner.name), None)
    if tool is None:
        raise WrongArgument(
            f"--runner {runner}: its kind is told by its name, which must contain executor_runner (runs .pte) or "
            "perf_test (runs .onnx)"
        )
    if not runner.is_file():
        raise StageError(f"--runner {runner}: there is no such file")
    return tool
