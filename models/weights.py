"""Starting weights of a backbone: from a file, from the hub, or at random when that was asked for."""

from pathlib import Path
from typing import Literal

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.detector import create_backbone
from stage import StageError, load_tensors, reason_of, sha256_of

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Weights(BaseModel):
    """Where a run's starting weights came from and under which licence they may be passed on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["random", "hub", "file"]
    name: str
    sha256: str | None = None
    licence: str


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a torch file restricted to tensors.

    Raises StageError if the file is missing, damaged, or would have to be unpickled without restriction.
    """
    if not path.is_file():
        raise StageError(f"{path} is not a file: give the weights as .safetensors or a torch state dict")
    try:
        state = load_tensors(path)
    except ValueError as error:
        raise StageError(f"{path} holds no weights that can be read safely: {reason_of(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise StageError(f"{path} is not a state dict: expected names and tensors")
    return state


def _not_in(state: dict[str, Tensor], backbone: nn.Module) -> list[str]:
    """Return the tensors of a backbone that did not come from ``state``, neither by name nor, renamed, by content.

    timm itself loads a headless backbone from any file without an error: what does not fit stays random.
    """
    own = {name: tensor for name, tensor in backbone.state_dict().items() if tensor.is_floating_point()}
    unnamed = {name: tensor for name, tensor in own.items() if name not in state}
    if not unnamed:
        return []
    sizes = {tensor.numel() for tensor in unnamed.values()}
    given = [tensor.flatten() for tensor in state.values() if tensor.numel() in sizes]
    return [
        name
        for name, tensor in unnamed.items()
        if not any(other.numel() == tensor.numel() and torch.equal(other, tensor.flatten()) for other in given)
    ]


def _from_file(name: str, size: int, path: Path) -> nn.Module:
    state = read_state(path)
    misfit = f"{path} does not fit {name}"
    try:
        backbone = create_backbone(name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)})
    except (RuntimeError, KeyError, ValueError) as error:
        raise StageError(f"{misfit}: {str(error).splitlines()[-1].strip()}; give weights of this backbone") from error
    if missing := _not_in(state, backbone):
        total = len(backbone.state_dict())
        raise StageError(
            f"{misfit}: {len(missing)} of {total} tensors missing ({', '.join(missing[:3])}, ...); "
            "give weights of this backbone"
        )
    return backbone


def _hub_reachable(repository: str) -> bool:
    """Tell whether the hub answers or has the weights cached; timm itself would retry for most of a minute."""
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in HUB_FILES):
        return True
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except Exception:  # whichever HTTP library the hub client uses has its own errors: each means "no answer"
        return False
    return True


def _from_hub(name: str, size: int) -> nn.Module:
    cfg = timm.get_pretrained_cfg(name)
    mend = "give --weights FILE, or --random-weights if the figures need not mean anything"
    if not cfg.has_weights:
        raise StageError(f"timm knows no pretrained weights of {name}: {mend}")
    unreachable = f"the weights of {name} are not on this machine and the hub cannot be reached: {mend}"
    if cfg.hf_hub_id and not _hub_reachable(cfg.hf_hub_id):
        raise StageError(unreachable)
    try:
        return create_backbone(name, size, pretrained=True)
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise StageError(unreachable) from error


def backbone_with_weights(name: str, size: int, file: Path | None, random: bool) -> tuple[nn.Module, Weights]:
    """Create a backbone and its starting weights: ``file`` if given, else the hub's unless ``random`` is asked for.

    Raises StageError if the weights are missing, cannot be read, or do not fit; nothing falls back to random.
    """
    if file is not None and random:
        raise StageError("--weights and --random-weights exclude each other: give one of them")
    if random:
        return create_backbone(name, size), Weights(source="random", name="random initialization", licence="none")
    licence = timm.get_pretrained_cfg(name).license or "unknown"
    if file is not None:
        backbone = _from_file(name, size, file)
        return backbone, Weights(source="file", name=file.name, sha256=sha256_of(file), licence="unknown: of the file")
    cfg = timm.get_pretrained_cfg(name)
    return _from_hub(name, size), Weights(source="hub", name=cfg.hf_hub_id or cfg.url or name, licence=licence)
