"""How close the outputs of a model stay to those of its source model, and which layers differ."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from stage import Per

LOGIT_LIMIT = 15.0
"""Largest absolute logit that can be recovered from a float32 P(fake)."""
MOST_DB = 200.0
"""SNR in dB that is reported where there is no noise."""


def logits_of(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of scores, float [N], within +-LOGIT_LIMIT."""
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    logits: NDArray[np.float64] = np.clip(np.log(p) - np.log1p(-p), -LOGIT_LIMIT, LOGIT_LIMIT)
    return logits


def snr_db(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Return the signal-to-noise ratio of ``actual``, float64 [N], in dB within +-MOST_DB.

    The signal's power is the variance of ``expected``, float64 [N]; the noise is the difference of both.
    """
    return decibels(float(np.var(expected)), float(np.mean((expected - actual) ** 2)))


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of the power of a signal to that of its error, in dB within +-MOST_DB."""
    if noise == 0.0:
        return MOST_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / noise), -MOST_DB, MOST_DB))


class LayerNoise(BaseModel):
    """What rounding does to one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    snr_db: float
    """SNR of the layer's output in the int8 program, including the rounding of all layers before it."""
    logit_noise: float
    """Variance added to the fake-minus-real logit by rounding the layer's weights and the outputs of it and of the
    operations up to the next layer, as a share of that logit's variance: 0.01 is 20 dB."""


class Diagnosis(BaseModel):
    """What an int8 run costs, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """Number of validation frames or clips on which it was measured."""
    per: Per
    """Whether ``samples`` counts frames or clips."""
    logit_snr_db: float
    """SNR of the fake-minus-real logit against the source run; int8-qat with a teacher aims at other logits."""
    observers: dict[str, float]
    """Logit SNR by observer, before training and before layers were kept in float32; with the last layer refitted, but
    for int8-qat with a teacher."""
    float_layers: list[str]
    """Layers of the backbone that compute in float32; the head always does."""
    islands: dict[str, int]
    """Number of the backbone's operations that take int8 inputs but compute in float32, by kind."""
    layers: list[LayerNoise]
    """Noise of the backbone's layers, in order, in the program with only the head in float32."""

    def worst(self) -> list[LayerNoise]:
        """Return the layers that add noise to the logits, the worst first."""
        return sorted((layer for layer in self.layers if layer.logit_noise), key=lambda layer: -layer.logit_noise)
