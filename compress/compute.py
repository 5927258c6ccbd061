"""Device, processes and precision of a training, and how much faster mixed precision makes it."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from models.schemes import cast_to, fast_dtype
from stage import (
    StageError,
    WrongArgument,
    heed_quota,
    out_of_memory,
    reason_of,
    refuse_tf32,
    say,
    several_processes,
    usable_cores,
)

Precision = Literal["fp32", "autocast", "bf16", "fp16"]
TIMED_STEPS = 3
MOST_READERS = 4
LONGEST_WAIT = timedelta(days=1)
"""Time that a process waits for the others: it may finish its share of a cache hours before them."""


@dataclass(frozen=True)
class Compute:
    """Device, processes and precision of a training."""

    accelerator: Accelerator
    dtype: torch.dtype | None
    """The type that autocast casts to; None in fp32."""
    precision: str
    """The precision in use, with the reason where it is not the requested one."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self.accelerator.device)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def readers(self) -> int:
        """Number of threads that read batches ahead, and move them to the device, on CUDA; elsewhere 0.

        A CPU's cores are busy computing, and two threads at once on MPS can crash torch 2.14 (pytorch issue 197805).
        """
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.processes))  # others may run on other machines
        return max(1, min(MOST_READERS, usable_cores() // here)) if self.device.type == "cuda" else 0

    @property
    def numbers(self) -> str:
        """Device type and number type, which decide how a network's outputs are rounded: ``cpu in fp32``."""
        return f"{self.device.type} in {self.dtype or 'fp32'}"

    @property
    def where(self) -> str:
        """Processes, device type and number type, which must stay the same for a training to resume exactly."""
        return f"{self.processes} processes on {self.numbers}"

    def context(self) -> torch.autocast:
        """Return the context in which a forward pass runs."""
        return cast_to(self.device, self.dtype)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over all processes of a tensor of one shape in each."""
        if self.processes == 1:
            return tensor
        result: Tensor = self.accelerator.reduce(tensor.to(self.device), "mean")
        return result

    def gathered(self, found: Any) -> list[Any]:
        """Return the ``found`` objects of all processes, in the order of their ranks; waits for all of them."""
        if self.processes == 1:
            return [found]
        from accelerate.utils import gather_object

        return list(gather_object([found]))


def _launcher_variables() -> str:
    """Return the names of the environment variables, set by launchers, that describe the processes of a training."""
    prefixes = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_", "ACCELERATE_", "PMI_", "OMPI_", "MV2_", "MPI_")
    return ", ".join(sorted(name for name in os.environ if name.startswith(prefixes))) or "none is set"


def require_one_process(stage: str) -> None:
    """Raise StageError if torchrun or accelerate launch has started a stage in several processes."""
    if several_processes():
        raise StageError(f"{stage} works in one process: start it without torchrun (WORLD_SIZE says more)")


def prepare_compute(precision: Precision, on_cpu: bool = False) -> Compute:
    """Choose the device and the precision. ``autocast`` means the fast 16-bit type; without one, fp32 with a message.

    ``on_cpu``: do not use a GPU. Raises StageError if the environment variables of launchers do not describe processes.
    """
    # Accelerator has one precision per process, but stages that run one after another may need different ones: casting
    # is therefore done by ``Compute.context``.
    long_timeout = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    if several_processes():
        say(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: waiting for the other processes of this training")
    launcher_variables = _launcher_variables()  # before Accelerate sets the missing ones
    try:
        accelerator = Accelerator(
            mixed_precision="no", cpu=on_cpu or not torch.accelerator.is_available(), kwargs_handlers=[long_timeout]
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise StageError(
            f"no training can begin here ({reason_of(error)}): start several processes with torchrun or accelerate "
            f"launch; for one, unset what launchers have left in the environment ({launcher_variables})"
        ) from error
    refuse_tf32()
    heed_quota()
    device = torch.device(accelerator.device)
    if precision != "autocast":
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return Compute(accelerator, dtype, precision)
    fast = fast_dtype(device)
    if fast is None:
        say("this CPU has no bfloat16 instructions: training in fp32 instead of autocast")
        return Compute(accelerator, None, "fp32 (autocast asked for; no bfloat16 instructions)")
    return Compute(accelerator, fast, f"autocast {str(fast).removeprefix('torch.')}")


def training_speed(compute: Compute, objective: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Time forward and backward passes of ``objective(*inputs)`` in fp32 and in the 16-bit type of the training.

    Weights, buffers and random states stay as they are. Returns ``step_ms``, the median milliseconds by type, with
    ``autocast_speedup``, or an empty ``step_ms`` with the ``reason``.
    """
    chosen = compute.dtype or fast_dtype(compute.device)
    if chosen is None:
        return {"step_ms": {}, "reason": "not timed: no fast 16-bit type on this device to hold against fp32"}
    types = {"fp32": None, str(chosen).removeprefix("torch."): chosen}
    with _untouched(objective):
        try:
            step_ms = {name: _step_ms(compute.device, objective, inputs, dtype) for name, dtype in types.items()}
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return {"step_ms": {}, "reason": "not timed: a step in fp32 does not fit into this device's memory"}
    fp32, cast = step_ms.values()
    return {"step_ms": step_ms, "autocast_speedup": round(fp32 / cast, 2)}


@contextlib.contextmanager
def _untouched(objective: nn.Module) -> Iterator[None]:
    """Enter training mode; afterwards restore the mode, buffers and random states, and clear gradients."""
    buffers = [buffer.clone() for buffer in objective.buffers()]
    training = objective.training
    device = next(objective.parameters()).device
    accelerators = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"):
        objective.train()
        try:
            yield
        finally:
            objective.train(training)
            objective.zero_grad()
            for buffer, before in zip(objective.buffers(), buffers, strict=True):
                buffer.copy_(before)


def _step_ms(
    device: torch.device, objective: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype | None
) -> float:
    """Return the median milliseconds of TIMED_STEPS forward and backward passes, after one that is not counted."""
    times = []
    for _ in range(1 + TIMED_STEPS):
        started = time.perf_counter()
        with cast_to(device, dtype):
            loss = objective(*inputs)
        loss.backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times[1:]), 2)


def samples_of_part(batch_size: int, accumulate: int, processes: int) -> int:
    """Return how many samples of a batch a process computes at once: half of them are real, half fake.

    Raises WrongArgument if the batch cannot be divided into such parts.
    """
    if batch_size % (2 * accumulate * processes):
        raise WrongArgument(
            f"--batch-size {batch_size} cannot be cut into equal, balanced parts: give a multiple of "
            f"{2 * accumulate * processes} (2 labels x --accumulate {accumulate} x {processes} processes)"
        )
    return batch_size // accumulate // processes
