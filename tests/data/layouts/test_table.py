"""The layout ``csv`` against hand-written lists."""

from pathlib import Path

import pytest

from data.layouts import Selection, read_sources
from data.layouts.table import csv_layout
from stage import StageError


def table(folder: Path, content: str | bytes) -> Path:
    path = folder / "corpus.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_all_columns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = (
        "\ufefflabel,path,age,Identity, METHOD,split\r\n"
        "real,a.mp4,3,anna,phone,train\r\n"
        "\r\n"
        '1,"deep/b, c.png",,anna; ben;anna,Swap,train\r\n'
        "FAKE,./missing.mp4,,,,\r\n"
        "0,日本.mp4,,,,\r\n"
    )
    sources, notes = read_sources([table(tmp_path, content)], Selection())
    assert [(s.path, s.name, s.label, s.method, s.identities, s.split) for s in sources] == [
        (tmp_path / "a.mp4", "a.mp4", 0, "phone", ("anna",), "train"),
        (tmp_path / "deep/b, c.png", "deep/b, c.png", 1, "Swap", ("anna", "ben"), "train"),
        (tmp_path / "missing.mp4", "missing.mp4", 1, "fake", ("missing",), None),
        (tmp_path / "日本.mp4", "日本.mp4", 0, "real", ("日本",), None),
    ]
    assert "corpus.csv: columns that are not used: age (used are path, label, identity, method, split)" in (
        capfd.readouterr().err
    )
    assert notes[0].startswith("2 of 4 files of the layout csv name no person but their own file name: ")


def test_the_note_lies_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text('{"note": "one person only"}')
    assert read_sources([table(tmp_path, "path,label\na.mp4,real\n")], Selection("csv"))[1] == ["one person only"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: 0 columns named 'path': begin with the line path,label"),
        ("path;label\na.mp4;real\n", "line 1: 0 columns named 'path': begin with the line path,label"),
        ("path,split\na.mp4,train\n", "line 1: 0 columns named 'label': begin with the line path,label"),
        (
            "path,label,split,Split\na.mp4,0,val,test\n",
            "line 1: 2 columns named 'split': begin with the line path,label",
        ),
        ("path,label,label\na.mp4,0,1\n", "line 1: 2 columns named 'label': begin with the line path,label"),
        ("path,label\n", "line 1: no row follows: give one row per file, as a.mp4,real"),
        ("path,label\na.mp4,real\nb.mp4,true\n", "line 3: label 'true' is not known: give real, fake, 0"),
        ("path,label,split\na.mp4,real,dev\n", "line 2: split 'dev' is not known: give train, val, test or nothing"),
        ("path,label\na,b.mp4,real\n", "line 2: 3 cells under 2 columns: put a cell with a comma in quotes"),
        ('path,label\n"a.mp4,real\n', "line 2: unexpected end of data"),
        (f"path,label\n{'a' * 140_000},real\n", "line 2: field larger than field limit"),
        (b"path,label\na.mp4,real\n\xff.mp4,real\n", "line 3: not UTF-8: save it as CSV in UTF-8"),
        (b"\xef\xbb\xbfpath,label\n\xff.mp4,real\n", "line 2: not UTF-8: save it as CSV in UTF-8"),
        ("path,label\na.mp4,real\n./a.mp4,fake\n", "line 3: 'a.mp4' is there a second time: remove one of its rows"),
        ("path,label\n/a.mp4,real\n", "line 2: path '/a.mp4' leads to no file below the csv: put the csv at the top"),
        ("path,label\nx/../a.mp4,real\n", "line 2: path 'x/../a.mp4' has '..' or a zero byte in it: give the way"),
        ("path,label\na\0.mp4,real\n", r"line 2: path 'a\x00.mp4' has '..' or a zero byte in it: give the way"),
        ("path,label\n,real\n", "line 2: path '' leads to no file below the csv: put the csv at the top of the corpus"),
        ("path,label\nout/a.mp4,real\n", "line 2: path 'out/a.mp4' leads to no file below the csv: put the csv"),
        ("path,label\na\0.mp4,real\n", "line 2: "),
        (f"path,label\na.mp4,real\n{'b' * 300}.mp4,real\n", f"line 3: path '{'b' * 40}'...: File name too long"),
    ],
)
def test_malformed_tables_name_line_and_mend(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/out").symlink_to(tmp_path)
    path = table(tmp_path / "corpus", content)
    with pytest.raises(StageError) as error:
        read_sources([path], Selection())
    assert str(error.value).startswith(f"{path}, {message}")


def test_links_within_the_corpus_are_followed(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "link").symlink_to("videos")
    (tmp_path / "loop").symlink_to("loop")
    sources, _ = read_sources([table(tmp_path, "path,label\nlink/a.mp4,real\nloop,fake\n")], Selection())
    assert [source.name for source in sources] == ["link/a.mp4", "loop"]


def test_absolute_paths_below_the_csv_count_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, f"path,label\n{tmp_path}/videos/a.mp4,real\nvideos/b.mp4,fake\n")
    monkeypatch.chdir(tmp_path)
    for csv in sorted(tmp_path.glob("*.csv")) + sorted(Path().glob("*.csv")):
        assert [source.name for source in read_sources([csv], Selection())[0]] == ["videos/a.mp4", "videos/b.mp4"]


def test_absolute_paths_may_name_the_folder_otherwise_than_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, link = tmp_path / "corpus", tmp_path / "link"
    corpus.mkdir()
    link.symlink_to(corpus)
    monkeypatch.chdir(corpus)
    for named, given in ((corpus, link), (link, corpus), (corpus, Path("../corpus")), (tmp_path / "." / "link", link)):
        path = table(corpus, f"path,label\n{named}/videos/a.mp4,real\n")
        assert [source.name for source in csv_layout(given / path.name)] == ["videos/a.mp4"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"is not a file: the layout csv takes the \.csv file of a corpus"):
        read_sources([tmp_path], Selection("csv"))
    with pytest.raises(StageError, match=r"none.csv does not exist: give the folder, or the \.csv file, of a corpus"):
        read_sources([tmp_path / "none.csv"], Selection())
