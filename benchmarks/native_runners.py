"""Programs for phones that time a model: how each is called, and what its output tells.

ExecuTorch's ``executor_runner`` (examples/portable/executor_runner) and ONNX Runtime's ``onnxruntime_perf_test``
(onnxruntime/test/perftest). Both make up their inputs, and neither scores clips.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.worker import WARM_UPS
from export.runtimes import ProgramName, Runtime
from stage import StageError, WrongArgument

NUMBER = r"([0-9.]+(?:e[-+]?[0-9]+)?)"


@dataclass(frozen=True)
class RunnerTimes:
    """What a runner told of one call, in milliseconds of a run."""

    runs: int
    p50_ms: float
    """The mean where the runner tells nothing else."""
    mean_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    mean_alone: bool = False
    """Whether the runner tells a mean and no single times, warm-ups included."""
    peak_memory_mb: float | None = None
    """Largest resident set of the runner's process, in MiB."""


@dataclass(frozen=True)
class Tool:
    """A kind of runner."""

    in_name: str
    """What the name of its file contains."""
    runtime: Runtime
    arguments: Callable[[str, ProgramName, int, int], list[str]]
    """Of a model's file, its program, the number of threads and of timed runs."""
    read: Callable[[str], RunnerTimes]
    """From all that it printed; raises ValueError if that does not tell times."""
    log_tag: str | None
    """Under which it writes to Android's log what it prints elsewhere."""
    silent: str
    """Why it may tell no times, and the mend."""


def _executorch_arguments(file: str, program: ProgramName, threads: int, runs: int) -> list[str]:
    options = {"model_path": file, "cpu_threads": threads, "num_executions": WARM_UPS + runs}
    if program != "forward":  # which all run if they are not told; older runners do not know the option
        options["method_name"] = program
    return [f"--{name}={value}" for name, value in options.items()]


def _found(pattern: str, text: str, unit: float = 1.0) -> float | None:
    match = re.search(pattern, text)
    return float(match[1]) * unit if match else None


def read_executorch(text: str) -> RunnerTimes:
    """Read what ``executor_runner`` logs. One that does not log each iteration tells the mean, warm-ups included.

    Raises ValueError if it did not run to the end.
    """
    done = re.search(rf"Model executed successfully (\d+) time\(s\) in {NUMBER} ms", text)
    if not done:
        raise ValueError("no line 'Model executed successfully N time(s) in X ms'")
    load = _found(rf"Model loaded in {NUMBER} ms", text)
    each = [float(ms) for ms in re.findall(rf"Iteration \d+ of \d+: {NUMBER} ms", text)]
    if len(each) <= WARM_UPS:
        mean = float(done[2]) / int(done[1])
        return RunnerTimes(runs=int(done[1]), p50_ms=mean, mean_ms=mean, load_ms=load, mean_alone=True)
    p50, p90, p99 = (float(value) for value in np.percentile(each[WARM_UPS:], [50, 90, 99]))
    mean = float(np.mean(each[WARM_UPS:]))
    return RunnerTimes(len(each) - WARM_UPS, p50, mean, p90, p99, load, each[0])


def _onnxruntime_arguments(file: str, _: ProgramName, threads: int, runs: int) -> list[str]:
    return ["-I", "-e", "cpu", "-m", "times", "-r", str(runs), "-x", str(threads), "-s", file]


def read_onnxruntime(text: str) -> RunnerTimes:
    """Read what ``onnxruntime_perf_test`` prints, with its statistics (``-s``) or without. It warms up by one run.

    Raises ValueError if it did not run to the end.
    """
    mean = _found(rf"Average inference time cost(?: total)?: {NUMBER} ms", text)
    runs = _found(r"Total inference requests: (\d+)", text)
    if mean is None or runs is None:
        raise ValueError("no line 'Average inference time cost: X ms'")
    p50, p90, p99 = (_found(rf"P{share} Latency: {NUMBER} s", text, 1e3) for share in (50, 90, 99))
    return RunnerTimes(
        runs=int(runs),
        p50_ms=mean if p50 is None else p50,
        mean_ms=mean,
        mean_alone=p50 is None,
        p90_ms=p90,
        p99_ms=p99,
        load_ms=_found(rf"Session creation time cost: {NUMBER} s", text, 1e3),
        first_run_ms=_found(rf"First inference time cost: {NUMBER} ms", text),
        peak_memory_mb=_found(r"Peak working set size: (\d+)", text, 1 / 2**20),
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
    """Tell a runner's kind by its name. Raises StageError if that is neither, or if there is no such file."""
    tool = next((tool for tool in TOOLS if tool.in_name in runner.name), None)
    if tool is None:
        raise WrongArgument(
            f"--runner {runner}: its kind is told by its name, which must contain executor_runner (runs .pte) or "
            "perf_test (runs .onnx)"
        )
    if not runner.is_file():
        raise StageError(f"--runner {runner}: there is no such file")
    return tool
