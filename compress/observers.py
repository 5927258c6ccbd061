"""Observers: how the range of a quantized tensor is found from what it holds on calibration crops."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, ObserverBase

ObserverName = Literal["minmax", "moving-average", "histogram", "mse"]
SHRINKS = 48
"""Ranges that ``MseObserver`` tries at each end, from all to none of it."""


class MseObserver(HistogramObserver):  # type: ignore[misc]
    """The range of least mean squared error, over a grid of both ends (arXiv 2106.08295, eq. 12, and section 3.1).

    ``HistogramObserver`` looks for the same by moving one end at a time, and stops at the first move that is no gain.
    """

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        centres = self.min_val + (torch.arange(self.bins) + 0.5) * (self.max_val - self.min_val) / self.bins
        shares = torch.linspace(1 / SHRINKS, 1, SHRINKS)
        low, high = shares[:, None] * self.min_val.clamp(max=0), shares[None] * self.max_val.clamp(min=0)
        error = ((high - low) / (self.quant_max - self.quant_min)) ** 2 / 12 * self.histogram.sum()
        error = error + ((low[..., None] - centres).clamp(min=0) ** 2 @ self.histogram)
        error = error + ((centres - high[..., None]).clamp(min=0) ** 2 @ self.histogram)
        best = divmod(int(error.argmin()), SHRINKS)
        return low[best[0], 0], high[0, best[1]]


OBSERVERS: dict[ObserverName, type[ObserverBase]] = {
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageMinMaxObserver,
    "histogram": HistogramObserver,
    "mse": MseObserver,
}


class Candidates(nn.Module):
    """All observers of one activation at once; ``like`` is the quantizer's own."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        same = {name: getattr(like, name) for name in ("dtype", "qscheme", "quant_min", "quant_max", "eps")}
        same["eps"] = float(same["eps"])
        self.observers = nn.ModuleDict({name: observer(**same) for name, observer in OBSERVERS.items()})

    def forward(self, value: Tensor) -> Tensor:
        """See a value and pass it through."""
        for observer in self.observers.values():
            observer(value)
        return value


class Clamped(nn.Module):
    """Shows an observer only what the clamp that follows will leave; what is cut away needs no range."""

    def __init__(self, observer: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.observer, self.low, self.high = observer, low, high

    def forward(self, value: Tensor) -> Tensor:
        """See a value and pass it through."""
        self.observer(value.clamp(self.low, self.high))
        return value
