"""The cores that rows are timed on: which ones, and how fast they multiply matrices.

``python -m benchmarks.processor THREADS`` measures that speed in a fresh process and prints it as JSON.
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

from stage import StageError, last_line

PROCESSORS = Path("/sys/devices/system/cpu")
SIDE = 1024
"""Rows of the square matrices: three hold 12 MB in float32, or 6 MB in int8 and int32; a product is a GMAC."""
SECONDS = 0.4
"""Time that each kind of product is repeated for."""


def cores_for(threads: int) -> list[int] | None:
    """Return the processors to bind a process of ``threads`` threads to; None where the system cannot bind."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(best_first(os.sched_getaffinity(0))[:threads])


def best_first(processors: Iterable[int], root: Path = PROCESSORS) -> list[int]:
    """Return processors in the order in which to time on them.

    Highest clock first, because some chips have cores of two speeds; then one processor of each core before a second
    one of any; then higher numbers first, because systems like to handle interrupts on the first processor.
    """

    def read_number(processor: int, name: str, default: int) -> int:
        try:
            return int((root / f"cpu{processor}" / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # virtual machines lack some of these files
            return default

    ranks: dict[int, tuple[int, int, int]] = {}
    sharing: Counter[tuple[int, int]] = Counter()
    for processor in sorted(processors, reverse=True):
        package = read_number(processor, "topology/physical_package_id", 0)
        core = package, read_number(processor, "topology/core_id", processor)
        ranks[processor] = (-read_number(processor, "cpufreq/cpuinfo_max_freq", 0), sharing[core], -processor)
        sharing[core] += 1
    return sorted(ranks, key=ranks.__getitem__)


@contextlib.contextmanager
def bound_to(cores: list[int] | None) -> Iterator[None]:
    """Bind this process, and the threads that it starts, to processors within the block; None leaves it unbound."""
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
    """Return the speed of ONNX Runtime's fastest matrix product of many, in 10^9 multiply-accumulates a second."""
    import onnxruntime
    from onnx import TensorProto, helper

    operator, input_types, output_type = {
        "fp32": ("MatMul", (TensorProto.FLOAT, TensorProto.FLOAT), TensorProto.FLOAT),
        "int8": ("MatMulInteger", (TensorProto.UINT8, TensorProto.INT8), TensorProto.INT32),
    }[kind]
    inputs = [
        helper.make_tensor_value_info(name, element_type, [SIDE, SIDE])
        for name, element_type in zip("ab", input_types, strict=True)
    ]
    output = helper.make_tensor_value_info("c", output_type, [SIDE, SIDE])
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "product", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    dtypes = [helper.tensor_dtype_to_np_dtype(element_type) for element_type in input_types]
    values = [rng.integers(1, 100, (SIDE, SIDE)).astype(dtype) for dtype in dtypes]
    feed = dict(zip("ab", values, strict=True))
    session.run(None, feed)
    fastest, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        session.run(None, feed)
        fastest = min(fastest, time.perf_counter() - before)
    return float(SIDE**3 / fastest / 1e9)


def measure_products(threads: int) -> dict[str, float]:
    """Return 10^9 multiply-accumulates a second in ``fp32`` and ``int8``, measured in a fresh process.

    Raises StageError with the last line of the process if it fails.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processor", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = last_line(done.stderr, f"exit code {done.returncode}")
        raise StageError(f"the speed of this machine's matrix products cannot be measured: {reason}")
    gmacs: dict[str, float] = json.loads(done.stdout)
    return gmacs


if __name__ == "__main__":
    count = int(sys.argv[1])
    with bound_to(cores_for(count)):
        print(json.dumps({kind: _fastest_gmacs(kind, count) for kind in ("fp32", "int8")}))
