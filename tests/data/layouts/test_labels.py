"""What a folder's names and tables say against ``--label``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.layouts import Selection, read_sources
from stage import StageError


def named(root: Path, label: str) -> list[str]:
    return [source.name for source in read_sources([root], Selection(label=label))[0]]


@pytest.mark.parametrize("capitals", [str, str.upper])
@pytest.mark.parametrize(
    "file",
    ["manipulated_sequences/Deepfakes/c23/videos/000_003.mp4", "Celeb-synthesis/id0_id1_0000.mp4", "fake/a.mp4"],
)
def test_folders_of_layouts_are_refused_as_files_of_the_other_label(
    touch: Callable[..., Path], file: str, capitals: Callable[[str], str]
) -> None:
    file = capitals(file)
    root = touch(f"x/{file}", "x/a.mp4", "x/._000.mp4")
    for folder in (root, root / "x", root / "x" / file.split("/")[0]):
        with pytest.raises(
            StageError,
            match=rf"{Path(file).name} lies in a folder {file.split('/')[0]}, and --label real is for files that",
        ):
            named(folder, "real")
    assert named((root / "x" / file).parent, "fake") == [Path(file).name]
    assert len(named(root, "fake")) == 2


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("metadata.json", '{"b.mp4": {"label": "FAKE", "original": null}, "c.mp4": 3}'),
        ("labels.csv", "name,Path, Label\nx,a.mp4,real\nx, ./b.mp4,1\n"),
        ("LABELS.CSV", "path,label\n\udcff,real\nb.mp4,fake\nc.mp4\n" + "x" * 200_000),
    ],
)
def test_tables_that_name_files_of_the_other_label_are_refused(
    touch: Callable[..., Path], table: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = touch("yt/a.mp4", "yt/b.mp4")
    (root / "yt" / table).write_bytes(content.encode("utf-8", "surrogateescape"))
    monkeypatch.chdir(root)
    for folder in (root, root / "yt", root / "yt" / ".." / "yt", Path("yt")):
        with pytest.raises(StageError, match=rf"yt/{table} says that b.mp4 is not real, .*, or move the table out"):
            named(folder, "real")


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("metadata.json", '{"license": "cc", "b.mp4": {"label": "REAL"}}'),
        ("metadata.json", "{"),
        ("metadata.json", "[]"),
        ("labels.csv", "path,label\nb.mp4,real\nb.mp4,0\nb.mp4\n"),
        ("labels.csv", "path,label\nelsewhere/fake.mp4,fake\n/fake.mp4,1\n"),
        ("other.json", '{"fake.mp4": {"label": "FAKE"}}'),
        ("labels.csv", "file,label\nb.mp4,fake\n"),
        ("labels.csv", "\0\udcff"),
        ("labels.csv", ""),
    ],
)
def test_other_tables_are_no_hindrance(touch: Callable[..., Path], table: str, content: str) -> None:
    root = touch("real/a.mp4", "fake.mp4")
    (root / table).write_bytes(content.encode("utf-8", "surrogateescape"))
    (root / "metadata.json").mkdir() if table != "metadata.json" else None
    assert named(root, "real") == ["fake.mp4", "real/a.mp4"]


def test_folders_whose_names_may_tell_the_other_label_are_noted(touch: Callable[..., Path]) -> None:
    root = touch("training_fakes/a.mp4", "FaceSwap-v2/b.mp4", "c/fake.mp4", "Realtors/d.mp4")
    notes = read_sources([root], Selection(label="real"))[1]
    assert (
        "2 files are real by --label, though a folder's name may say otherwise: FaceSwap-v2/b.mp4, "
        "training_fakes/a.mp4." in notes
    )
    assert not any("may say otherwise" in note for note in read_sources([root], Selection(label="fake"))[1])
