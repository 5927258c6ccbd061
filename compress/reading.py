"""Reading ahead: threads read and decode the next batches while a GPU computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item], readers: int) -> Iterator[Read]:
    """Yield ``read(item)`` in the order of the items, reading ahead in ``readers`` threads; 0: read only when asked.

    An error of ``read`` is raised when its item is due.
    """
    if not readers:
        yield from map(read, items)
        return
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
