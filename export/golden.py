"""Golden inputs: real crops or clips on which every artifact of a bundle is compared, here and on the phone."""

import numpy as np
from numpy.typing import NDArray

from data.store import Clip, ClipStore
from stage import Per

GOLDEN_CROPS = 32
GOLDEN_CLIPS = 6
"""Clips of 20 frames at 224 pixels take 18 MB."""

Inputs = tuple[NDArray[np.generic], ...]
"""What a scorer takes: crops uint8 [N, S, S, 3]; or clips uint8 [N, T, S, S, 3] and valid bool [N, T]."""


def golden_inputs(store: ClipStore, per: Per) -> Inputs:
    """Return real crops or clips of both labels from the validation split, as a scorer takes them."""
    return (golden_crops(store),) if per == "frame" else golden_clips(store)


def _clips_with(label: int, store: ClipStore) -> list[Clip]:
    return [clip for clip in store.clips("val") if clip.label == label]


def golden_crops(store: ClipStore) -> NDArray[np.uint8]:
    """Return real crops of both labels from the validation split, uint8 [N, S, S, 3], spread over its clips."""
    chosen: list[NDArray[np.uint8]] = []
    for label in (0, 1):
        clips = _clips_with(label, store)
        for k in range(GOLDEN_CROPS // 2):
            clip = clips[k % len(clips)]
            frames = np.flatnonzero(clip.valid)
            frame = int(frames[(k // len(clips)) % len(frames)])
            chosen.append(store.pixels(clip, [frame]))
    return np.concatenate(chosen)


def golden_clips(store: ClipStore) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return whole clips of both labels from the validation split, uint8 [N, T, S, S, 3] RGB, and valid bool [N, T].

    In a clip whose frames are all valid, every fourth frame is blackened and marked invalid, so that an artifact that
    ignores the flags does not pass.
    """
    chosen: list[Clip] = []
    for label in (0, 1):
        clips = _clips_with(label, store)
        count = min(GOLDEN_CLIPS // 2, len(clips))
        chosen += [clips[index] for index in np.linspace(0, len(clips) - 1, count).round().astype(int)]
    valid = np.stack([clip.valid for clip in chosen])
    pixels = np.stack([store.pixels(clip) for clip in chosen])
    left_out = np.zeros_like(valid)
    left_out[valid.all(axis=1), store.frames // 2 % 4 :: 4] = True
    pixels[left_out] = 0
    return pixels, valid & ~left_out
