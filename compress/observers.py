"""Observers: find the range of a quantized tensor from its values on calibration crops."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, ObserverBase

ObserverName = Literal["minmax", "moving-average", "histogram", "mse"]
SHRINKS = 48
"""Number of candidates that ``MseObserver`` tries for each end of the range, from 1 / SHRINKS of it to all of it."""


class MseObserver(HistogramObserver):  # type: ignore[misc]
    """Finds the range of least mean squared error on a grid of both ends (arXiv 2106.08295, eq. 12, and section 3.1).

    ``HistogramObserver`` searches for it by moving one end at a time, and stops at the first move that does not help.
    """

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        centres = self.min_val + (torch.arange(self.bins) + 0.5) * (self.max_val - self.min_val) / self.bins
        shares = torch.linspace(1 / SHRINKS, 1, SHRINKS)
        low = shares[:, None] * self.min_val.clamp(max=0)
        high = shares[None] * self.max_val.clamp(min=0)
        error = ((high - low) / (self.quant_max - self.quant_min)) ** 2 / 12 * self.histogram.sum()
        error = error + ((low[..., None] - centres).clamp(min=0) ** 2 @ self.histogram)
        error = error + ((centres - high[..., None]).clamp(min=0) ** 2 @ self.histogram)
        best_low, best_high = divmod(int(error.argmin()), SHRINKS)
        return low[best_low, 0], high[0, best_high]


OBSERVERS: dict[ObserverName, type[ObserverBase]] = {
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageMinMaxObserver,
    "histogram": HistogramObserver,
    "mse": MseObserver,
}


class Candidates(nn.Module):
    """All observers of one activation at once, with the settings of ``like``, the quantizer's own observer."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        settings = {name: getattr(like, name) for name in ("dtype", "qscheme", "quant_min", "quant_max", "eps")}
        settings["eps"] = float(settings["eps"])
        self.observers = nn.ModuleDict({name: observer(**settings) for name, observer in OBSERVERS.items()})

    def forward(self, value: Tensor) -> Tensor:
        """Show a value, float32 of any shape, to all observers and return it unchanged."""
        for observer in self.observers.values():
            observer(value)
        return value


class Clamped(nn.Module):
    """Clamps the values that an observer sees to the bounds of the clamp that follows in the graph."""

    def __init__(self, observer: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.observer, self.low, self.high = observer, low, high

    def forward(self, value: Tensor) -> Tensor:
        """Show the value, float32 of any shape, clamped to the observer, and return it unchanged."""
        self.observer(value.clamp(self.low, self.high))
        return value
