"""Golden inputs: real crops or clips on which every artifact of a bundle is compared, here and on the phone."""

import numpy as np
from numpy.typing import NDArray

from data.store import Clip, ClipStore
from stage import Per

GOLDEN_CROPS = 32
GOLDEN_CLIPS = 6
"""Of 20 frames at 224 pixels they take 18 MB."""

Inputs = tuple[NDArray[np.generic], ...]
"""What a scorer takes: crops uint8 [N, S, S, 3]; or clips uint8 [N, T, S, S, 3] and valid bool [N, T]."""


def golden_inputs(store: ClipStore, per: Per) -> Inputs:
    """Return real inputs of both labels from the validation split."""
    return (golden_crops(store),) if per == "frame" else golden_clips(store)


def _of_label(store: ClipStore, label: int) -> list[Clip]:
    return [clip for clip in store.clips("val") if clip.label == label]


def golden_crops(store: ClipStore) -> NDArray[np.uint8]:
    """Return real crops of both labels from the validation split, uint8 [N, S, S, 3], spread over its clips."""
    chosen: list[NDArray[np.uint8]] = []
    for label in (0, 1):
        of_label = _of_label(store, label)
        for k in range(GOLDEN_CROPS // 2):
            clip = of_label[k % len(of_label)]
            frames = np.flatnonzero(clip.valid)
            chosen.append(store.pixels(clip, [int(frames[(k // len(of_label)) % len(frames)])]))
    return np.concatenate(chosen)


def golden_clips(store: ClipStore) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return whole clips of both labels from the validation split, uint8 [N, T, S, S, 3] RGB, and valid bool [N, T].

    Of a clip whose frames are all valid, one in four is blackened and left out: an artifact that does not heed the
    flags must not pass.
    """
    chosen: list[Clip] = []
    for label in (0, 1):
        of_label = _of_label(store, label)
        share = min(GOLDEN_CLIPS // 2, len(of_label))
        chosen += [of_label[index] for index in np.linspace(0, len(of_label) - 1, share).round().astype(int)]
    valid = np.stack([clip.valid for clip in chosen])
    pixels = np.stack([store.pixels(clip) for clip in chosen])
    left_out = np.zeros_like(valid)
    left_out[valid.all(axis=1), store.frames // 2 % 4 :: 4] = True
    pixels[left_out] = 0
    return pixels, valid & ~left_out
