"""ExecuTorch: write a run as a ``.pte`` for a delegate (XNNPACK by default), and load one."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.runtimes import BACKENDS, Delegate, Loaded, ProgramName, Programs, UnfitArtifact, in_batches
from stage import reason_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.programs import TorchProgram

IDENTIFIER = b"ET12"
"""FlatBuffers' file identifier, from byte 4 of a program (ExecuTorch's schema/program.fbs)."""
ETRECORD = ".etrecord"
ETRECORD_MEANING = "names the operations of the .pte for ExecuTorch's Inspector; not for the app"


def _partitioner(delegate: Delegate) -> Any:
    """Return the partitioner that chooses a delegate's operations. Raises ImportError if this ExecuTorch lacks it."""
    if delegate == "xnnpack":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return XnnpackPartitioner()
    if delegate == "vulkan":
        level = logging.root.level
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        logging.root.setLevel(level)  # the import lowers it, which makes every library log
        return VulkanPartitioner()
    from export.coreml import delegate_partitioner

    return delegate_partitioner()


def write(
    torch_programs: Sequence["TorchProgram"], path: Path, delegate: Delegate = "xnnpack", etrecord: bool = False
) -> dict[str, Any]:
    """Write programs as the methods of one ``.pte``; with ``etrecord``, also the record that names profiled operations.

    Returns the manifest's fields: ``operators``, by program those left to portable kernels and the delegate's backend;
    ``delegated_fraction`` (operations inside the delegate / all); ``delegate``; ``companions``. Raises UnfitArtifact if
    a delegate other than XNNPACK does not take the programs.
    """
    edge, lowered = _lower(torch_programs, path.name, delegate, etrecord)
    path.write_bytes(lowered.buffer)
    if etrecord:
        lowered.get_etrecord().save(str(path.with_suffix(ETRECORD)))
    counts = [_count_operations(edge.exported_program(given.name)) for given in torch_programs]
    delegated, portable = (sum(count) for count in zip(*counts, strict=True))
    plans = lowered.executorch_program.execution_plan
    operators = {plan.name: [*sorted(map(_full_name, plan.operators)), BACKENDS[delegate]] for plan in plans}
    return {
        "operators": operators,
        "delegated_fraction": delegated / max(1, delegated + portable),
        "delegate": delegate,
        "companions": {path.with_suffix(ETRECORD).name: ETRECORD_MEANING} if etrecord else {},
    }


def _lower(torch_programs: Sequence["TorchProgram"], name: str, delegate: Delegate, etrecord: bool) -> tuple[Any, Any]:
    """Return the programs lowered to a delegate, in the edge dialect and as ExecuTorch's program.

    Raises UnfitArtifact if a delegate other than XNNPACK does not take them.
    """
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with warnings.catch_warnings(), without_native_messages():
        warnings.simplefilter("ignore")
        exported = {given.name: given.exported for given in torch_programs}
        for program in exported.values():
            keep_pooled_dimensions(program)
            drop_idle_ceilings(program)
        try:
            partitioner = [_partitioner(delegate)]
            edge = to_edge_transform_and_lower(
                exported,
                partitioner=partitioner,
                # ExecuTorch 1.5's copy operator with a dimension order casts the pixels ten times as slowly.
                compile_config=EdgeCompileConfig(_skip_dim_order=True),
                generate_etrecord=etrecord,
            )
            return edge, edge.to_executorch()
        except Exception as error:
            if delegate == "xnnpack":
                raise
            raise UnfitArtifact(f"{name}: --delegate {delegate} does not take it: {reason_of(error)}") from error


def _full_name(operator: Any) -> str:
    """Return an operator's name as an app's selective build lists it, such as ``aten::_to_copy.out``."""
    return f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)


def keep_pooled_dimensions(program: "ExportedProgram") -> None:
    """Rewrite, in place, each mean over height and width: keep both dimensions as 1, then remove them by a reshape.

    XNNPACK does not take a mean that removes them at once: a portable kernel would split the network in two delegates.
    """
    average, reshape = torch.ops.aten.mean.dim, torch.ops.aten.view.default
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=average):
        pictures, axes, *options = node.args
        shape = pictures.meta["val"].shape
        if len(shape) != 4 or sorted(axis % 4 for axis in axes) != [2, 3] or options or node.kwargs:
            continue
        with graph.inserting_before(node):
            pooled = graph.call_function(average, (pictures, [2, 3], True))
            flat = graph.call_function(reshape, (pooled, list(shape[:2])))
        pooled.meta = {**node.meta, "val": pictures.meta["val"].mean((2, 3), keepdim=True)}
        flat.meta = node.meta
        node.replace_all_uses_with(flat)
        graph.erase_node(node)
    program.graph_module.recompile()


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    """Return a pool's setting for height and width; one number stands for both."""
    return numbers[0], numbers[-1]


def drop_idle_ceilings(program: "ExportedProgram") -> None:
    """Unset, in place, the ``ceil_mode`` of each average pool whose windows fill the pictures exactly.

    There it changes nothing, but XNNPACK takes no pool that has it, and the portable kernel takes a third of the time
    of a network that pools in its shortcuts (ResNet-D, arXiv 1812.01187).
    """
    for node in program.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d.default):
        if not any(node.args[4:5]):
            continue
        pictures, kernel, stride, padding, *_ = node.args
        windows = zip(pictures.meta["val"].shape[-2:], *map(_pair, (kernel, stride or kernel, padding)), strict=True)
        if all((side + 2 * pad - size) % step == 0 for side, size, step, pad in windows):
            node.update_arg(4, False)
    program.graph_module.recompile()


def _count_operations(program: Any) -> tuple[int, int]:
    """Return how many operations are inside delegates and how many are not."""
    delegated = portable = 0
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if "executorch_call_delegate" in str(node.target):
            lowered = program.graph_module.get_submodule(node.args[0].target)
            inside = lowered.original_module.graph.nodes
            delegated += sum(1 for inner in inside if inner.op == "call_function")
        elif "getitem" not in str(node.target):
            portable += 1
    return delegated, portable


@contextlib.contextmanager
def without_native_messages() -> Iterator[None]:
    """Silence what ExecuTorch's native code prints about the processor and threads; its errors come as exceptions."""
    stderr = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def native_runtime() -> Any:
    """Return ExecuTorch's runtime as the native module that ``executorch.runtime`` wraps.

    The wrapper imports ExecuTorch's whole compiler: 3 s of each process that only scores, and 210 MB.
    """
    with without_native_messages():
        from executorch.extension.pybindings import _C
    return _C


def opened(path: Path, threads: int) -> Programs:
    """Open a ``.pte``, whose methods are its programs. Raises ValueError for another file: it would end the process."""
    with path.open("rb") as file:
        if file.read(8)[4:] != IDENTIFIER:
            raise ValueError("it is no ExecuTorch program")
    native = native_runtime()
    with without_native_messages():
        native._unsafe_reset_threadpool(threads)
        program = native._load_program(str(path), program_verification=native.Verification.InternalConsistency)

    def load(name: ProgramName) -> Loaded:
        with without_native_messages():
            method = program.load_method(name)
        return as_program(method)

    return load


def as_program(execute: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]) -> Loaded:
    """Return a loaded program that calls a method's ``execute``."""

    def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
        # ExecuTorch ignores strides, so inputs are contiguous. The next call overwrites its output, so this copies it.
        return np.array(execute([torch.from_numpy(array) for array in inputs])[0].numpy(), np.float32)

    return in_batches(run, 1)
