"""ExecuTorch: a run as a ``.pte`` for XNNPACK, and the runtime that loads it."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

INPUT, OUTPUT = "pixels", "fake_probability"
BACKEND = "XnnpackBackend"


def write(detector: nn.Module, size: int, path: Path) -> dict[str, Any]:
    """Write ``detector`` (uint8 [1, size, size, 3] -> float32 [1]) as a ``.pte``.

    Returns what the manifest says of it: the operators left to portable kernels, and the delegated share of
    operations (operations inside the XNNPACK delegate / all).
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(detector, (torch.zeros(1, size, size, 3, dtype=torch.uint8),))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        lowered = edge.to_executorch()
    path.write_bytes(lowered.buffer)
    delegated, left = _count_operations(edge.exported_program())
    operators = sorted({op.name for plan in lowered.executorch_program.execution_plan for op in plan.operators})
    return {"operators": [*operators, BACKEND], "delegated_fraction": delegated / max(1, delegated + left)}


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


class ExecuTorchRunner:
    """Runs a ``.pte``: crops uint8 [N, S, S, 3] RGB, one at a time, to P(fake) float32 [N]."""

    def __init__(self, path: Path, threads: int) -> None:
        with _without_native_messages():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            portable_lib._unsafe_reset_threadpool(threads)
            self._program = Runtime.get().load_program(path)
            self._method = self._program.load_method("forward")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score crops."""
        # ExecuTorch ignores strides: what it is given must be contiguous.
        frames = torch.from_numpy(np.ascontiguousarray(pixels))
        return np.array([float(self._method.execute([frame[None]])[0][0]) for frame in frames], np.float32)
