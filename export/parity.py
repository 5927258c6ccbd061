"""Compare scores of an artifact with those of its model on the same inputs, within what rounding explains."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from compress.fidelity import MOST_DB, logits_of, snr_db
from compress.metrics import verdict_flips
from stage import PALETTES, Scheme

Step = Literal["fused", "exported", "lowered", "evaluated"]
"""Comparison from the trained network to the artifact. ``fused``: the fused network with the trained one, in torch.
``exported``: the exported program, in torch, with the fused network in its scheme. ``lowered``: the artifact in its
runtime with that program. ``evaluated``, on a Mac: Pocketproof's evaluation of a Core ML program with Core ML."""
TOLERANCES: dict[Scheme, float] = {"fp32": 1e-4, **dict.fromkeys(("fp16", *PALETTES), 1e-2)}
"""Largest difference of P(fake) that rounding explains, by scheme; int8 schemes have none."""
EXPLAINED: dict[Scheme, str] = {
    "fp32": "float32 on both sides: only the order of sums differs",
    "fp16": "float16 rounds each value, by up to one part in 2048, and kernels round at other places",
    **dict.fromkeys(PALETTES, "equal weights on both sides, but the artifact computes in float16"),
}
LEAST_SNR_DB = 15.0
"""Least logit signal-to-noise ratio of an artifact against the same program in torch.

Kernels round at other places: int8 gave 20 to 39 dB on trained networks (docs/lab-notes.md). Float32 gives more than
100 dB, but less where scores are so near 0 and 1 that float32 hardly tells them apart; there a tolerance of scores
alone would let a mistake pass.
"""
INT8_EXPLAINED = "equal scales on both sides: where a kernel rounds a sum the other way, later roundings turn with it"
MISTAKE_MARGIN_DB = 6.0
"""Margin by which an artifact's logit SNR must exceed that of its own program on mistaken inputs."""
ROUNDING_DB: dict[Scheme, float] = {"fp32": 60.0, **dict.fromkeys(("fp16", *PALETTES), 45.0)}
INT8_ROUNDING_DB = 24.0
"""Logit SNR that rounding alone may bring (docs/lab-notes.md): a mistake that changes less looks like rounding."""


class Parity(BaseModel):
    """How near two sets of scores are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: Step
    samples: int
    """Real crops, or clips, that were compared."""
    max_difference: float
    """Largest difference of P(fake)."""
    cosine: float
    """Cosine similarity of the two vectors of logits; 0 where one of them is all zeros."""
    logit_snr_db: float
    """10 log10 of the variance of the expected logits over the mean squared difference, in dB; 200 at most."""
    flips_at_half: float
    """Share of samples, 0..1, whose scores lie on different sides of 0.5 (not of the threshold)."""
    most_difference: float | None
    """Tolerance of ``max_difference``; None where only ``logit_snr_db`` is checked."""
    least_snr_db: float
    """Least ``logit_snr_db`` that passes, in dB."""
    explained: str
    """Why a difference within the tolerance is rounding, and a larger one a mistake."""
    passed: bool
    failure: str = ""


def least_snr_db(
    expected: NDArray[np.float32], mistaken: Mapping[str, NDArray[np.float32]], scheme: Scheme
) -> tuple[float, list[str]]:
    """Return the logit SNR, in dB, that an artifact must reach, and the mistakes that cannot be told from rounding.

    mistaken: the program's scores on mistaken inputs, float32 [N], by name of the mistake. The scores of some networks
    hardly change for a mirrored or recoloured picture: with a fixed floor such a mistake would pass. Grey pictures have
    no colours to swap.
    """
    ratios = {name: snr_db(logits_of(expected), logits_of(scores)) for name, scores in mistaken.items()}
    rounding = ROUNDING_DB.get(scheme, INT8_ROUNDING_DB)
    untold = [name for name, ratio in ratios.items() if ratio >= rounding]
    revealed = [ratio for name, ratio in ratios.items() if name not in untold]
    return max([LEAST_SNR_DB, *(ratio + MISTAKE_MARGIN_DB for ratio in revealed)]), untold


def _cosine(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    return float(expected @ actual) / norms if norms else 0.0


def compare(
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    scheme: Scheme,
    least_snr: float = LEAST_SNR_DB,
    step: Step = "lowered",
) -> Parity:
    """Compare scores with the expected ones of the same inputs, float32 [N] each, within the tolerances of a scheme."""
    finite = bool(np.isfinite(actual).all())
    difference = float(np.max(np.abs(expected - actual))) if finite else float("inf")
    logits = logits_of(expected), logits_of(actual if finite else np.full_like(expected, 0.5))
    ratio = snr_db(*logits) if finite else -MOST_DB
    tolerance = TOLERANCES.get(scheme)
    failure = ""
    if not ratio >= least_snr:
        failure = f"logits are {ratio:.1f} dB from what they should be; at least {least_snr:.1f} dB is rounding"
    if not difference <= (float("inf") if tolerance is None else tolerance) or not finite:
        failure = (
            f"scores differ by up to {difference:.2g} from what they should be; at most {tolerance or 1:g} is rounding"
        )
    return Parity(
        step=step,
        samples=len(expected),
        max_difference=difference if finite else 1.0,
        cosine=_cosine(*logits),
        logit_snr_db=ratio,
        flips_at_half=verdict_flips(expected, 0.5, actual, 0.5),
        most_difference=tolerance,
        least_snr_db=least_snr,
        explained=EXPLAINED.get(scheme, INT8_EXPLAINED),
        passed=not failure,
        failure=failure,
    )
