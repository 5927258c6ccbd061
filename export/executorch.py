"""ExecuTorch: a run as a ``.pte`` for XNNPACK, and the runtime that loads it."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.runtimes import Loaded, ProgramName, Programs

if TYPE_CHECKING:
    from export.programs import Graph

BACKEND = "XnnpackBackend"


def write(graphs: Sequence["Graph"], path: Path) -> dict[str, Any]:
    """Write programs as the methods of one ``.pte``.

    Returns what the manifest says of it: by program the operators left to portable kernels, and the delegated share of
    all operations (operations inside the XNNPACK delegate / all).
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = {graph.name: graph.exported for graph in graphs}
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        lowered = edge.to_executorch()
    path.write_bytes(lowered.buffer)
    counts = [_count_operations(edge.exported_program(graph.name)) for graph in graphs]
    delegated, left = (sum(count) for count in zip(*counts, strict=True))
    plans = lowered.executorch_program.execution_plan
    operators = {plan.name: [*sorted({op.name for op in plan.operators}), BACKEND] for plan in plans}
    return {"operators": operators, "delegated_fraction": delegated / max(1, delegated + left)}


def _count_operations(program: Any) -> tuple[int, int]:
    """Return how many operations are inside delegates and how many are not."""
    delegated = left = 0
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if "executorch_call_delegate" in str(node.target):
            lowered = program.graph_module.get_submodule(node.args[0].target)
            inside = lowered.original_module.graph.nodes
            delegated += sum(1 for inner in inside if inner.op == "call_function")
        elif "getitem" not in str(node.target):
            left += 1
    return delegated, left


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Silence what ExecuTorch's native code prints of the processor and its threads; errors come as exceptions."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def opened(path: Path, threads: int) -> Programs:
    """Open a ``.pte``, whose methods are its programs."""
    with _without_native_messages():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        program: Any = Runtime.get().load_program(path)

    def load(name: ProgramName) -> Loaded:
        with _without_native_messages():
            method = program.load_method(name)

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            # ExecuTorch ignores strides: what it is given must be contiguous. It writes the next output over this one.
            given = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
            return np.array(method.execute(given)[0].numpy(), np.float32)

        return run

    return load
