"""Measure how long each step of a pipeline takes, also where a step runs inside another."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Stopwatch:
    """Adds up seconds by step. A step that runs inside another stops the other's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds by step, without those of the steps inside it."""
        self._inside = 0.0
        """Seconds that steps inside the running one have taken."""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of a block to a step."""
        start = time.perf_counter()
        inside_before = self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inside
            self._inside = inside_before + elapsed

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and add the time of waiting for each to a step."""
        iterator = iter(items)
        while True:
            with self.step(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return a function that calls ``function`` and adds the time of each call to a step."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.step(name):
                return function(*args, **kwargs)

        return call
