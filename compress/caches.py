"""What a frozen network says of every frame, computed once and kept on disk while a run trains."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.store import Clip, ClipStore
from stage import progress, say


class FrameCache:
    """One array per frame, float16, memory-mapped. Row of frame ``t`` of clip ``c``: ``c * T + t``."""

    def __init__(self, rows: NDArray[np.float16]) -> None:
        self._rows = rows

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the arrays of the given rows, float32 [B, ...]."""
        return torch.from_numpy(np.asarray(self._rows[rows], np.float32))

    @classmethod
    def compute(
        cls,
        file: Path,
        store: ClipStore,
        clips: Sequence[Clip],
        compute: Callable[[NDArray[np.uint8]], Tensor],
        description: str,
    ) -> "FrameCache":
        """Call ``compute`` (crops uint8 [N, S, S, 3] -> [N, ...]) on each clip and keep the results in ``file``.

        Says how much disk it takes before it writes.
        """
        rows: np.memmap[tuple[int, ...], np.dtype[np.float16]] | None = None
        for index, clip in enumerate(progress(clips, description)):
            result = compute(store.pixels(clip)).to(torch.float16).cpu().numpy()
            if rows is None:
                shape = (len(clips) * store.frames, *result.shape[1:])
                say(f"{description}: {2 * np.prod(shape) / 1e6:.0f} MB on disk at {file}, removed when the run is done")
                file.parent.mkdir(parents=True, exist_ok=True)
                rows = np.lib.format.open_memmap(file, "w+", np.float16, shape)
            rows[index * store.frames : (index + 1) * store.frames] = result
        assert rows is not None
        return cls(rows)
