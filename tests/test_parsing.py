"""What users' files may hold, and what is refused."""

import os
import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel

from parsing import OutOfRange, card_licence, load_tensors, parse_json, read_json, shown
from stage import StageError


def test_json_has_no_infinities_and_no_numbers_of_which_two_overflow(tmp_path: Path) -> None:
    for text in ("NaN", "-Infinity", "1e999", "-1e308", "9" * 101):
        with pytest.raises(OutOfRange, match=rf"^{text[:20]} is out of range$"):
            parse_json(f'{{"a": [{text}]}}')
    numbers = parse_json('{"a": [1.5, -2e3, 7, 0, 1e100]}')["a"]
    assert numbers == [1.5, -2000.0, 7, 0, 1e100]
    assert [type(number) for number in numbers] == [float, float, int, int, float]


def test_no_run_or_bundle_is_read_under_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    folder.mkdir()
    (folder / "a.json").write_text('{"schema_version": 1}')
    with pytest.raises(StageError, match=r"^.+/run\\xff/a\.json is not valid UTF-8: rename it"):
        read_json(folder / "a.json", BaseModel, 1, "no file")


def test_a_pickle_is_refused_without_a_word_on_how_to_unpickle_it(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        pickle.dump(Path(), file)
    with pytest.raises(ValueError, match=r"^it holds other things than tensors$"):
        load_tensors(tmp_path / "a.pt")


def test_a_number_in_quotes_is_no_number(tmp_path: Path) -> None:
    class Figures(BaseModel):
        schema_version: int
        share: float
        pair: tuple[int, float]

    for text, expected in (('"inf"', None), ('"0.5"', None), ("1", 1.0), ("0.5", 0.5)):
        (tmp_path / "a.json").write_text(f'{{"schema_version": 1, "share": {text}, "pair": [1, 2]}}')
        if expected is None:
            with pytest.raises(StageError, match=r"a\.json is not valid: share: "):
                read_json(tmp_path / "a.json", Figures, 1, "missing")
        else:
            assert read_json(tmp_path / "a.json", Figures, 1, "missing").share == expected


def test_the_password_in_a_url_is_not_shown() -> None:
    assert shown("https://user:secret@host.org/a@b.mp4") == "https://host.org/a@b.mp4"
    assert shown("s3://bucket/a.mp4") == "s3://bucket/a.mp4"
    assert shown(Path("a/user:x@b.mp4")) == "a/user:x@b.mp4"


@pytest.mark.parametrize(
    ("front_matter", "licence"),
    [
        ("license: mit", "mit"),
        ("license:\n- mit\n- apache-2.0", "mit, apache-2.0"),
        ("license: {a: b}", "unknown (the model card names none)"),
        ("tags: []", "unknown (the model card names none)"),
    ],
)
def test_the_licence_of_a_model_card(tmp_path: Path, front_matter: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    assert card_licence(tmp_path) == licence
