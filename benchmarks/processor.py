"""The cores that rows are timed on: which ones, and how fast they multiply.

``python -m benchmarks.processor THREADS`` measures the latter in a fresh process and prints it as JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stage import StageError

PROCESSORS = Path("/sys/devices/system/cpu")
SIDE = 1024
"""Of the square matrices: 3 MB in all in bytes, 12 MB in float32, and a GMAC a product."""
SECONDS = 0.4
"""For each kind of product."""


def cores_for(threads: int) -> list[int] | None:
    """Return the processors to bind a process of so many threads to; None where the system has no way to do it."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(best_first(os.sched_getaffinity(0))[:threads])


def best_first(processors: Iterable[int], root: Path = PROCESSORS) -> list[int]:
    """Order processors by how well they are timed on: highest clock first, one of each core, last ones first.

    Some chips have cores of two speeds, and two processors may share a core. The first one is where systems like to
    handle interrupts.
    """

    def told(processor: int, name: str, otherwise: int) -> int:
        try:
            return int((root / f"cpu{processor}" / name).read_text())
        except (OSError, ValueError):  # as of virtual machines
            return otherwise

    ranks: dict[int, tuple[int, int, int]] = {}
    sharing: Counter[tuple[int, int]] = Counter()
    for processor in sorted(processors, reverse=True):
        core = told(processor, "topology/physical_package_id", 0), told(processor, "topology/core_id", processor)
        ranks[processor] = (-told(processor, "cpufreq/cpuinfo_max_freq", 0), sharing[core], -processor)
        sharing[core] += 1
    return sorted(ranks, key=ranks.__getitem__)


@contextlib.contextmanager
def bound_to(cores: list[int] | None) -> Iterator[None]:
    """Bind this process, and the threads that it starts, to processors; None binds it to none."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _fastest_gmacs(kind: str, threads: int) -> float:
    """Return 10^9 multiply-accumulates a second of ONNX Runtime's matrix product: the fastest of many."""
    import onnxruntime
    from onnx import TensorProto, helper

    operator, taken, given = {
        "fp32": ("MatMul", (TensorProto.FLOAT, TensorProto.FLOAT), TensorProto.FLOAT),
        "int8": ("MatMulInteger", (TensorProto.UINT8, TensorProto.INT8), TensorProto.INT32),
    }[kind]
    inputs = [helper.make_tensor_value_info(name, own, [SIDE, SIDE]) for name, own in zip("ab", taken, strict=True)]
    output = helper.make_tensor_value_info("c", given, [SIDE, SIDE])
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "product", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    values = [rng.integers(1, 100, (SIDE, SIDE)).astype(helper.tensor_dtype_to_np_dtype(own)) for own in taken]
    feed = dict(zip("ab", values, strict=True))
    session.run(None, feed)
    fastest, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        session.run(None, feed)
        fastest = min(fastest, time.perf_counter() - before)
    return float(SIDE**3 / fastest / 1e9)


def measure_products(threads: int) -> dict[str, float]:
    """Return 10^9 multiply-accumulates a second in ``fp32`` and ``int8``, measured in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processor", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise StageError(f"the speed of this machine's matrix products cannot be measured: {lines[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    count = int(sys.argv[1])
    with bound_to(cores_for(count)):
        print(json.dumps({kind: _fastest_gmacs(kind, count) for kind in ("fp32", "int8")}))
