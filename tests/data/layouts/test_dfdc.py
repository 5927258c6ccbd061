"""The layout ``dfdc`` against hand-written lists."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.layouts import Selection, read_sources
from stage import StageError

PERSONS = (
    "DFDC does not name its actors: its splits share no source video, but the same person may be in several splits."
)


def fake(original: object) -> dict[str, Any]:
    return {"label": "FAKE", "split": "train", "original": original}


REAL = {"label": "REAL", "split": "train"}


def part(folder: Path, entries: object, *files: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(entries))
    for name in files:
        (folder / name).touch()


@pytest.mark.parametrize("layout", ["dfdc", "auto"])
def test_parts_and_originals_in_other_parts(tmp_path: Path, rows: Callable[..., Any], layout: str) -> None:
    part(tmp_path / "dfdc_train_part_0", {"a.mp4": fake("c.mp4"), "b.mp4": REAL}, "a.mp4", "b.mp4")
    part(tmp_path / "dfdc_train_part_1", {"c.mp4": REAL | {"original": None}, "gone.mp4": fake("c.mp4")}, "c.mp4")
    assert rows(tmp_path, layout=layout) == {
        "dfdc_train_part_0/a.mp4": (1, "DFDC", ("c",)),
        "dfdc_train_part_0/b.mp4": (0, "DFDC-original", ("b",)),
        "dfdc_train_part_1/c.mp4": (0, "DFDC-original", ("c",)),
        "dfdc_train_part_1/gone.mp4": (1, "DFDC", ("c",)),
    }
    assert read_sources([tmp_path], Selection(layout))[1] == [PERSONS]


def test_a_single_part(tmp_path: Path, rows: Callable[..., Any]) -> None:
    part(tmp_path, {"a.mp4": fake("b.mp4")}, "a.mp4")
    assert rows(tmp_path) == {"a.mp4": (1, "DFDC", ("b",))}


def test_videos_that_no_metadata_lists_are_noted(tmp_path: Path) -> None:
    part(tmp_path / "p0", {"a.mp4": REAL}, "a.mp4", "b.mp4", "d.MOV", "readme.txt")
    (tmp_path / "p1").mkdir()
    for name in ("a.mp4", "c.mp4"):
        (tmp_path / "p1" / name).touch()
    sources, notes = read_sources([tmp_path], Selection())
    assert [source.name for source in sources] == ["p0/a.mp4"]
    left_out = "DFDC: 4 videos that no metadata.json lists were left out: p0/b.mp4, p0/d.MOV, p1/a.mp4, ...."
    assert notes == [PERSONS, left_out]


def test_videos_of_a_part_that_is_a_link_are_listed(tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    part(tmp_path / "unpacked" / "p0", {"a.mp4": REAL}, "a.mp4", "b.mp4")
    (tmp_path / "p0").symlink_to("unpacked/p0")
    sources, notes = read_sources([tmp_path], Selection(layout="dfdc"))
    assert [source.name for source in sources] == ["p0/a.mp4"]
    assert notes == [PERSONS, "DFDC: 1 videos that no metadata.json lists were left out: unpacked/p0/b.mp4."]


@pytest.mark.parametrize(
    ("video", "entry"),
    [
        ("../a.mp4", REAL),
        ("/a.mp4", REAL),
        ("x/a.mp4", REAL),
        ("..", REAL),
        ("a.txt", REAL),
        ("a\0.mp4", REAL),
        ("\ud800.mp4", REAL),
        ("a.mp4", fake("../b.mp4")),
        ("a.mp4", fake(None)),
        ("a.mp4", {"label": "FAKE"}),
        ("a.mp4", {"label": ["REAL"]}),
        ("a.mp4", {"label": "real"}),
        ("a.mp4", {}),
        ("a.mp4", None),
    ],
)
def test_malformed_entries_are_named(tmp_path: Path, video: str, entry: object) -> None:
    part(tmp_path / "p0", {"good.mp4": REAL, video: entry})
    with pytest.raises(StageError) as error:
        read_sources([tmp_path], Selection())
    start = f"{tmp_path}/p0/metadata.json: entry {video!r} is not of the form "
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(": mend or remove it, or give --layout or --label if this is not DFDC")


@pytest.mark.parametrize("entries", [[], "a.mp4", None])
def test_metadata_that_is_no_object_is_refused(tmp_path: Path, entries: object) -> None:
    part(tmp_path, entries)
    with pytest.raises(StageError, match=r"metadata\.json is not an object of videos: mend it or download it again"):
        read_sources([tmp_path], Selection())


def test_a_corpus_without_metadata_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    part(tmp_path / "deep/er", {"a.mp4": REAL})
    with pytest.raises(
        StageError, match=r"has no metadata\.json in itself or its sub-folders: give the folder of DFDC"
    ):
        read_sources([tmp_path], Selection("dfdc"))
