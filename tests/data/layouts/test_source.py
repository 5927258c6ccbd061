"""Names, ids and kinds of single files."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.layouts import Selection, Source, read_sources
from data.layouts.source import corpus_json, media
from stage import StageError


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


def test_video_ids_of_one_stem_differ_by_folder(touch: Callable[..., Path]) -> None:
    root = touch("real/1/a.mp4", "real/2/a.mp4", "real/a.mp4", "fake/a.mp4")
    assert len({source.video_id for source in read_sources([root], Selection())[0]}) == 4


@pytest.mark.parametrize(
    ("name", "photo"),
    [("a.jpg", True), ("a.b.JPEG", True), ("a.tif", True), ("a.webp", True), ("a.mp4", False), ("a.webm", False)],
)
def test_photos_are_told_by_their_suffix(name: str, photo: bool) -> None:
    assert Source(Path(name), name, 0, "real", ("a",)).is_photo is photo


def test_media_are_found_below_a_folder_in_one_order(touch: Callable[..., Path]) -> None:
    """But for what macOS leaves beside files on other systems' disks."""
    root = touch("k/b.mp4", "k/a/z.MOV", "k/a.jpg", "k/.c.mp4", "k/._b.mp4", "k/text", "other/d.mp4")
    (root / "k/e.mp4").mkdir()
    assert [name for _, name in media(root, "k")] == ["k/.c.mp4", "k/a/z.MOV", "k/b.mp4", "k/e.mp4"]
    assert [name for _, name in media(root, "k", frozenset({".jpg"}))] == ["k/a.jpg"]
    assert list(media(root, "none")) == []


def test_names_that_are_no_utf8_are_spelled_out(touch: Callable[..., Path], rows: Callable[..., Any]) -> None:
    root = touch(*(os.fsdecode(b"manipulated_sequences/M\xfe/c23/videos/%s.mp4" % stem) for stem in (b"2__\xff", b"1")))
    assert rows(root) == {
        r"manipulated_sequences/M\xfe/c23/videos/2__\xff.mp4": (1, r"M\xfe", ("actor2",)),
        r"manipulated_sequences/M\xfe/c23/videos/1.mp4": (1, r"M\xfe", ("1",)),
    }


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StageError, match=r"a\.json is not JSON \(.+\): mend it or download it again"):
        corpus_json(tmp_path / "a.json")


def test_linked_folders_are_gone_into_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.mp4").touch()
    corpus = tmp_path / "corpus"
    (corpus / "real").mkdir(parents=True)
    (corpus / "real" / "a.mpg").touch()
    (corpus / "real" / "more").symlink_to(tmp_path / "elsewhere")
    (corpus / "real" / "loop").symlink_to(corpus)
    assert [name for _, name in media(corpus)] == ["real/a.mpg", "real/more/b.mp4"]


def test_folders_that_link_to_each_other_are_gone_into_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / "real" / name / f"{name}.mp4").touch()
    (tmp_path / "real/a/to_b").symlink_to("../b")
    (tmp_path / "real/b/to_a").symlink_to("../a")
    assert [name for _, name in media(tmp_path, "real")] == ["real/a/a.mp4", "real/b/b.mp4"]


def test_a_file_that_has_two_names_is_refused(tmp_path: Path) -> None:
    """In two splits it would be trained on and tested with."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.mp4").touch()
    (tmp_path / "real/b.mp4").symlink_to("a.mp4")
    with pytest.raises(StageError, match=r"real/a.mp4 and real/b.mp4 are one file: leave one of them out"):
        read_sources([tmp_path], Selection())


def test_a_file_that_links_make_both_real_and_fake_is_refused(tmp_path: Path) -> None:
    for name in ("real", "fake"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mp4").touch()
    (tmp_path / "real/more").symlink_to("../fake")
    with pytest.raises(StageError, match=r"real/more/fake.mp4 and fake/fake.mp4 are one file, once real and once fake"):
        read_sources([tmp_path], Selection())


def test_files_that_a_layout_reaches_by_links_are_not_called_overlooked(tmp_path: Path) -> None:
    for name, target in (("real", "originals"), ("fake", "swaps")):
        (tmp_path / target).mkdir()
        (tmp_path / target / f"{name}.mp4").touch()
        (tmp_path / name).symlink_to(target)
    sources, notes = read_sources([tmp_path], Selection())
    assert sorted(source.name for source in sources) == ["fake/fake.mp4", "real/real.mp4"]
    assert not [note for note in notes if "were not taken" in note]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.mp4").touch()
    assert any("1 files of" in note and "more/c.mp4" in note for note in read_sources([tmp_path], Selection())[1])
