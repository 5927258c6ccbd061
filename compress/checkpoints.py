"""Checkpoints of a training, with which an interrupted one ends with the weights of an uninterrupted one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.compute import Compute
from data.views import Views
from files import written_whole
from models.run import RunInfo
from parsing import load_tensors
from stage import StageError, reason_of


@dataclass
class Position:
    """How far a training has come, and its best weights so far."""

    unreadable: list[int]
    """Views that could not be read when the current pass began; its batches depend on them."""
    planned_steps: int
    """Optimizer steps of the whole training if every pass is as long as the first."""
    passes: int = 0
    """Finished passes over the training split."""
    batch: int = 0
    """Finished batches of the current pass."""
    steps: int = 0
    """Finished optimizer steps."""
    losses: list[float] = field(default_factory=list)
    """Losses of the current pass."""
    seconds: float = 0.0
    """Time spent in the current pass."""
    history: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] = (-1.0, 0.0)
    """AUC and negative log loss of the best pass on the validation split."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    """Passes since the best one."""
    speed: dict[str, Any] = field(default_factory=dict)


def asked_of(info: RunInfo, views: Views, compute: Compute) -> dict[str, Any]:
    """Return what a training depends on besides its schedule, for ``UnfinishedRun`` to compare when it resumes.

    The clips are those that can be read: others would have other numbers, and the training other batches. Raises
    StageError if they are not the same in all processes.
    """
    clips = views.clips_sha256
    if len(set(compute.gathered(clips))) > 1:
        raise StageError(
            f"the processes of this training do not see the same clips of {views.store.path}: where one of them runs, "
            "files are missing or damaged (pocketproof inspect tells which)"
        )
    return {"run": info.asked(), "rule": views.rule.model_dump(), "clips": clips, "where": compute.where}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trained parameters and of all buffers; frozen parameters can be restored without it."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if name not in frozen}


def load_trained(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state that ``trained_state`` returned."""
    keys = module.load_state_dict(state, strict=False)
    assert not keys.unexpected_keys


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's random generators, uint8, by device type: ``cpu`` and an accelerator."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states that ``random_state`` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])


def save_checkpoint(path: Path, position: Position, states: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. ``states``: tensors and plain containers by name.

    Raises OSError if the system cannot write it.
    """
    with written_whole(path) as aside, aside.open("wb") as file:
        try:
            torch.save({"position": vars(position)} | states, file)
        except RuntimeError as error:  # torch wraps the system's OSError, such as a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> tuple[Position, dict[str, Any]]:
    """Return the position and the states that ``save_checkpoint`` wrote.

    Only tensors and plain containers are unpickled. Raises StageError if the file is damaged.
    """
    try:
        states = load_tensors(path)
        return Position(**states.pop("position")), states
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{path} cannot be read ({reason_of(error)}): remove it to start anew") from error
