"""Caches of mean colours: quick to compute, and easy to compute again."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compress.caches import (
    CacheKey,
    FrameCache,
)
from compress.compute import prepare_compute
from compress.filling import OfView
from data.views import Views


class Means:
    """Mean colour of each quarter of a crop, [N, 4, 3]; counts its calls and fails after some."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.calls, self.fail_after = 0, fail_after

    def __call__(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.fail_after:
            raise KeyboardInterrupt
        n, s = len(pixels), pixels.shape[1] // 2
        quarters = torch.from_numpy(pixels).float().view(n, 2, s, 2, s, 3).mean(dim=(2, 4))
        return quarters.reshape(n, 4, 3)


def key_of(views: Views, **changes: object) -> CacheKey:
    known = {"of": "means", "store": "s", "weights": "w", "network": "n", "precision": "fp32"}
    return CacheKey.model_validate(known | {"clips": views.clips_sha256, "rule": views.rule} | changes)


def fill(root: Path, key: CacheKey, views: Views, compute: OfView) -> FrameCache:
    """Fill a cache by this process alone."""
    return FrameCache.fill(root, key, views, compute, prepare_compute("fp32"))


def check(cache: FrameCache, views: Views) -> None:
    frames = views.store.frames
    rows = np.random.default_rng(0).permutation(len(views) * frames)
    expected = torch.cat([Means()(views.pixels(view)) for view in views.views])[rows]
    torch.testing.assert_close(cache[rows], expected.half().float())
