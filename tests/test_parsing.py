"""What users' files may hold, and what is refused."""

import pickle
from pathlib import Path

import pytest

from parsing import OutOfRange, load_tensors, parse_json


def test_json_has_no_infinities_and_no_numbers_of_which_two_overflow(tmp_path: Path) -> None:
    for text in ("NaN", "-Infinity", "1e999", "-1e308", "9" * 101):
        with pytest.raises(OutOfRange, match=rf"^{text[:20]} is out of range$"):
            parse_json(f'{{"a": [{text}]}}')
    numbers = parse_json('{"a": [1.5, -2e3, 7, 0, 1e100]}')["a"]
    assert numbers == [1.5, -2000.0, 7, 0, 1e100]
    assert [type(number) for number in numbers] == [float, float, int, int, float]


def test_a_pickle_is_refused_without_a_word_on_how_to_unpickle_it(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        pickle.dump(Path(), file)
    with pytest.raises(ValueError, match=r"^it holds other things than tensors$"):
        load_tensors(tmp_path / "a.pt")
