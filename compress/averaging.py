"""The exponential moving average of the trained weights, which can be validated and saved in their place."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class MovingAverage:
    """A moving average of parameters that starts at their values; with a decay of 0 every method does nothing."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [p.detach().clone() for p in parameters] if decay else []
        """The averages, in the order of the parameters; empty with a decay of 0."""

    @torch.no_grad()
    def move(self, steps: int) -> None:
        """Move the averages towards the parameters: ``a += (1 - d) (w - a)``, where d grows with ``steps``."""
        if self.values:
            decay = min(self._decay, (1 + steps) / (10 + steps))
            for average, parameter in zip(self.values, self._parameters, strict=True):
                average.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the parameters by their averages inside the ``with`` block, if there are averages."""
        if not self.values:
            yield
            return
        originals = [p.detach().clone() for p in self._parameters]
        _copy(self.values, self._parameters)
        try:
            yield
        finally:
            _copy(originals, self._parameters)

    def restore(self, values: Iterable[Tensor]) -> None:
        """Set the averages to saved ``values``."""
        _copy(values, self.values)


@torch.no_grad()
def _copy(values: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    """Copy values into tensors of the same shapes, in place."""
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
