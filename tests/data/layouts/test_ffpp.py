"""The layout ``ffpp`` against a hand-written list, and its official split."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.layouts import Selection, read_sources
from data.layouts.ffpp import ffpp_layout
from stage import StageError

FFPP = {
    "original_sequences/youtube/c23/videos/000.mp4": (0, "youtube", ("000",)),
    "original_sequences/youtube/c40/videos/000.mp4": (0, "youtube", ("000",)),
    "original_sequences/youtube/c0/videos/000.mp4": (0, "youtube", ("000",)),
    "original_sequences/actors/c23/videos/01__exit_phone_room.mp4": (0, "actors", ("actor01",)),
    "original_sequences/Actors/c23/videos/02__walking.mp4": (0, "Actors", ("actor02",)),
    "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4": (1, "Deepfakes", ("000", "003")),
    "manipulated_sequences/Face2Face/raw/videos/003_000.mp4": (1, "Face2Face", ("003", "000")),
    "manipulated_sequences/SelfBlended/c23/videos/007_007.mp4": (1, "SelfBlended", ("007",)),
    "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__walking__YVGY8LOK.mp4": (
        1,
        "DeepFakeDetection",
        ("actor01", "actor02"),
    ),
}
NOT_A_SOURCE = (
    "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
    "manipulated_sequences/Deepfakes/c23/images/000_003.mp4",
    "manipulated_sequences/Deepfakes/c23/videos/000_003.png",
    "original_sequences/youtube/c23/videos/notes.txt",
)
OFFICIAL = {"train": [["071", "054"], ["087", "081"]], "val": [["720", "672"]], "test": [["953", "974"]]}


def lists(folder: Path, **changed: object) -> Path:
    """Write the three lists of the official split."""
    for split, pairs in (OFFICIAL | changed).items():
        (folder / f"{split}.json").write_text(json.dumps(pairs))
    return folder


def original(number: str) -> str:
    return f"original_sequences/youtube/c23/videos/{number}.mp4"


def swap(pair: str, method: str = "Deepfakes") -> str:
    return f"manipulated_sequences/{method}/c23/videos/{pair}.mp4"


@pytest.mark.parametrize("layout", ["ffpp", "auto"])
def test_names_labels_methods_and_identities(touch: Callable[..., Path], rows: Callable[..., Any], layout: str) -> None:
    assert rows(touch(*FFPP, *NOT_A_SOURCE), layout=layout) == FFPP


@pytest.mark.parametrize(("compression", "folders"), [("c0", ("c0", "raw")), ("c23", ("c23",)), ("c40", ("c40",))])
def test_one_compression(
    touch: Callable[..., Path], rows: Callable[..., Any], compression: str, folders: tuple[str, ...]
) -> None:
    expected = {name: row for name, row in FFPP.items() if name.split("/")[2] in folders}
    assert rows(touch(*FFPP, *NOT_A_SOURCE), compression=compression) == expected


def test_a_compression_that_is_not_there_lists_those_that_are(touch: Callable[..., Path]) -> None:
    root = touch(original("000"), "original_sequences/youtube/raw/videos/000.mp4")
    with pytest.raises(StageError, match=r"no .* video is of --compression c40: give one of c0, c23"):
        read_sources([root], Selection(compression="c40"))


def test_official_split(touch: Callable[..., Path], tmp_path: Path) -> None:
    expected = {
        original("071"): "train",
        swap("071_054"): "train",
        swap("054_071", "Face2Face"): "train",
        swap("081_081", "SelfBlended"): "train",
        original("672"): "val",
        swap("974_953"): "test",
        original("001"): None,
        "original_sequences/actors/c23/videos/01__talking.mp4": None,
        swap("01_02__talking__AAAAAAAA", "DeepFakeDetection"): None,
    }
    sources, _ = read_sources([touch(*expected)], Selection(official_splits=lists(tmp_path)))
    assert {source.name: source.split for source in sources} == expected


@pytest.mark.parametrize(
    ("pair", "where"), [("071_720", "071 in train and 720 in val"), ("001_953", "001 in none and 953 in test")]
)
def test_a_video_of_two_official_splits_is_refused(
    touch: Callable[..., Path], tmp_path: Path, pair: str, where: str
) -> None:
    root = touch(swap("071_054"), swap(pair))
    with pytest.raises(StageError, match=rf"{swap(pair)} has {where} of the official splits: leave it out"):
        read_sources([root], Selection(official_splits=lists(tmp_path)))


@pytest.mark.parametrize("content", [{"071": "054"}, [["071"]], ["071"], [[71, 54]], [["071", "054", "001"]], None])
def test_lists_of_something_else_are_refused(touch: Callable[..., Path], tmp_path: Path, content: object) -> None:
    root = touch(original("071"))
    with pytest.raises(StageError, match=r'val\.json: .* is not a pair like \["071", "054"\]: download the list again'):
        read_sources([root], Selection(official_splits=lists(tmp_path, val=content)))


def test_a_number_in_two_lists_is_refused(touch: Callable[..., Path], tmp_path: Path) -> None:
    folder = lists(tmp_path, test=[["953", "071"]])
    with pytest.raises(StageError, match=r"071 is in train\.json and in test\.json: download the lists again"):
        read_sources([touch(original("071"))], Selection(official_splits=folder))


def test_a_missing_list_is_named(touch: Callable[..., Path], tmp_path: Path) -> None:
    (lists(tmp_path) / "test.json").unlink()
    with pytest.raises(StageError, match=r"test\.json is missing: --official-splits takes the folder"):
        read_sources([touch(original("071"))], Selection(official_splits=tmp_path))


def test_lists_of_other_videos_are_refused(touch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="name none of the videos: give those of FaceForensics"):
        read_sources([touch(original("001"))], Selection(official_splits=lists(tmp_path)))


@pytest.mark.parametrize("stem", ["000 (1)", "000-003", "000_003_c23", "copy"])
def test_names_that_do_not_tell_whose_face_it_is_are_refused(touch: Callable[..., Path], stem: str) -> None:
    root = touch(f"original_sequences/youtube/c23/videos/{stem}.mp4")
    with pytest.raises(StageError, match=rf"{re.escape(stem)}.mp4 is not named like 000 or 000_003, its"):
        ffpp_layout(root)


def test_several_compressions_are_noted_with_their_labels(touch: Callable[..., Path]) -> None:
    root = touch(
        "original_sequences/youtube/c23/videos/000.mp4",
        "original_sequences/youtube/raw/videos/000.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4",
        "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
    )
    (note,) = read_sources([root], Selection())[1]
    assert note.startswith(
        "FaceForensics++ is in several compressions (c0: 1 real and 0 fake, c23: 1 real and 1 fake): "
    )
    assert read_sources([root], Selection(compression="c23"))[1] == []
