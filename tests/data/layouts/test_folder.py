"""The layout ``folder`` against a hand-written list."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("layout", ["folder", "auto"])
def test_names_labels_and_identities(touch: Callable[..., Path], rows: Callable[..., Any], layout: str) -> None:
    root = touch(
        "real/a.mp4", "real/deep/er/B.MOV", "fake/a.webm", "fake/c.1.mkv", "fake/c.JPG", "fake/n.txt", "other/d.mp4"
    )
    assert rows(root, layout=layout) == {
        "real/a.mp4": (0, "real", ("a",)),
        "real/deep/er/B.MOV": (0, "real", ("B",)),
        "fake/a.webm": (1, "fake", ("a",)),
        "fake/c.1.mkv": (1, "fake", ("c.1",)),
        "fake/c.JPG": (1, "fake", ("c",)),
    }
