"""Which frames train together: full, label-balanced, source-mixed batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.store import Clip, ClipStore


@dataclass(frozen=True)
class Batch:
    """Frames of a training batch. Frame ``t`` of clip ``c`` has the row ``c * T + t``."""

    rows: NDArray[np.int64]
    """int64 [B]."""
    labels: NDArray[np.int64]
    """int64 [B], 1 = fake."""


def _repeated(rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ``length`` rows: fresh permutations one after another, so that each row is drawn equally often."""
    rounds = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:length]


def balanced_batches(clips: Sequence[Clip], batch_size: int, seed: tuple[int, ...]) -> Iterator[Batch]:
    """Yield one epoch: every valid frame at least once, as many real as fake ones in each batch, all batches full.

    The rarer label is repeated. ``clips`` must hold both labels, ``batch_size`` must be even.
    """
    rng = np.random.default_rng(seed)
    rows: dict[int, list[int]] = {0: [], 1: []}
    for index, clip in enumerate(clips):
        rows[clip.label].extend((index * len(clip.valid) + np.flatnonzero(clip.valid)).tolist())
    half = batch_size // 2
    batches = -(-max(len(rows[0]), len(rows[1])) // half)
    real, fake = (_repeated(np.array(rows[label], np.int64), batches * half, rng) for label in (0, 1))
    labels = np.repeat(np.array([0, 1], np.int64), half)
    for start in range(0, batches * half, half):
        yield Batch(np.concatenate([real[start : start + half], fake[start : start + half]]), labels)


def batch_pixels(store: ClipStore, clips: Sequence[Clip], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the crops of the given rows, uint8 [B, S, S, 3] RGB."""
    clip_numbers, frames = np.divmod(rows, store.frames)
    pixels = np.empty((len(rows), store.size, store.size, 3), np.uint8)
    for number in np.unique(clip_numbers):
        here = np.flatnonzero(clip_numbers == number)
        pixels[here] = store.pixels(clips[number], frames[here].tolist())
    return pixels
