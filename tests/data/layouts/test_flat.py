"""Folders of one label, their identities by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.layouts import Selection, read_sources
from stage import StageError


def test_every_video_and_photo_has_the_label_and_its_stem_as_identity(
    touch: Callable[..., Path], rows: Callable[..., Any]
) -> None:
    root = touch("a.png", "deep/b.c.mp4", "notes.txt")
    assert rows(root, label="fake") == {"a.png": (1, "fake", ("a",)), "deep/b.c.mp4": (1, "fake", ("b.c",))}
    assert rows(root, label="real")["a.png"] == (0, "real", ("a",))


@pytest.mark.parametrize(
    ("pattern", "identities"),
    [
        (r"p\d+", {"p1/x_1.mp4": "p1", "p22/x_1.mp4": "p22"}),
        (r"^p(\d+)/", {"p1/x_1.mp4": "1", "p22/x_1.mp4": "22"}),
        (r"(\w)_(\d)", {"p1/x_1.mp4": "x", "p22/x_1.mp4": "x"}),
    ],
)
def test_the_pattern_gives_the_identity(
    touch: Callable[..., Path], rows: Callable[..., Any], pattern: str, identities: dict[str, str]
) -> None:
    found = rows(touch(*identities), label="real", identity_pattern=pattern)
    assert {name: persons for name, (_, _, persons) in found.items()} == {n: (i,) for n, i in identities.items()}


@pytest.mark.parametrize(("pattern", "missed"), [(r"q\d", 2), (r"^(q\d)?", 2), ("q()", 3)])
def test_a_pattern_that_misses_files_names_the_first_and_counts_them(
    touch: Callable[..., Path], pattern: str, missed: int
) -> None:
    root = touch("a.mp4", "b.jpg", "q1.mp4")
    with pytest.raises(StageError, match=rf"finds no identity in a\.mp4 \({missed} of 3 files of .*mend the pattern"):
        read_sources([root], Selection(label="real", identity_pattern=pattern))


def test_a_pattern_that_does_not_compile_is_refused(touch: Callable[..., Path]) -> None:
    with pytest.raises(StageError, match=r"--identity-pattern '\(a' is not a regular expression: missing \)"):
        read_sources([touch("a.mp4")], Selection(label="real", identity_pattern="(a"))
