"""The cores that rows are timed on: which ones, and how fast they multiply matrices.

``python -m benchmarks.processor`` is the process that measures that speed (``benchmarks.apart``).
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from benchmarks.apart import answer_of, serve
from stage import StageError

PROCESSORS = Path("/sys/devices/system/cpu")
SIDE = 1024
"""Rows of the square matrices: three hold 12 MB in float32, or 6 MB in int8 and int32; a product is a GMAC."""
SECONDS = 0.4
"""Time that each kind of product is repeated for."""


class ProductsTask(BaseModel):
    """The task of a process that measures matrix products."""

    threads: int


class Products(BaseModel):
    """The fastest matrix products of a number of threads, in 10^9 multiply-accumulates a second."""

    fp32: float
    int8: float


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


def _measure(task: ProductsTask) -> Products:
    with bound_to(cores_for(task.threads)):
        return Products(fp32=_fastest_gmacs("fp32", task.threads), int8=_fastest_gmacs("int8", task.threads))


def measure_products(threads: int) -> Products:
    """Measure matrix products in a fresh process. Raises StageError with its last line if it fails."""
    try:
        return answer_of("benchmarks.processor", ProductsTask(threads=threads), Products)
    except StageError as error:
        raise StageError(f"the speed of this machine's matrix products cannot be measured: {error}") from error


if __name__ == "__main__":
    serve(ProductsTask, _measure)
