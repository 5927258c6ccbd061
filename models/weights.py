"""Starting weights of a backbone: from a file or folder, from the hub, or random if requested."""

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.models import clean_state_dict
from torch import Tensor, nn

from files import name_of, sha256_of
from models.detector import create_backbone
from models.origin import Weights
from models.pixels import Preprocessing
from parsing import card_licence, load_tensors, parse_json, shown
from stage import StageError, WrongArgument, reason_of, say, some_of

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
OF_SIZE = re.compile("pos|relative|height_rel|width_rel|attention_bias")
"""In names of tensors whose shape depends on the size of the pictures."""
AVERAGED = ("state_dict_ema", "model_ema")
"""Keys of checkpoints that hold moving averages of the weights, which timm's own loader prefers too."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a safetensors file, or in a torch file or checkpoint restricted to tensors.

    Prefixes of compiled and distributed networks are taken off, as timm does. Raises StageError if the file is missing,
    damaged, or would have to be unpickled without restriction.
    """
    if not path.is_file():
        raise StageError(
            f"{path} is not a file: give the weights as .safetensors or a torch state dict, or the folder of a model"
        )
    try:
        state = load_tensors(path)
    except ValueError as error:
        raise StageError(f"{path} holds no weights that can be read safely: {reason_of(error)}") from error
    for key in (*AVERAGED, "state_dict", "model"):
        inner = state.get(key) if isinstance(state, dict) else None
        if key in AVERAGED and _is_state(inner):
            say(f"{path}: its averaged weights are taken ({key})")
            state = inner
        elif key not in AVERAGED and isinstance(inner, dict):
            state = inner
    if not _is_state(state):
        raise StageError(f"{path} is not a state dict: expected names and tensors")
    cleaned: dict[str, Tensor] = clean_state_dict(state)
    return cleaned


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


@dataclass(frozen=True)
class _Fit:
    """How a file's tensors, after timm has renamed and resampled them, fit a backbone."""

    total: int
    """Number of the backbone's tensors."""
    missing: list[str]
    """Names of the backbone's tensors that the file lacks."""
    other_shape: list[str]
    """Texts with name and shapes of the tensors whose shapes differ."""
    unknown: list[str]
    """Names of the file's tensors that the backbone lacks."""


def _fit(expected: dict[str, Tensor], loaded: Mapping[str, Tensor], missing: list[str]) -> _Fit:
    """Compare the ``loaded`` tensors with those that a backbone expects; ``missing``: also those of other shape."""
    other_shape = [name for name in loaded if name in expected and loaded[name].shape != expected[name].shape]
    return _Fit(
        total=len(expected),
        missing=[name for name in missing if name not in other_shape],
        other_shape=[
            f"{name}: {list(loaded[name].shape)} in the file, {list(expected[name].shape)} expected"
            for name in other_shape
        ],
        unknown=[name for name in loaded if name not in expected],
    )


@contextlib.contextmanager
def _observed_loading() -> Iterator[list[_Fit]]:
    """Make torch load only fitting tensors of state dicts inside the ``with`` block; yield the list of all fits.

    timm loads most headless backbones from any file without an error (tensors that do not fit stay random), and refuses
    a classifier head for others. The tensors behind its filters can only be seen where it passes them to torch.
    """
    fits: list[_Fit] = []
    load = nn.Module.load_state_dict

    def observe(network: nn.Module, state: Mapping[str, Tensor], *_: Any, **__: Any) -> Any:
        expected = network.state_dict()
        shared = [name for name in state if name in expected]
        fitting = {name: state[name] for name in shared if state[name].shape == expected[name].shape}
        result = load(network, fitting, strict=False)
        fits.append(_fit(expected, state, result.missing_keys))
        return result

    nn.Module.load_state_dict = observe  # type: ignore[method-assign, assignment]
    try:
        yield fits
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _check(fit: _Fit, misfit: str) -> None:
    """Raise StageError, beginning with ``misfit``, if a backbone did not get all of its tensors."""
    reasons = []
    if fit.missing:
        reasons.append(f"{len(fit.missing)} of {fit.total} tensors missing ({some_of(fit.missing)})")
    if fit.other_shape:
        reasons.append(f"{len(fit.other_shape)} of {fit.total} tensors of another shape ({some_of(fit.other_shape)})")
    if fit.missing and fit.unknown:
        reasons.append(f"it has others ({some_of(fit.unknown)})")
    mend = "give weights of this backbone"
    if not fit.missing and all(OF_SIZE.search(tensor) for tensor in fit.other_shape):
        mend = f"prepare crops of the size that they were trained on, or {mend}"
    if reasons:
        raise StageError(f"{misfit}: {'; '.join(reasons)}; {mend}")


def _say_unused(fit: _Fit, name: str, path: Path) -> None:
    """Print which tensors of a file were not used, except for a classifier head, which no detector has."""
    heads = timm.get_pretrained_cfg(name).classifier or ()
    prefixes = tuple(f"{head.split('.')[0]}." for head in ([heads] if isinstance(heads, str) else heads))
    if unused := [tensor for tensor in fit.unknown if not tensor.startswith(prefixes)]:
        say(f"{path}: {len(unused)} tensors that {name} does not have are not used ({some_of(unused)})")


def _from_file(name: str, size: int, path: Path) -> nn.Module:
    """Return a backbone with the weights of a file. Raises StageError if they do not fit, or are not numbers."""
    state = read_state(path)
    misfit = f"{path} does not fit {name}"
    with _observed_loading() as fits:
        try:
            backbone = create_backbone(name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
        except Exception as error:  # timm's filters raise various errors for foreign tensors
            raise StageError(f"{misfit}: {reason_of(error)}; give weights of this backbone") from error
    _check(fits[-1], misfit)
    if not_numbers := [tensor for tensor, value in backbone.state_dict().items() if value.isnan().any()]:
        raise StageError(f"{path} holds values that are not numbers: {some_of(not_numbers)}")
    _say_unused(fits[-1], name, path)
    return backbone


def in_hub_cache(repository: str, files: Iterable[str] = HUB_FILES) -> bool:
    """Return whether the hub's cache on this machine has one of the files of a repository."""
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files)


def _hub_reachable(repository: str) -> bool:
    """Return whether the weights are cached or the hub answers; timm itself would retry for most of a minute."""
    if in_hub_cache(repository):
        return True
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except Exception:  # errors depend on the HTTP library of the hub client: each means "no answer"
        return False
    return True


def _from_hub(name: str, size: int) -> nn.Module:
    """Return a backbone with the hub's weights. Raises StageError if there are none or the hub cannot be reached."""
    cfg = timm.get_pretrained_cfg(name)
    remedy = "give --weights FILE, or --random-weights (distill: no --weights) if the start may be random"
    if not cfg.has_weights:
        raise StageError(f"timm knows no pretrained weights of {name}: {remedy}")
    unreachable = f"the weights of {name} are not on this machine and the hub cannot be reached: {remedy}"
    if cfg.hf_hub_id and not _hub_reachable(cfg.hf_hub_id):
        raise StageError(unreachable)
    with _observed_loading() as fits:
        try:
            backbone = create_backbone(name, size, pretrained=True)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise StageError(unreachable) from error
    for fit in fits:
        norms = [tensor for tensor in fit.missing if "norm" in tensor]  # timm knows of some that lack their last one
        others = replace(fit, missing=[tensor for tensor in fit.missing if tensor not in norms])
        _check(others, f"the weights of {name} do not fit crops of {size} px")
        if norms:
            say(f"{name}: {len(norms)} tensors are not in its weights, and start as timm makes them: {some_of(norms)}")
    return backbone


def _file_in(folder: Path) -> Path:
    """Return the file of weights in a folder that was downloaded from the hub. Raises StageError if there is none."""
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    raise StageError(f"{folder} has no {' and no '.join(HUB_FILES)}: give a folder with one of them, or a file")


def _from_path(name: str, size: int, path: Path) -> tuple[nn.Module, Weights]:
    """Create a backbone with the weights of a file, or of a downloaded folder, whose model card names the licence."""
    if not path.is_dir():
        backbone = _from_file(name, size, path)
        licence = "unknown: of the file"
        return backbone, Weights(source="file", name=shown(path.name), sha256=sha256_of(path), licence=licence)
    file, licence = _file_in(path), card_licence(path)
    backbone = _from_file(name, size, file)
    return backbone, Weights(source="folder", name=name_of(path), sha256=sha256_of(file), licence=licence)


def stated_preprocessing(given: Path | None, name: str) -> Preprocessing:
    """Return the mean and standard deviation from the ``config.json`` of a hub's folder, or else timm's for ``name``.

    Prints which of timm's are taken for a file of weights, where other weights of the network need others. Raises
    StageError if ``config.json`` is damaged.
    """
    stated = _in_config(given, name) if given else None
    return stated or _by_timm(given, name)


def _in_config(given: Path, name: str) -> Preprocessing | None:
    """Return what the ``config.json`` of a folder, or beside a file, states of ``name``; None where it states none."""
    in_folder = given.is_dir()
    config = (given if in_folder else given.parent) / "config.json"
    if not config.is_file():
        return None
    try:
        read = parse_json(config.read_bytes())
        if not in_folder and read.get("architecture") != name.partition(".")[0]:  # it need not be the file's
            return None
        stated = read.get("pretrained_cfg", {})
        if not {"mean", "std"} <= stated.keys():
            return None
        return Preprocessing(mean=tuple(stated["mean"]), std=tuple(stated["std"]))
    except (ValueError, TypeError, AttributeError) as error:
        if not in_folder:
            return None
        raise StageError(f"{config} is damaged ({reason_of(error)}): download the folder again") from error


def _by_timm(given: Path | None, name: str) -> Preprocessing:
    """Return timm's mean and standard deviation for ``name``; print them where they depend on the weights' tag."""
    taken = Preprocessing.of(name)
    tags = [] if given is None or "." in name else timm.list_pretrained(f"{name}.*")
    if others := [tag for tag in tags if Preprocessing.of(tag) != taken]:
        say(
            f"{given}: its pixels are normalized with mean {taken.mean} and standard deviation {taken.std}; weights of "
            f"{some_of(others)} need others: name theirs with its tag"
        )
    return taken


def check_one_source(given: Path | None, random: bool) -> None:
    """Raise WrongArgument if weights are given although random ones are requested."""
    if given is not None and random:
        raise WrongArgument("--weights and --random-weights exclude each other: give one of them")


def backbone_with_weights(name: str, size: int, given: Path | None, random: bool) -> tuple[nn.Module, Weights]:
    """Return a backbone with starting weights and their origin: ``given``, ``random`` ones, or else the hub's.

    ``given`` is a file, or the folder of a model on the hub, whose card names the licence. Raises StageError if the
    weights are missing, cannot be read, or do not fit; nothing falls back to random.
    """
    check_one_source(given, random)
    if random:
        return create_backbone(name, size), Weights(source="random", name="random initialization", licence="none")
    if given is not None:
        return _from_path(name, size, given)
    cfg = timm.get_pretrained_cfg(name)
    source = cfg.hf_hub_id or cfg.url or name
    return _from_hub(name, size), Weights(source="hub", name=source, licence=cfg.license or "unknown")
