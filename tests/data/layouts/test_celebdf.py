"""The layout ``celebdf`` against a hand-written list."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.layouts import Selection, read_sources
from stage import StageError

CELEBDF = {
    "Celeb-real/id0_0000.mp4": (0, "Celeb-real", ("id0",)),
    "Celeb-real/videos/id61_0009.mp4": (0, "Celeb-real", ("id61",)),
    "YouTube-real/00170.mp4": (0, "YouTube-real", ("youtube00170",)),
    "Celeb-synthesis/id0_id1_0000.mp4": (1, "Celeb-synthesis", ("id0", "id1")),
    "Celeb-synthesis/id10_id0_0003.mp4": (1, "Celeb-synthesis", ("id10", "id0")),
}


@pytest.mark.parametrize("layout", ["celebdf", "auto"])
def test_names_labels_methods_and_identities(touch: Callable[..., Path], rows: Callable[..., Any], layout: str) -> None:
    root = touch(*CELEBDF, "Celeb-real/id0_0001.jpg")
    (root / "List_of_testing_videos.txt").write_text("1 YouTube-real/00170.mp4\n")
    assert rows(root, layout=layout) == CELEBDF


@pytest.mark.parametrize("name", ["Celeb-real/id0_id1_0000.mp4", "Celeb-synthesis/id0_0000.mp4", "YouTube-real/a.mp4"])
def test_a_name_that_does_not_tell_its_identities_is_refused(touch: Callable[..., Path], name: str) -> None:
    with pytest.raises(StageError, match=rf"{name} is not named like .*00000?\.mp4, .*: rename or remove it"):
        read_sources([touch(*CELEBDF, name)], Selection())
