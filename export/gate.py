"""The parity gate: compare an artifact with its source run on real crops or clips; refuse one that differs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.metrics import Threshold
from compress.runs import own_threshold, pixel_detector, torch_scorer
from export import coreml
from export.forms import Form
from export.golden import Inputs
from export.manifest import NOT_COMPARED
from export.parity import Parity, compare, least_snr_db
from export.runtimes import Method, NotEvaluated, UnfitArtifact, cannot_run, evaluated_by, load_artifact, scorer_of
from models.pixels import BYTE_MAX, PixelDetector, fake_probability
from models.run import Run, RunInfo
from stage import Scorer, StageError, heed_quota, say


class NormalizedTwice(nn.Module):
    """A detector with the commonest mistake on phones: the app normalizes pixels that the graph normalizes again."""

    def __init__(self, detector: PixelDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: torch.Tensor, *valid: torch.Tensor) -> torch.Tensor:
        """Return P(fake), float32 [N], of the detector's own inputs, normalized twice."""
        again = self.detector.normalize(self.detector.pictures(pixels) * BYTE_MAX)
        return fake_probability(self.detector.network(again, *valid))


def mistaken_scores(detector: PixelDetector, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
    """Return a detector's P(fake), float32 [N], by the integration mistake that its inputs were changed by."""
    cpu = torch.device("cpu")
    score = torch_scorer(detector, cpu)
    pixels, *valid = inputs
    swapped = np.ascontiguousarray(pixels[..., ::-1])
    transposed = np.ascontiguousarray(pixels.swapaxes(-3, -2))
    scores = {
        "swapped colours": score(swapped, *valid),
        "transposed pictures": score(transposed, *valid),
        "a second normalization": torch_scorer(NormalizedTwice(detector), cpu)(pixels, *valid),
    }
    if valid:
        scores["frames that do not count"] = score(pixels, np.ones_like(valid[0]))
    return scores


@dataclass(frozen=True)
class SourceRun:
    """A run to export, with everything that its artifacts are compared with."""

    run: Run
    golden: NDArray[np.float32]
    """P(fake) of the golden inputs by the fused network in torch, float32 [N]."""
    fused: Parity | None
    """Parity of the fused network with the trained one; None for a run that was fused before it was quantized."""
    least_snr_db: float
    """Logit signal-to-noise ratio that an artifact must reach against ``golden``, in dB."""
    untold: list[str]
    """Names of the mistakes of an integration that cannot be told from rounding."""
    threshold: Threshold

    @classmethod
    def load(cls, path: Path, inputs: Inputs) -> "SourceRun":
        """Load a run, verify its fusing on the golden inputs, and score them."""
        heed_quota()
        run = Run(path)
        detector, cpu = pixel_detector(run, inputs=inputs), torch.device("cpu")
        golden = torch_scorer(detector, cpu)(*inputs)
        fused = None
        least, untold = least_snr_db(golden, mistaken_scores(detector, inputs), run.info.scheme)
        if not run.info.architecture.fused:
            trained = PixelDetector(run.detector(), run.info.preprocessing).eval()
            fused = compare(torch_scorer(trained, cpu)(*inputs), golden, "fp32", least, "fused")
        return cls(run, golden, fused, least, untold, own_threshold(run))


@dataclass(frozen=True)
class Gated:
    """Outcome of the gate for an artifact that did not fail: it passed, or its last step could not be compared."""

    parity: list[Parity]
    scores: NDArray[np.float32]
    """P(fake) of the inputs, float32 [N]: the artifact's, or its source's if it could not run."""
    scorer: Scorer | None
    """The loaded artifact; None if it could not run or be evaluated here."""
    not_checked: str = ""
    """Why the artifact itself could not be compared."""


def gate(path: Path, form: Form, source: SourceRun, exported: NDArray[np.float32], inputs: Inputs) -> Gated:
    """Compare an artifact with its source on real inputs, step by step.

    exported: P(fake) of the inputs by the artifact's program in torch, float32 [N]. Raises UnfitArtifact if a step is
    beyond its tolerance, or if the runtime cannot load or run the artifact.
    """
    info, least = source.run.info, source.least_snr_db
    steps = [source.fused] if source.fused else []
    steps.append(compare(source.golden, exported, info.scheme, least, "exported"))
    _refuse_failed(path, steps)
    if reason := cannot_run(form.runtime, form.delegate, form.ort and info.integer):
        return Gated(steps, source.golden, None, NOT_COMPARED + reason)
    try:
        scorer = load_artifact(path, form.runtime, 1, form.method)
        scores = scorer(*inputs)
    except NotEvaluated as error:
        return Gated(steps, source.golden, None, f"{NOT_COMPARED}{error}")
    except StageError as error:
        raise UnfitArtifact(str(error).replace(str(path), path.name)) from error
    steps.append(compare(exported, scores, info.scheme, least, "lowered"))
    _refuse_failed(path, steps)
    if form.runtime == "coreml" and not evaluated_by(form.runtime):
        steps += _compare_evaluation(path, form.method, info, scores, least, inputs)
    return Gated(steps, scores, scorer)


def _compare_evaluation(
    path: Path, method: Method, info: RunInfo, scores: NDArray[np.float32], least: float, inputs: Inputs
) -> list[Parity]:
    """Compare, on a Mac, scores by Pocketproof's evaluation with Core ML's; print a line if they differ."""
    try:
        evaluated = scorer_of(coreml.evaluated(path), method)(*inputs)
    except NotEvaluated as error:
        say(f"{path.name} was not evaluated beside Core ML: {error}")
        return []
    parity = compare(scores, evaluated, info.scheme, least, "evaluated")
    if not parity.passed:
        say(f"{path.name} evaluated by Pocketproof departs from Core ML, which counts: {parity.failure}")
    return [parity]


def _refuse_failed(path: Path, steps: list[Parity]) -> None:
    """Raise UnfitArtifact for the first step that is beyond its tolerance."""
    for parity in steps:
        if not parity.passed:
            raise UnfitArtifact(
                f"{path.name} failed the parity gate ({parity.step}) on {parity.samples} real inputs: {parity.failure}"
            )
