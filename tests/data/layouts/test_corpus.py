"""Recognition, options, filters and notes of corpora, against hand-written lists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.layouts import Selection, read_sources
from data.layouts.notes import corpus_note
from stage import StageError


def names(root: Path, **options: Any) -> list[str]:
    return [source.name for source in read_sources([root], Selection(**options))[0]]


def test_paths_lead_to_the_files_and_come_in_one_order(touch: Callable[..., Path]) -> None:
    root = touch("real/b.mp4", "real/a.mp4", "fake/c.mp4")
    sources, _ = read_sources([root], Selection("folder"))
    assert [source.path for source in sources] == [root / n for n in ("real/a.mp4", "real/b.mp4", "fake/c.mp4")]


def test_a_name_is_one_person_in_either_unicode_form(touch: Callable[..., Path]) -> None:
    sources, notes = read_sources([touch("real/Jos\u00e9.mp4", "fake/Jose\u0301.mp4")], Selection())
    assert [source.identities for source in sources] == [("Jos\u00e9",)] * 2
    assert sources[0].name != sources[1].name
    assert len(notes) == 1
    assert notes[0].startswith("2 of 2 files of the layout folder name no person but their own file name")


def test_a_folder_of_no_known_layout_is_refused(touch: Callable[..., Path]) -> None:
    root = touch("videos/a.mp4", "real")
    expected = (
        r"has no known layout: expected original_sequences/ or manipulated_sequences/ \(ffpp\), Celeb-real/ .*"
        r"\(celebdf\), real/ or fake/ \(folder\), metadata\.json .*\(dfdc\) or a \.csv file; .* --layout, or .*--label"
    )
    with pytest.raises(StageError, match=expected):
        names(root)


def test_folders_within_that_have_a_layout_are_named(touch: Callable[..., Path]) -> None:
    root = touch("test/fake/b.mp4", "train/real/a.mp4", "yt/c.mp4")
    expected = r"--layout, or give what has one, .*/test \(folder\), .*/train \(folder\)$"
    with pytest.raises(StageError, match=expected):
        names(root)


def test_one_of_two_folders_that_a_layout_names_leads_to_the_one_above(touch: Callable[..., Path]) -> None:
    root = touch("real/a.mp4", "fake/b.mp4", "mine/c.mp4")
    with pytest.raises(StageError, match=r"--layout, or give the folder above it \(folder\), or --label for a folder"):
        names(root / "real")
    with pytest.raises(StageError, match=r"--layout, or give --label for a folder of one label$"):
        names(root / "mine")


def test_folders_that_a_layout_names_but_for_capitals_are_named(touch: Callable[..., Path]) -> None:
    expected = r"has no known layout: FAKE must be named fake; Real must be named real$"
    with pytest.raises(StageError, match=expected):
        names(touch("Real/a.mp4", "FAKE/b.mp4"))


def test_a_corpus_that_is_no_folder_is_refused(touch: Callable[..., Path]) -> None:
    root = touch("a.mp4", "a.csv")
    for name, options in (("a.mp4", {}), ("a.csv", {"label": "real"}), ("a.csv", {"layout": "ffpp"})):
        with pytest.raises(
            StageError, match=rf"{name} is not a folder: give the folder of a corpus \(detect scores single files\)"
        ):
            names(root / name, **options)


@pytest.mark.parametrize(
    ("options", "looked_for"),
    [
        ({"layout": "folder"}, r"video \(\.3g2, .*\.wmv\) or photo \(\.bmp, .*\.webp\) where the layout folder"),
        ({"label": "fake"}, r"video \(\.3g2, .*\.wmv\) or photo \(\.bmp, .*\.webp\) where a folder without a layout"),
        ({"layout": "celebdf"}, r"video \(\.3g2, .*\.wmv\) where the layout celebdf"),
    ],
)
def test_a_corpus_without_files_says_what_was_looked_for(
    touch: Callable[..., Path], options: dict[str, str], looked_for: str
) -> None:
    with pytest.raises(StageError, match=rf"holds no {looked_for} has it"):
        names(touch("a/a.txt"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "dfcd"}, r"layout 'dfcd' is not known: give auto, ffpp or .*folder or dfdc or csv"),
        ({"label": "true"}, "--label 'true' is not known: give real or fake"),
        ({"label": "fake", "layout": "ffpp"}, "--label fake and --layout ffpp: a layout has its own labels, give one"),
        (
            {"identity_pattern": "a"},
            "--identity-pattern is for folders with --label: a layout has its own identities; a .csv file ",
        ),
        ({"max_videos": 0}, "--max-videos 0: give at least 1"),
        ({"compression": "c1"}, "--compression 'c1' is not known: give c0, c23, c40"),
    ],
)
def test_options_that_are_not_legal_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        Selection(**options)


@pytest.mark.parametrize("options", [{"compression": "c23"}, {"official_splits": Path("lists")}])
def test_options_of_faceforensics_need_it(touch: Callable[..., Path], options: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="--compression and --official-splits are for FaceForensics"):
        names(touch("real/a.mp4"), **options)


def test_one_store_of_several_corpora(tmp_path: Path, touch: Callable[..., Path]) -> None:
    touch("one/real/a.mp4", "two/Celeb-real/id0_0000.mp4", "three/metadata.json")
    (tmp_path / "three/metadata.json").write_text('{"b.mp4": {"label": "REAL"}}')
    (tmp_path / "one/corpus.json").write_text('{"note": "same"}')
    (tmp_path / "two/corpus.json").write_text('{"note": "same"}')
    sources, notes = read_sources([tmp_path / name for name in ("one", "two", "three")], Selection())
    assert [source.name for source in sources] == ["real/a.mp4", "Celeb-real/id0_0000.mp4", "b.mp4"]
    assert notes[0] == "same"
    assert [note[:23] for note in notes[1:]] == ["DFDC does not name its "]


def test_a_name_in_two_corpora_is_refused(tmp_path: Path, touch: Callable[..., Path]) -> None:
    touch("one/real/a.mp4", "one/real/b.mp4", "two/real/b.mp4")
    with pytest.raises(StageError, match=r"^real/b\.mp4 is in two of the given sources, or in one under"):
        read_sources([tmp_path / "one", tmp_path / "two"], Selection())


def test_methods(touch: Callable[..., Path]) -> None:
    root = touch("real/a.mp4", "fake/a.mp4", "fake/b.mp4")
    assert names(root, methods="fake") == ["fake/a.mp4", "fake/b.mp4"]
    assert names(root, methods="fake, real") == ["real/a.mp4", "fake/a.mp4", "fake/b.mp4"]
    assert read_sources([root], Selection(methods="real"))[1][-1:] == ["1 of 3 files were taken (--methods real)."]


@pytest.mark.parametrize("methods", ["Deepfakes", "real,Deepfakes", "real,", ""])
def test_a_method_that_is_not_there_lists_those_that_are(touch: Callable[..., Path], methods: str) -> None:
    with pytest.raises(
        StageError, match=r"--methods: '(Deepfakes)?' is not there: give some of fake \(2\), real \(1\)"
    ):
        names(touch("real/a.mp4", "fake/a.mp4", "fake/b.mp4"), methods=methods)


def test_max_videos_keeps_the_same_pairs_of_every_method(touch: Callable[..., Path]) -> None:
    originals = [f"original_sequences/youtube/c23/videos/{n:03d}.mp4" for n in range(10)]
    swaps = [
        f"manipulated_sequences/{method}/c23/videos/{n:03d}_{n ^ 1:03d}.mp4"
        for method in ("Deepfakes", "FaceSwap")
        for n in range(10)
    ]
    few = "manipulated_sequences/FaceShifter/c23/videos/000_001.mp4"
    root = touch(*originals, *swaps, few)
    sources, notes = read_sources([root], Selection(max_videos=4))
    kept = {method: [s.identities[0] for s in sources if s.method == method] for method in ("youtube", "FaceSwap")}
    assert kept == {"youtube": ["000", "003", "006", "009"], "FaceSwap": ["000", "003", "006", "009"]}
    assert [source.name for source in sources if source.method == "FaceShifter"] == [few]
    assert notes == ["13 of 31 files were taken (--max-videos 4)."]


def test_max_videos_does_not_depend_on_the_order_of_a_table(tmp_path: Path) -> None:
    rows = [f"{n}.mp4,real\n" for n in "abcdefg"]
    kept = []
    for order in (rows, rows[::-1]):
        (tmp_path / "t.csv").write_text("path,label\n" + "".join(order))
        kept.append(sorted(names(tmp_path / "t.csv", max_videos=3)))
    assert kept == [["a.mp4", "d.mp4", "g.mp4"]] * 2


def test_note_of_a_corpus(tmp_path: Path) -> None:
    assert corpus_note(tmp_path) is None
    (tmp_path / "corpus.json").write_text('{"note": "one person only"}')
    assert corpus_note(tmp_path) == "one person only"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'"text"', b"\xff", b'{"note": 3}', b'{"note": "half \\ud83d"}']
)
def test_a_malformed_note_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "corpus.json").write_bytes(content)
    with pytest.raises(StageError, match=r'corpus\.json is not of the form \{"note": "\.\.\."\}: mend or remove it'):
        corpus_note(tmp_path)


def test_videos_and_photos_that_a_layout_does_not_take_are_noted(
    touch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = touch("real/a.mp4", "fake/b.mp4", "real/c.heic", "extra/d.mp4", "real/e.3GPP", "real/notes.txt", "real/.x.y")
    _, notes = read_sources([root], Selection())
    monkeypatch.chdir(root)
    assert read_sources([Path()], Selection())[1] == notes
    assert notes[-1:] == [
        f"3 files of {root.name} were not taken: their folder or suffix is none that its layout reads: extra/d.mp4, "
        "real/c.heic, real/e.3GPP."
    ]


NAMELESS = "name no person but their own file name: a person who is in several of them may be in several splits."


def test_persons_who_are_known_by_file_names_alone_are_noted(touch: Callable[..., Path]) -> None:
    root = touch("real/a.mp4", "real/b.mp4", "fake/a.mp4", "fake/a_swap.mp4", "fake/c.mp4")
    assert read_sources([root], Selection())[1] == [
        f"5 of 5 files of the layout folder {NAMELESS} A .csv file (path,label,identity) in place of the folder names "
        "persons.",
        "2 fakes of the layout folder have the name of no real file: they may be in another split than their original.",
    ]
    assert read_sources([root / "real"], Selection(label="real"))[1] == [
        f"2 of 2 files of a folder without a layout {NAMELESS} --identity-pattern names persons."
    ]
    assert read_sources([root], Selection(max_videos=1))[1][:2] == [
        f"2 of 2 files of the layout folder {NAMELESS} A .csv file (path,label,identity) in place of the folder names "
        "persons.",
        "2 of 5 files were taken (--max-videos 1).",
    ]
    assert read_sources([root / "real"], Selection(label="real", identity_pattern="(.)"))[1] == []


def test_a_table_that_names_persons_or_splits_and_a_corpus_that_describes_itself_need_no_such_note(
    touch: Callable[..., Path],
) -> None:
    root = touch("a.mp4", "b.mp4")
    table = root / "corpus.csv"
    table.write_text("path,label,identity\na.mp4,real,anna\nb.mp4,fake,\n")
    assert read_sources([table], Selection())[1][0] == (
        f"1 of 2 files of the layout csv {NAMELESS} Its column identity, filled in otherwise, names persons."
    )
    table.write_text("path,label,identity\na.mp4,real,anna\nb.mp4,fake,anna\n")
    assert read_sources([table], Selection())[1] == []
    table.write_text("path,label,split\na.mp4,real,train\nb.mp4,fake,test\n")
    assert read_sources([table], Selection())[1] == []
    table.write_text("path,label\na.mp4,real\nb.mp4,fake\n")
    (root / "corpus.json").write_text('{"note": "One person."}')
    assert read_sources([table], Selection())[1] == ["One person."]
