"""Where the time of a pipeline goes: seconds by stage, also of stages that draw on each other."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Stopwatch:
    """Adds up seconds by stage. A stage that runs inside another stops the other's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0
        """Seconds that stages inside the running one have taken."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block to a stage."""
        before, outside, self._inside = time.perf_counter(), self._inside, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - before
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inside
            self._inside = outside + spent

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Iterate, and count to a stage how long each item is waited for."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return a function whose calls count to a stage."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.stage(name):
                return function(*args, **kwargs)

        return call
