"""The gate before a bundle: an artifact must give what the model that it came from gives, on real crops."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from compress.fidelity import logits_of, snr_db
from stage import Scheme

TOLERANCES: dict[Scheme, float] = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest difference of P(fake). Between float32 programs only the order of sums differs; float16 rounds each one."""
LEAST_SNR_DB = 15.0
"""Least logit signal-to-noise ratio of a float16 or int8 artifact against the same program in torch.

Kernels round at other places: of int8, 20 to 39 dB were measured on trained networks (docs/lab-notes.md).
"""
MISTAKE_MARGIN_DB = 6.0
"""By how much nearer to its program such an artifact must be than that program is to itself on mistaken input."""


class Parity(BaseModel):
    """How near two sets of scores are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """Real crops, or clips, that were compared."""
    max_difference: float
    """Largest difference of P(fake)."""
    logit_snr_db: float
    """10 log10 of the variance of the expected logits over the mean squared difference; 200 at most."""
    verdict_agreement: float
    """Share of samples on the same side of 0.5."""
    passed: bool
    failure: str = ""


def least_snr_db(expected: NDArray[np.float32], mistaken: Sequence[NDArray[np.float32]]) -> float:
    """Return the logit SNR that an artifact of rounded numbers must reach, by its program's scores on mistaken inputs.

    Some networks hardly mind a mirrored or recoloured picture: for them a fixed floor would let such a mistake pass.
    """
    nearest = max((snr_db(logits_of(expected), logits_of(scores)) for scores in mistaken), default=-200.0)
    return max(LEAST_SNR_DB, nearest + MISTAKE_MARGIN_DB)


def compare(
    expected: NDArray[np.float32], actual: NDArray[np.float32], scheme: Scheme, least_snr: float = LEAST_SNR_DB
) -> Parity:
    """Compare an artifact's scores with its source's of the same inputs, float32 [N] each, as its scheme allows."""
    difference = float(np.max(np.abs(expected - actual))) if np.isfinite(actual).all() else float("inf")
    ratio = snr_db(logits_of(expected), logits_of(actual)) if np.isfinite(difference) else -200.0
    tolerance = TOLERANCES.get(scheme, float("inf"))
    failure = ""
    if scheme != "fp32" and not ratio >= least_snr:
        failure = f"logits are {ratio:.1f} dB from the run's; at least {least_snr:.1f} dB is rounding"
    if not difference <= tolerance:
        failure = f"scores differ by up to {difference:.2g} from the run's; at most {tolerance:g} is rounding"
    return Parity(
        samples=len(expected),
        max_difference=difference if np.isfinite(difference) else 1.0,
        logit_snr_db=ratio,
        verdict_agreement=float(np.mean((expected > 0.5) == (actual > 0.5))),
        passed=not failure,
        failure=failure,
    )
