"""The slowest operations of a row's model, profiled by one function per runtime.

Each function loads the model anew with the runtime's own profiler on, and runs it on the crops that it was timed on. A
profiler costs time of its own, most where operations are small.
"""

import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Operation, Profile
from benchmarks.task import Task
from benchmarks.worker import WARM_UPS, load_scorer
from export.runtimes import PROGRAMS, ProgramName, Programs, program_file, scorer_of
from stage import reason_of

RUNS = 10
"""Profiled runs, after as many warm-ups as before a timing."""
LISTED = 10
"""Operations in a profile."""

Trace = dict[tuple[str, str], NDArray[np.float64]]
"""Milliseconds of each operation in each profiled run, float64 [RUNS], by name and kind. No time is counted twice."""


def _empty_trace() -> Trace:
    return defaultdict(lambda: np.zeros(RUNS))


def _by_run(times: Sequence[float]) -> NDArray[np.float64]:
    """Return an operation's total time in each profiled run, float64 [RUNS].

    ``times``: its single times in the order of the runs, warm-ups first; each run has as many.
    """
    by_run: NDArray[np.float64] = np.reshape(times, (WARM_UPS + RUNS, -1)).sum(axis=1, dtype=np.float64)
    return by_run[WARM_UPS:]


def profile(task: Task) -> Profile:
    """Return the profile of a task's model; where it cannot be profiled, one whose ``reason`` says why."""
    if task.runtime not in PROFILERS:
        return _not_profiled("none", "Core ML tells the times of operations to Xcode alone")
    profiler, trace_of = PROFILERS[task.runtime]
    if task.device != "cpu":
        return _not_profiled(profiler, "operations are profiled on the CPU alone")
    try:
        with tempfile.TemporaryDirectory() as folder:
            trace = trace_of(task, Path(folder))
    except Exception as error:  # the row's other measurements must not be lost
        return _not_profiled(profiler, f"profiling failed: {reason_of(error)}")
    return _summary(trace, profiler)


def _not_profiled(profiler: str, reason: str) -> Profile:
    return Profile(profiler=profiler, runs=0, operations=[], others_ms=0.0, reason=reason)


def _summary(trace: Trace, profiler: str) -> Profile:
    """Return the slowest operations, each by its median over the runs, and the sum of all others."""
    medians = sorted(((float(np.median(ms)), *key) for key, ms in trace.items()), reverse=True)
    total = sum(ms for ms, *_ in medians)
    if total <= 0:
        return _not_profiled(profiler, "the profiler told of no operation")
    operations = [Operation(name=name, kind=kind, ms=ms, share=ms / total) for ms, name, kind in medians[:LISTED] if ms]
    others = sum(ms for ms, *_ in medians[LISTED:])
    return Profile(profiler=profiler, runs=RUNS, operations=operations, others_ms=others)


def _prefix(task: Task, program: ProgramName) -> str:
    """Return the prefix of a program's operations; empty if the artifact has one program."""
    return f"{program}: " if len(PROGRAMS[task.method]) > 1 else ""


def _run_programs(programs: Programs, task: Task) -> None:
    score, inputs = scorer_of(programs, task.method), task.inputs()
    for number in range(WARM_UPS + RUNS):
        score(*inputs(number))


def _trace_onnxruntime(task: Task, folder: Path) -> Trace:
    from export.onnx import as_program, open_session, session_options

    options = session_options(task.threads)
    options.enable_profiling = True
    sessions = {}
    for name in PROGRAMS[task.method]:
        options.profile_file_prefix = str(folder / name)
        sessions[name] = open_session(program_file(task.path, "onnxruntime", name), options)
    _run_programs({name: as_program(session) for name, session in sessions.items()}.__getitem__, task)
    trace = _empty_trace()
    for name, session in sessions.items():
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        # The time of a run outside its nodes is left out: most of it is the profiler's.
        for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
            if event["cat"] == "Node":
                node = event["name"].removesuffix("_kernel_time")
                times[f"{_prefix(task, name)}{node}", event["args"]["op_name"]].append(event["dur"] / 1e3)
        trace |= {key: _by_run(durations) for key, durations in times.items()}
    return trace


def _trace_executorch(task: Task, folder: Path) -> Trace:
    from export.executorch import as_program, native_runtime, without_native_messages

    modules: dict[ProgramName, Any] = {}
    native = native_runtime()
    with without_native_messages():
        native._unsafe_reset_threadpool(task.threads)
        for name in PROGRAMS[task.method]:  # one module for each method: the profiler does not tell methods apart
            modules[name] = native._load_for_executorch(str(task.path), enable_etdump=True)
    _run_programs(lambda name: as_program(lambda inputs: modules[name].run_method(name, inputs)), task)
    trace = _empty_trace()
    for name, module in modules.items():
        file = folder / f"{name}.etdump"
        module.write_etdump_result_to_file(str(file))
        _add_method(trace, file, _prefix(task, name))
    return trace


def _add_method(trace: Trace, file: Path, prefix: str) -> None:
    """Add the times of one method's operations, inside delegates and outside, to the trace.

    Two remainders are entries too: the time of a delegate's call outside its operations, which XNNPACK reports in whole
    microseconds, and the time of the method outside delegates and operations.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of tensors that were not recorded
        from executorch.devtools import Inspector

        blocks = Inspector(etdump_path=str(file)).event_blocks
    for block in blocks:
        calls, inside, accounted = 0, np.zeros(RUNS), np.zeros(RUNS)
        for event in block.events:
            if event.perf_data is None or event.name in ("Method::init", "Program::load_method"):
                continue
            ms = _by_run(event.perf_data.raw)
            if event.name == "Method::execute":
                trace[f"{prefix}ExecuTorch itself", event.name] += np.maximum(0, ms - accounted)
            elif event.name == "DELEGATE_CALL":
                calls += 1
                trace[f"{prefix}delegate {calls} itself", event.name] += np.maximum(0, ms - inside)
                inside, accounted = np.zeros(RUNS), accounted + ms
            elif event.is_delegated_op:
                inside += ms
                trace[f"{prefix}delegate {calls + 1}: {event.name}", event.name.partition(" #")[0]] += ms
            elif event.name.startswith("native_call_"):
                kind = event.name.removeprefix("native_call_")
                accounted += ms
                trace[f"{prefix}{kind} #{event._instruction_id}", kind] += ms


def _trace_torch(task: Task, _: Path) -> Trace:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    score, inputs = load_scorer(task), task.inputs()
    for number in range(WARM_UPS):
        score(*inputs(number))
    trace = _empty_trace()
    for number in range(RUNS):
        with profiled(activities=[ProfilerActivity.CPU]) as profiler:
            score(*inputs(number))
        for event in profiler.key_averages():
            trace[event.key, event.key.removeprefix("aten::")][number] += event.self_cpu_time_total / 1e3
    return trace


PROFILERS: dict[str, tuple[str, Callable[[Task, Path], Trace]]] = {
    "torch": ("torch.profiler", _trace_torch),
    "executorch": ("ExecuTorch's ETDump", _trace_executorch),
    "onnxruntime": ("ONNX Runtime's profiler", _trace_onnxruntime),
}
"""The profiler's name and the function that calls it, by runtime."""
