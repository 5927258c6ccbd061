"""A store whose crops are compressed again when they are read, to measure a detector's accuracy on worse pictures.

Depth is computed anew from the compressed crops, as prepare computes it from crops. Flow cannot be: the crops of the
following frames that it needs are not in the store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.depth import DepthAnything, DepthWeights, depth_pictures
from data.store import Clip, ClipStore
from data.video import recompressed, through_jpeg
from stage import Modality, StageError, WrongArgument

LEVELS = {"h264": (0, 51), "jpeg": (1, 100)}
"""Legal levels by codec: H.264's constant rate factor (higher is worse) and JPEG's quality (lower is worse)."""
LEGAL = "give h264:CRF of 0 to 51 or jpeg:QUALITY of 1 to 100, several with commas, as h264:23,40 or jpeg:50"

Depth = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Function from crops, uint8 [T, S, S, 3] RGB, to relative inverse depth, float32 [T, S, S]."""


@dataclass(frozen=True)
class Recompression:
    """One way to compress crops again."""

    codec: Literal["h264", "jpeg"]
    level: int

    def __str__(self) -> str:
        return f"{self.codec}-{self.level}"

    def apply(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a clip's crops, uint8 [T, S, S, 3] RGB, after compression; H.264 takes them as one video."""
        if self.codec == "h264":
            return np.stack(recompressed(list(crops), self.level))
        return np.stack([through_jpeg(crop, self.level) for crop in crops])


def parse_recompressions(text: str) -> list[Recompression]:
    """Parse ``h264:23,40`` or ``jpeg:50``. Raises WrongArgument for anything else."""
    codec, _, levels = text.partition(":")
    lowest, highest = LEVELS.get(codec, (1, 0))
    parts = levels.split(",")
    if not all(part.isascii() and part.isdecimal() and lowest <= int(part) <= highest for part in parts):
        raise WrongArgument(f"--recompress {text!r}: {LEGAL}")
    return [Recompression(codec, level) for level in dict.fromkeys(map(int, parts))]  # type: ignore[arg-type]


class RecompressedStore:
    """The RGB and depth pictures of a store's clips after a recompression: a source for ``score_clip_list``."""

    def __init__(self, store: ClipStore, recompression: Recompression, depth: Depth | None = None) -> None:
        self._store, self._recompression, self._depth = store, recompression, depth
        self._last: tuple[str, NDArray[np.uint8]] = ("", np.zeros(0, np.uint8))

    @property
    def frames(self) -> int:
        """Number of frames of a clip, T."""
        return self._store.frames

    def pixels(self, clip: Clip, frames: list[int] | None = None, modality: Modality = "rgb") -> NDArray[np.uint8]:
        """Return a clip's pictures, uint8 [T, S, S, 3] RGB, or only those of the given frame numbers.

        Raises StageError for flow, and for depth without its network.
        """
        if modality == "flow" or (modality == "depth" and self._depth is None):
            raise StageError(f"{modality} cannot be computed from recompressed crops: evaluate without --recompress")
        if self._last[0] != clip.clip_id:
            self._last = (clip.clip_id, self._recompression.apply(self._store.pixels(clip)))
        pictures = self._last[1]
        if modality == "depth":
            assert self._depth is not None
            pictures = depth_pictures(self._depth(pictures), clip.valid)
        return pictures if frames is None else pictures[frames]


def depth_of(store: ClipStore, weights: Path | None) -> DepthAnything:
    """Load the depth network that a store was made with, from a folder or, if prepare loaded it there, from the hub.

    Raises StageError if the store holds no depth, if the weights are missing, or if they are not the store's.
    """
    store.require(["depth"])
    store_weights = store.info.settings.depth
    assert store_weights is not None
    published = store_weights.published_size
    if weights is None and published is None:
        raise StageError(f"{_made_with(store, store_weights)}: give that folder as --depth-weights")
    network = DepthAnything(None if weights else published, weights)
    if network.weights.sha256 != store_weights.sha256:
        origin = weights or f"the hub's {network.weights.name}"
        raise StageError(
            f"{_made_with(store, store_weights)}, and {origin} holds others: give --depth-weights with the former"
        )
    return network


def _made_with(store: ClipStore, store_weights: DepthWeights) -> str:
    """Return a text that says with which weights a store's depth was made."""
    return f"the depth of {store.path} was made with {store_weights.name} (SHA-256 {store_weights.sha256[:12]})"
