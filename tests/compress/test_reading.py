"""Reading ahead gives what reading gives."""

import threading

import pytest

from compress.reading import read_ahead


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_what_is_read_comes_in_order_and_errors_in_their_place(readers: int) -> None:
    def read(item: int) -> int:
        if item == 7:
            raise ValueError("seven")
        return item**2

    found = []
    with pytest.raises(ValueError, match="seven"):
        found += list(read_ahead(read, range(6), readers))
        for square in read_ahead(read, range(9), readers):
            found.append(square)
    assert found == [0, 1, 4, 9, 16, 25, 0, 1, 4, 9, 16, 25, 36]


def test_the_next_ones_are_read_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(5)]

    def read(item: int) -> int:
        begun[item].set()
        return item

    ahead = read_ahead(read, range(5), 2)
    assert next(ahead) == 0
    assert all(event.wait(5) for event in begun[:3]) and not begun[4].is_set()
    ahead.close()
    assert not begun[4].is_set()
    lazily = read_ahead(read, range(5), 0)
    begun[1].clear()
    assert next(lazily) == 0 and not begun[1].is_set()
