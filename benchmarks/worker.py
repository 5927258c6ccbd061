"""Measure one artifact or run in a process of its own: ``python -m benchmarks.worker TASK.json RESULT.json``.

Nothing is imported before it is needed, because the process's memory is one of the figures.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from benchmarks.apart import serve
from benchmarks.processor import bound_to
from benchmarks.task import Measurement, Scores, Task, Timing
from benchmarks.timing import device_mb, peak_mb, resident_mb, sustained, time_batches, time_runs
from export.golden import Inputs
from export.runtimes import Runtime, import_runtime, load_artifact
from stage import Scorer, reason_of, refuse_tf32, usable_cores

WARM_UPS = 3
LEAST_SECONDS = 1.0
"""A fast model is repeated for this long, however few repeats were asked for."""
PACKAGES = ("torch", "executorch", "onnxruntime")
"""Runtimes whose libraries are in a package of the same name; Core ML's belong to the system."""


def _library_bytes(runtime: str) -> int | None:
    """Return the size of the runtime's shared libraries that this process has loaded, in bytes.

    0 where the libraries belong to the system; None where the system does not list loaded files.
    """
    if runtime not in PACKAGES:
        return 0
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    package = find_spec(runtime)
    folders = [Path(folder).resolve() for folder in (package and package.submodule_search_locations) or []]
    files = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    libraries = [file for file in files if ".so" in file.name and any(map(file.is_relative_to, folders))]
    return sum(file.stat().st_size for file in libraries)


def _import_runtime(task: Task) -> None:
    """Import the runtime's modules and ours that call it, so that time and memory to load a model have none of them."""
    if task.runtime == "torch":
        import compress.runs

        if task.scheme.startswith("int8"):
            import executorch.backends.xnnpack.quantizer.xnnpack_quantizer  # noqa: F401

            import compress.int8  # noqa: F401
    else:
        import_runtime(cast(Runtime, task.runtime))


def load_scorer(task: Task) -> Scorer:
    """Load the task's model, to run on the task's threads; return the function that scores a batch."""
    if task.runtime != "torch":
        return load_artifact(task.path, cast(Runtime, task.runtime), task.threads, task.method, task.units)
    import torch

    from compress.runs import pixel_detector, torch_scorer
    from models.run import Run

    torch.set_num_threads(task.threads)
    refuse_tf32()
    detector = pixel_detector(Run(task.path), scheme=task.scheme).to(task.device)
    return torch_scorer(detector, torch.device(task.device))


def _score_store(score: Scorer, task: Task, store_path: Path, split: str) -> Scores:
    from compress.scoring import Takes, score_clip_list
    from data.store import ClipStore

    store = ClipStore(store_path)
    clips = store.clips(split, both=False)  # perturbed crops may be of one label
    takes = Takes(task.modalities, task.per)
    return Scores.of(score_clip_list(score, store, clips, f"score {split}", takes))


def timing(task: Task, inputs: Callable[[int], Inputs]) -> tuple[Timing, Scorer]:
    """Load a model, warm it up, and time it; return the timing and the loaded model."""
    _import_runtime(task)
    idle = resident_mb()
    before = time.perf_counter()
    score = load_scorer(task)
    load_ms = 1e3 * (time.perf_counter() - before)
    before = time.perf_counter()
    score(*inputs(0))
    first_run_ms = 1e3 * (time.perf_counter() - before) / task.frames_at_once
    for index in range(WARM_UPS - 1):
        score(*inputs(index))
    times = time_runs(score, task, inputs, seconds=LEAST_SECONDS)
    result = Timing(
        load_ms=load_ms,
        first_run_ms=first_run_ms,
        times_ms=times,
        peak_memory_mb=peak_mb(),
        idle_memory_mb=idle,
        runtime_bytes=_library_bytes(task.runtime),
        cores=task.cores,
        device_memory_mb=device_mb(task.device),
    )
    return result, score


def _macs(task: Task) -> int | None:
    """Return the multiply-accumulates per frame of a float run, fused as it was timed; None for other runs."""
    if task.scheme not in ("fp32", "autocast"):
        return None
    from compress.runs import pixel_detector
    from models.cost import macs_of
    from models.detector import Detector
    from models.run import Run

    network = pixel_detector(Run(task.path), scheme="fp32").network
    assert isinstance(network, Detector)
    return macs_of(network, *network.example(task.frames)) // (task.frames if task.per == "clip" else 1)


def _off_cpu(task: Task) -> tuple[float | None, str]:
    """Return the share of operations that Core ML prefers to run off the CPU, or None and why it is not known."""
    from export.coreml import off_cpu_fraction

    try:
        return off_cpu_fraction(task.path, task.method, task.units), ""
    except Exception as error:  # the timing must not be lost
        return None, f"Core ML did not tell where its operations run: {reason_of(error)}"


def measure(task: Task) -> Measurement:
    """Time a task's model, then score with it on every core, and profile it last."""
    measurement = Measurement(timing=None, scores={})
    inputs = task.inputs()
    with bound_to(task.cores):
        if task.timed:
            measurement.timing, score = timing(task, inputs)
            if task.grown:
                measurement.timing.batches = time_batches(score, task)
            if task.sustain:
                measurement.sustained = sustained(score, task, inputs)
            del score
    if task.scored:
        score = load_scorer(task.model_copy(update={"threads": usable_cores()}))
        measurement.scores = {
            name: _score_store(score, task, *store_and_split) for name, store_and_split in task.scored.items()
        }
    if task.profiled:
        from benchmarks.profiling import profile

        with bound_to(task.cores):
            measurement.profile = profile(task)
    if task.runtime == "coreml" and task.timed and not task.again:
        measurement.delegated_fraction, measurement.reason = _off_cpu(task)
    if task.runtime == "torch" and not task.again:
        measurement.macs = _macs(task)
    return measurement


if __name__ == "__main__":
    serve(Task, measure)
