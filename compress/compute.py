"""Where and in which numbers a run trains: device, processes, mixed precision, and what mixed precision brings."""

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
from stage import StageError, WrongArgument, out_of_memory, reason_of, refuse_tf32, say

Precision = Literal["fp32", "autocast", "bf16", "fp16"]
TIMED_STEPS = 3
MOST_READERS = 4
LONGEST_WAIT = timedelta(days=1)
"""Of a process for the others: one may fill its share of a cache hours before them."""


@dataclass(frozen=True)
class Compute:
    """Where and in which numbers a run trains."""

    accelerator: Accelerator
    dtype: torch.dtype | None
    """What autocast casts to; None in fp32."""
    precision: str
    """What was computed, with the reason where it is not what was asked for."""

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
        """The number of this process."""
        return int(self.accelerator.process_index)

    @property
    def readers(self) -> int:
        """Threads that read batches ahead; none on a CPU, which has no time to spare while it computes."""
        return 0 if self.device.type == "cpu" else max(1, min(MOST_READERS, (os.cpu_count() or 1) // self.processes))

    @property
    def numbers(self) -> str:
        """What decides how a network's outputs are rounded: the kind of device and the numbers it computes in."""
        return f"{self.device.type} in {self.dtype or 'fp32'}"

    @property
    def where(self) -> str:
        """What must stay the same for a training to go on exactly: processes, device, numbers."""
        return f"{self.processes} processes on {self.numbers}"

    def context(self) -> torch.autocast:
        """Return the context in which a forward pass runs."""
        return cast_to(self.device, self.dtype)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.processes == 1:
            return tensor
        result: Tensor = self.accelerator.reduce(tensor.to(self.device), "mean")
        return result

    def gathered(self, found: Any) -> list[Any]:
        """Return what every process found, in the order of their numbers."""
        if self.processes == 1:
            return [found]
        from accelerate.utils import gather_object

        return list(gather_object([found]))


def _launchers_variables() -> str:
    """Return the environment variables by which launchers name the processes of a training."""
    beginnings = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_", "ACCELERATE_", "PMI_", "OMPI_", "MV2_", "MPI_")
    return ", ".join(sorted(name for name in os.environ if name.startswith(beginnings))) or "none is set"


def prepare_compute(precision: Precision, on_cpu: bool = False) -> Compute:
    """Choose device and numbers. ``autocast`` is the fast 16-bit type, or fp32 where there is none, and said so.

    ``on_cpu``: not on a GPU, whatever there is. Raises StageError where launchers' variables name no processes.
    """
    # Accelerator keeps one process-wide precision, which stages run one after another would fight over; the casting
    # is therefore done here.
    patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    if (world := os.environ.get("WORLD_SIZE", "1")) != "1":
        say(f"WORLD_SIZE is {world}: waiting for the other processes of this training")
    left_behind = _launchers_variables()  # before Accelerate sets those that lack
    try:
        accelerator = Accelerator(
            mixed_precision="no", cpu=on_cpu or not torch.accelerator.is_available(), kwargs_handlers=[patient]
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise StageError(
            f"no training can begin here ({reason_of(error)}): start several processes with torchrun or accelerate "
            f"launch; for one, unset what launchers have left in the environment ({left_behind})"
        ) from error
    refuse_tf32()
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
    """Time forward and backward passes of ``objective(*inputs)`` in fp32 and in the 16-bit type that is trained in.

    Weights, buffers and random numbers stay as they are. Returns medians in milliseconds, or why there are none.
    """
    chosen = compute.dtype or fast_dtype(compute.device)
    if chosen is None:
        return {"step_ms": {}, "reason": "not timed: no fast 16-bit type on this device to hold against fp32"}
    types = {"fp32": None, str(chosen).removeprefix("torch."): chosen}
    with _untouched(objective):
        try:
            found = {name: _step_ms(compute.device, objective, inputs, dtype) for name, dtype in types.items()}
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return {"step_ms": {}, "reason": "not timed: a step in fp32 does not fit into this device's memory"}
    fp32, cast = found.values()
    return {"step_ms": found, "autocast_speedup": round(fp32 / cast, 2)}


@contextlib.contextmanager
def _untouched(objective: nn.Module) -> Iterator[None]:
    """Put back gradients, buffers, mode and the state of random numbers afterwards."""
    buffers = [buffer.clone() for buffer in objective.buffers()]
    training = objective.training
    device = next(objective.parameters()).device
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type=device.type if others else "cuda"):
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
    """Return the samples of the part of a batch that a process takes at once, as many real as fake ones.

    Raises StageError if the batch cannot be cut so.
    """
    if batch_size % (2 * accumulate * processes):
        raise WrongArgument(
            f"--batch-size {batch_size} cannot be cut into equal, balanced parts: give a multiple of "
            f"{2 * accumulate * processes} (2 labels x --accumulate {accumulate} x {processes} processes)"
        )
    return batch_size // accumulate // processes
