"""How near a model stays to the one that it was made from, and where it departs from it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from stage import Per

LOGIT_LIMIT = 15.0
"""P(fake) in float32 says nothing of a logit beyond this."""
MOST_DB = 200.0
"""Said where there is no noise."""


def logits_of(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of scores, float [N], within +-LOGIT_LIMIT."""
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    logits: NDArray[np.float64] = np.clip(np.log(p) - np.log1p(-p), -LOGIT_LIMIT, LOGIT_LIMIT)
    return logits


def snr_db(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Return the signal-to-noise ratio in dB, float [N] each; the signal is how ``expected`` varies about its mean."""
    noise = float(np.mean((expected - actual) ** 2))
    signal = float(np.var(expected))
    if noise == 0.0:
        return MOST_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / noise), -MOST_DB, MOST_DB))


class LayerNoise(BaseModel):
    """What rounding does to one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    snr_db: float
    """Of its output in the int8 program, with all that was rounded before it."""
    logit_noise: float
    """Variance that rounding its weights, and what it and the operations up to the next layer give, adds to the
    fake-minus-real logit, as a share of that logit's variance: 0.01 is 20 dB."""


class Diagnosis(BaseModel):
    """What an int8 run costs, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """Validation frames or clips on which it was measured."""
    per: Per
    """Which of both."""
    logit_snr_db: float
    """Of the fake-minus-real logit, against the run that was quantized, which int8-qat with a teacher departs from."""
    observers: dict[str, float]
    """The same by observer, before training, before layers were kept in float32 and before logits were matched."""
    float_layers: list[str]
    """Layers of the backbone that compute in float32; the head does in any case."""
    islands: dict[str, int]
    """Operations of the backbone that take what int8 gives and compute in float32, by kind."""
    layers: list[LayerNoise]
    """Of the backbone, in its order, with only the head in float32."""

    def worst(self) -> list[LayerNoise]:
        """Return the layers that add noise, the worst first."""
        return sorted((layer for layer in self.layers if layer.logit_noise), key=lambda layer: -layer.logit_noise)
