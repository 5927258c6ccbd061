"""The moving average of the weights that train, which may be validated and kept in their place."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class MovingAverage:
    """An average of parameters, which it starts as; with a decay of 0 there is none, and nothing happens."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [p.detach().clone() for p in parameters] if decay else []
        """In the order of the parameters."""

    @torch.no_grad()
    def move(self, steps: int) -> None:
        """Move towards the parameters: ``a += (1 - d) (w - a)``, with d small at first, as it starts at w."""
        if self.values:
            decay = min(self._decay, (1 + steps) / (10 + steps))
            for average, parameter in zip(self.values, self._parameters, strict=True):
                average.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in place of the parameters for a while, where there is one."""
        if not self.values:
            yield
            return
        kept = [p.detach().clone() for p in self._parameters]
        _copy(self.values, self._parameters)
        yield
        _copy(kept, self._parameters)

    def restore(self, values: Iterable[Tensor]) -> None:
        """Take up an average from where it was."""
        _copy(values, self.values)


@torch.no_grad()
def _copy(values: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    """Put values into tensors of their shapes."""
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
