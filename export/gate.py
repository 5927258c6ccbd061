"""The gate before a bundle: what an artifact must give on real crops or clips, and the refusal of one that does not."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.metrics import Threshold
from compress.runs import check_size, own_threshold, pixel_detector, torch_scorer
from data.store import ClipStore
from export.golden import Inputs
from export.parity import Parity, compare, least_snr_db
from export.runtimes import Runner, Runtime, cannot_run, load_artifact
from models.detector import BYTE_MAX, PixelDetector, fake_probability
from models.run import Run
from stage import StageError


class NormalizedTwice(nn.Module):
    """The commonest mistake on phones: pixels that the app has normalized already are normalized again."""

    def __init__(self, detector: PixelDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: torch.Tensor, *valid: torch.Tensor) -> torch.Tensor:
        """Return P(fake), float32 [N], of what the detector takes."""
        again = self.detector.normalize(self.detector.pictures(pixels) * BYTE_MAX)
        return fake_probability(self.detector.network(again, *valid))


def mistaken_scores(detector: PixelDetector, inputs: Inputs) -> list[NDArray[np.float32]]:
    """Return what a detector gives after the usual mistakes of an integration, float32 [N] each.

    Swapped channels, a transposed picture, a second normalization.
    """
    cpu = torch.device("cpu")
    score = torch_scorer(detector, cpu)
    pixels, *valid = inputs
    swapped, transposed = np.ascontiguousarray(pixels[..., ::-1]), np.ascontiguousarray(pixels.swapaxes(-3, -2))
    twice = torch_scorer(NormalizedTwice(detector), cpu)
    return [score(swapped, *valid), score(transposed, *valid), twice(pixels, *valid)]


@dataclass(frozen=True)
class Source:
    """A run to export with everything its artifacts are compared with."""

    run: Run
    golden: NDArray[np.float32]
    least_snr_db: float
    """What the logits of an artifact of rounded numbers must reach against ``golden``."""
    threshold: Threshold

    @classmethod
    def load(cls, path: Path, store: ClipStore, inputs: Inputs) -> "Source":
        """Load a run, verify its fusing on the golden inputs, and score them."""
        run = Run(path)
        check_size(path, run.info.architecture.size, store)
        detector = pixel_detector(run, inputs=inputs)
        golden = torch_scorer(detector, torch.device("cpu"))(*inputs)
        least = least_snr_db(golden, mistaken_scores(detector, inputs) if run.info.scheme != "fp32" else ())
        return cls(run, golden, least, own_threshold(run))


def gate(path: Path, runtime: Runtime, source: Source, inputs: Inputs) -> tuple[Parity | None, Runner | None]:
    """Compare an artifact with its source on real inputs. Raises StageError if it is beyond its scheme's tolerance.

    Gives ``(None, None)`` for a runtime that cannot run here.
    """
    if cannot_run(runtime):
        return None, None
    info = source.run.info
    runner = load_artifact(path, runtime, os.cpu_count() or 1, info.architecture.per)
    parity = compare(source.golden, runner(*inputs), info.scheme, source.least_snr_db)
    if not parity.passed:
        samples = "crops" if info.architecture.per == "frame" else "clips"
        raise StageError(f"{path.name} failed the parity gate on {parity.samples} real {samples}: {parity.failure}")
    return parity, runner
