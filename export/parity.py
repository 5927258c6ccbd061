"""The gate before a bundle: an artifact must give what the model that it came from gives, on real crops."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from compress.fidelity import MOST_DB, logits_of, snr_db
from compress.metrics import verdict_flips
from stage import PALETTES, Scheme, StageError

Step = Literal["fused", "exported", "lowered", "evaluated"]
"""``fused``: the fused network against the trained one, in torch. ``exported``: the program that is written, while it
is still in torch, against the fused network in its scheme. ``lowered``: the artifact in its runtime against that
program. ``evaluated``, on a Mac: Pocketproof's evaluation of a Core ML program against Core ML."""
TOLERANCES: dict[Scheme, float] = {"fp32": 1e-4, **dict.fromkeys(("fp16", *PALETTES), 1e-2)}
"""Largest difference of P(fake) by scheme."""
EXPLAINED: dict[Scheme, str] = {
    "fp32": "float32 on both sides: only the order of sums differs",
    "fp16": "float16 rounds each value, by up to one part in 2048, and kernels round at other places",
    **dict.fromkeys(PALETTES, "equal weights on both sides, but the artifact computes in float16"),
}
LEAST_SNR_DB = 15.0
"""Least logit signal-to-noise ratio of an artifact against the same program in torch.

Kernels round at other places: of int8, 20 to 39 dB were measured on trained networks (docs/lab-notes.md). Float32 gives
more than 100 dB, less where scores are so near 0 and 1 that float32 hardly tells them apart; there a difference of
scores alone would let a mistake pass.
"""
INT8_EXPLAINED = "equal scales on both sides: where a kernel rounds a sum the other way, later roundings turn with it"
MISTAKE_MARGIN_DB = 6.0
"""By how much nearer to its program such an artifact must be than that program is to itself on mistaken input."""
ROUNDING_DB: dict[Scheme, float] = {"fp32": 60.0, **dict.fromkeys(("fp16", *PALETTES), 45.0)}
INT8_ROUNDING_DB = 24.0
"""What rounding alone may come to (docs/lab-notes.md): a mistake that changes less cannot be told from it."""


class UnfitArtifact(StageError):
    """An artifact must not be in a bundle: it does not give what its model gives, or a delegate does not take it."""


class Parity(BaseModel):
    """How near two sets of scores are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Step
    samples: int
    """Real crops, or clips, that were compared."""
    max_difference: float
    """Largest difference of P(fake)."""
    cosine: float
    """Of the two vectors of logits; 0 where one of them is all zeros."""
    logit_snr_db: float
    """10 log10 of the variance of the expected logits over the mean squared difference; 200 at most."""
    flips_at_half: float
    """Share of samples on another side of 0.5, whatever the threshold."""
    most_difference: float | None
    """Tolerance of ``max_difference``; None where logits are held to a ratio alone."""
    least_snr_db: float
    """Tolerance of ``logit_snr_db``."""
    explained: str
    """Why so much is rounding and more is a mistake."""
    passed: bool
    failure: str = ""


def least_snr_db(
    expected: NDArray[np.float32], mistaken: Mapping[str, NDArray[np.float32]], scheme: Scheme
) -> tuple[float, list[str]]:
    """Return the logit SNR that an artifact must reach, and the mistakes that cannot be told from rounding.

    mistaken: the program's own scores on mistaken inputs, float32 [N], by mistake. Some networks hardly mind a mirrored
    or recoloured picture: for them a fixed floor would let such a mistake pass. Grey pictures have no colours to swap.
    """
    nearness = {name: snr_db(logits_of(expected), logits_of(scores)) for name, scores in mistaken.items()}
    untold = [name for name, near in nearness.items() if near >= ROUNDING_DB.get(scheme, INT8_ROUNDING_DB)]
    told = [near for name, near in nearness.items() if name not in untold]
    return max([LEAST_SNR_DB, *(near + MISTAKE_MARGIN_DB for near in told)]), untold


def _cosine(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    return float(expected @ actual) / lengths if lengths else 0.0


def compare(
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    scheme: Scheme,
    least_snr: float = LEAST_SNR_DB,
    step: Step = "lowered",
) -> Parity:
    """Compare scores with what is expected of the same inputs, float32 [N] each, as a scheme allows."""
    finite = bool(np.isfinite(actual).all())
    difference = float(np.max(np.abs(expected - actual))) if finite else float("inf")
    logits = logits_of(expected), logits_of(actual if finite else np.full_like(expected, 0.5))
    ratio = snr_db(*logits) if finite else -MOST_DB
    most = TOLERANCES.get(scheme)
    failure = ""
    if not ratio >= least_snr:
        failure = f"logits are {ratio:.1f} dB from what they should be; at least {least_snr:.1f} dB is rounding"
    if not difference <= (float("inf") if most is None else most) or not finite:
        failure = f"scores differ by up to {difference:.2g} from what they should be; at most {most or 1:g} is rounding"
    return Parity(
        step=step,
        samples=len(expected),
        max_difference=difference if finite else 1.0,
        cosine=_cosine(*logits),
        logit_snr_db=ratio,
        flips_at_half=verdict_flips(expected, 0.5, actual, 0.5),
        most_difference=most,
        least_snr_db=least_snr,
        explained=EXPLAINED.get(scheme, INT8_EXPLAINED),
        passed=not failure,
        failure=failure,
    )
