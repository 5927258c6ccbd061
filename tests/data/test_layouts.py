"""Corpora on disk to sources, against hand-written lists of what each file is."""

import hashlib
import os
from pathlib import Path

import pytest

from data.layouts import Source, corpus_note, read_layout
from stage import StageError

FFPP = {
    "original_sequences/youtube/c23/videos/000.mp4": (0, "youtube", ("000",)),
    "original_sequences/youtube/c40/videos/000.mp4": (0, "youtube", ("000",)),
    "original_sequences/actors/c23/videos/01__exit_phone_room.mp4": (0, "actors", ("actor01",)),
    "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4": (1, "Deepfakes", ("000", "003")),
    "manipulated_sequences/Face2Face/raw/videos/003_000.mp4": (1, "Face2Face", ("003", "000")),
    "manipulated_sequences/SelfBlended/c23/videos/007_007.mp4": (1, "SelfBlended", ("007",)),
    "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__walking__YVGY8LOK.mp4": (
        1,
        "DeepFakeDetection",
        ("actor01", "actor02"),
    ),
}
FFPP_NOT_A_SOURCE = (
    "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
    "manipulated_sequences/Deepfakes/c23/images/000_003.mp4",
    "original_sequences/youtube/c23/videos/notes.txt",
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, layout: str) -> dict[str, tuple[int, str, tuple[str, ...]]]:
    return {source.name: (source.label, source.method, source.identities) for source in read_layout(root, layout)}


@pytest.mark.parametrize("layout", ["ffpp", "auto"])
def test_faceforensics_names_labels_methods_and_identities(tmp_path: Path, layout: str) -> None:
    touch(tmp_path, *FFPP, *FFPP_NOT_A_SOURCE)
    assert found(tmp_path, layout) == FFPP


@pytest.mark.parametrize("layout", ["folder", "auto"])
def test_folder_names_labels_and_identities(tmp_path: Path, layout: str) -> None:
    touch(tmp_path, "real/a.mp4", "real/deep/er/B.MOV", "fake/a.webm", "fake/c.1.mkv", "fake/c.jpg", "other/d.mp4")
    assert found(tmp_path, layout) == {
        "real/a.mp4": (0, "real", ("a",)),
        "real/deep/er/B.MOV": (0, "real", ("B",)),
        "fake/a.webm": (1, "fake", ("a",)),
        "fake/c.1.mkv": (1, "fake", ("c.1",)),
    }


def test_paths_lead_to_the_files_and_come_in_one_order(tmp_path: Path) -> None:
    touch(tmp_path, "real/b.mp4", "real/a.mp4", "fake/c.mp4")
    sources = read_layout(tmp_path, "folder")
    assert [source.path for source in sources] == [tmp_path / n for n in ("real/a.mp4", "real/b.mp4", "fake/c.mp4")]


def test_names_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    touch(tmp_path, *(os.fsdecode(b"manipulated_sequences/M\xfe/c23/videos/%s.mp4" % stem) for stem in (b"\xff", b"1")))
    assert found(tmp_path, "ffpp") == {
        r"manipulated_sequences/M\xfe/c23/videos/\xff.mp4": (1, r"M\xfe", (r"\xff",)),
        r"manipulated_sequences/M\xfe/c23/videos/1.mp4": (1, r"M\xfe", ("1",)),
    }


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("real/plain_007.mp4", "real-plain-007"),
        ("real/a b'\"\n/c.d.mp4", "real-c-d"),
        ("real/日本.mp4", "real-"),
        (f"real/{'x' * 200}.mp4", f"real-{'x' * 40}"),
    ],
)
def test_video_id_is_a_safe_name_with_the_hash_of_the_whole_name(name: str, readable: str) -> None:
    source = Source(Path(name), name, 0, "real", ("x",))
    assert source.video_id == f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def test_video_ids_of_one_stem_differ_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, "real/1/a.mp4", "real/2/a.mp4", "real/a.mp4", "fake/a.mp4")
    assert len({source.video_id for source in read_layout(tmp_path, "folder")}) == 4


def test_a_folder_of_no_known_layout_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "videos/a.mp4")
    with pytest.raises(StageError, match=r"has no known layout: expected original_sequences/ .* or real/ .* --layout"):
        read_layout(tmp_path, "auto")


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"layout 'dfcd' is not known: give auto, .*ffpp.*folder"):
        read_layout(tmp_path, "dfcd")


def test_a_corpus_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(StageError, match=r"a\.mp4 is not a folder: give the folder of a corpus"):
        read_layout(tmp_path / "a.mp4", "auto")


@pytest.mark.parametrize("layout", ["folder", "auto"])
def test_a_corpus_without_videos_says_what_was_looked_for(tmp_path: Path, layout: str) -> None:
    touch(tmp_path, "real/a.jpg")
    with pytest.raises(StageError, match=r"holds no video \(\.avi, .*\.webm\) where the layout 'folder' looks for it"):
        read_layout(tmp_path, layout)


def test_note_of_a_corpus(tmp_path: Path) -> None:
    assert corpus_note(tmp_path) is None
    (tmp_path / "corpus.json").write_text('{"note": "one person only"}')
    assert corpus_note(tmp_path) == "one person only"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'"text"', b"\xff"])
def test_a_malformed_note_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "corpus.json").write_bytes(content)
    with pytest.raises(StageError, match=r'corpus\.json is not of the form \{"note": "\.\.\."\}: mend or remove it'):
        corpus_note(tmp_path)
