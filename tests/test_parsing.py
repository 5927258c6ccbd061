"""What users' files may hold, and what is refused."""

import pickle
from pathlib import Path

import pytest

from parsing import NotFinite, load_tensors, parse_json


def test_json_has_no_infinities(tmp_path: Path) -> None:
    for text in ("NaN", "-Infinity", "1e999"):
        with pytest.raises(NotFinite, match=rf"^{text} is no number$"):
            parse_json(f'{{"a": [{text}]}}')
    assert parse_json('{"a": [1.5, -2e3, 7]}') == {"a": [1.5, -2000.0, 7]}


def test_a_pickle_is_refused_without_a_word_on_how_to_unpickle_it(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        pickle.dump(Path(), file)
    with pytest.raises(ValueError, match=r"^it holds other things than tensors$"):
        load_tensors(tmp_path / "a.pt")
