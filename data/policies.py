"""torchvision's and timm's augmentation policies by name, on RGB clips, with one draw for all frames of a clip."""

import contextlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage import WrongArgument, reason_of

TORCHVISION = ("RandAugment", "TrivialAugmentWide", "AutoAugment", "AugMix")
# timm itself silently ignores sections that it does not know.
TIMM = re.compile(
    r"rand(-(m|n|p|mstd|mmax|inc)[\d.]+|-t(weights|3a|3aw))*"
    r"|augmix(-(m|w|d|b|a|mstd)[\d.]+)*"
    r"|(original|originalr|v0|v0r|3a)(-mstd[\d.]+)?"
)


MOST_DRAWS = 20
"""Most draws until Pillow accepts one: some of timm's keep 0 bits of a colour, which Pillow 13 refuses."""

_global_generators_lock = threading.Lock()
"""Both libraries draw from generators that the whole process shares, and training loads batches in threads."""


def apply_policy(policy: str, frames: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return frames, uint8 [T, S, S, 3] RGB, after one draw of a policy. Raises WrongArgument if timm refuses it."""
    with _global_generators_lock:
        return _torchvision(policy, frames, seed) if policy in TORCHVISION else _timm(policy, frames, seed)


def _torchvision(policy: str, frames: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    # As a Video: in a plain batch, AugMix would draw different weights for each picture.
    video = tv_tensors.Video(torch.from_numpy(frames.copy()).permute(0, 3, 1, 2))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmented = getattr(v2, policy)()(video)
    return np.ascontiguousarray(augmented.permute(0, 2, 3, 1).numpy())


def _timm(policy: str, frames: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    from PIL import Image

    def transformed(frame: NDArray[np.uint8], draw: int) -> NDArray[np.uint8]:
        with _seeded((seed + draw) % 2**32):
            return np.asarray(transform(Image.fromarray(frame)), np.uint8)

    try:
        transform = _timm_transform(policy, frames.shape[1])
    except (AssertionError, ValueError) as error:
        raise _refused(policy, error) from error
    for draw in range(MOST_DRAWS):
        try:
            return np.stack([transformed(frame, draw) for frame in frames])
        except (AssertionError, ValueError) as error:
            last_error = error
    raise _refused(policy, last_error) from last_error


def _refused(policy: str, error: Exception) -> WrongArgument:
    """Return the error for a policy that timm refuses."""
    message = f"timm refuses --augment {policy}: {reason_of(error)}"
    return WrongArgument(f"{message}: take other numbers, such as rand-m9-mstd0.5")


def _timm_transform(policy: str, size: int) -> Callable[[Any], Any]:
    """Build timm's transform for pictures of ``size`` pixels with the settings of its own training script."""
    from timm.data import auto_augment

    settings: dict[str, Any] = {"translate_const": int(size * 0.45), "img_mean": (124, 116, 104)}
    if policy.startswith("rand"):
        return auto_augment.rand_augment_transform(policy, settings)  # type: ignore[no-any-return]
    if policy.startswith("augmix"):
        settings["translate_pct"] = 0.3
        return auto_augment.augment_and_mix_transform(policy, settings)  # type: ignore[no-any-return]
    return auto_augment.auto_augment_transform(policy, settings)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of ``random`` and NumPy, from which timm draws, and restore them afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
