"""The state of a training on disk, so that an interrupted one ends with the weights of an uninterrupted one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from files import written_whole
from parsing import load_tensors
from stage import StageError, reason_of


@dataclass
class Position:
    """How far a training is, and the best it has seen."""

    passes: int = 0
    batch: int = 0
    """Batches of this pass that are done."""
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    """Of this pass."""
    seconds: float = 0.0
    """Spent in this pass."""
    history: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] = (-1.0, 0.0)
    """AUC and negative log loss on the validation split."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    """Passes since the best one."""
    unreadable: list[int] = field(default_factory=list)
    """Views that could not be read when this pass began: they decide its batches."""
    speed: dict[str, Any] = field(default_factory=dict)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters that train and of all buffers: what frozen parts hold can be made again."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if name not in frozen}


def load_trained(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what ``trained_state`` returned."""
    misfit = module.load_state_dict(state, strict=False)
    assert not misfit.unexpected_keys


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of this process's random numbers, on the CPU and on its accelerator."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])


def save_checkpoint(path: Path, position: Position, states: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. ``states``: tensors and plain containers by name."""
    with written_whole(path) as aside, aside.open("wb") as file:
        try:
            torch.save({"position": vars(position)} | states, file)
        except RuntimeError as error:  # torch hides behind one of its own what the system said, of a full disk say
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> tuple[Position, dict[str, Any]]:
    """Read what ``save_checkpoint`` wrote; nothing but tensors and plain containers is unpickled.

    Raises StageError if the file is damaged.
    """
    try:
        states = load_tensors(path)
        return Position(**states.pop("position")), states
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{path} cannot be read ({reason_of(error)}): remove {path.parent} to start anew") from error
