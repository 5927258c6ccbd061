"""Corpora as users have them: whatever a list or a folder holds, it is read or refused with one line."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.layouts import Selection, read_sources
from data.layouts.corpus import LAYOUTS
from data.layouts.notes import corpus_note
from tests.spoiling import TRICKS, one_line, spoiled_bytes, spoiled_json

ROWS = (
    "path,label,identity,method,split\n"
    "a.mp4,real,anna,camera,train\n"
    'sub/b.mp4,fake,anna;bert,"swap, fast",test\n'
    "c.mp4,1,,,\n"
)
METADATA = {"a.mp4": {"label": "REAL", "split": "train"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}}
PAIRS = [["071", "054"], ["054", "071"]]
TREES = {
    "ffpp": ("original_sequences/youtube/c23/videos", "manipulated_sequences/Deepfakes/c23/videos"),
    "celebdf": ("Celeb-real", "Celeb-synthesis", "YouTube-real"),
    "folder": ("real", "fake"),
}
NAMES = {
    "ffpp": ("071.mp4", "071_054.mp4", "01__hugging_happy.mp4", "01_02__talking__ABC.mp4"),
    "celebdf": ("id0_0001.mp4", "id0_id1_0001.mp4", "00012.mp4"),
    "folder": ("a.mp4", "b.jpg"),
}


def use(root: Path, **selection: object) -> None:
    """Read a corpus as ``prepare`` does; each file lies below it and is named once."""
    sources, _ = read_sources([root], Selection(**selection))
    folder = root if root.is_dir() else root.parent
    assert len({source.video_id for source in sources}) == len(sources)
    for source in sources:
        assert Path(os.path.realpath(source.path)).is_relative_to(os.path.realpath(folder))
        assert source.label in (0, 1)
        assert source.identities


@given(data=st.data())
def test_tables(tmp_path_factory, data):
    table = tmp_path_factory.getbasetemp() / "table" / "corpus.csv"
    table.parent.mkdir(exist_ok=True)
    text = ROWS.encode()
    if data.draw(st.booleans()):
        old, new = data.draw(st.sampled_from(ROWS.replace("\n", ",").split(","))), data.draw(st.sampled_from(TRICKS))
        text = ROWS.replace(old or "a", new).encode(errors="surrogatepass")
    table.write_bytes(data.draw(spoiled_bytes(text)) if data.draw(st.booleans()) else text)
    with one_line():
        use(table)


@given(data=st.data())
def test_metadata_of_dfdc(tmp_path_factory, data):
    part = tmp_path_factory.getbasetemp() / "dfdc" / "dfdc_train_part_0"
    part.mkdir(parents=True, exist_ok=True)
    (part / "metadata.json").write_text(data.draw(spoiled_json(json.dumps(METADATA))))
    with one_line():
        use(part.parent, layout="dfdc")


@given(data=st.data())
def test_official_splits(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "ffpp"
    for folder in TREES["ffpp"]:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / TREES["ffpp"][0] / "071.mp4").touch()
    (root / TREES["ffpp"][1] / "071_054.mp4").touch()
    for split, pairs in {"train": PAIRS, "val": [["1", "2"]], "test": []}.items():
        (root / f"{split}.json").write_text(json.dumps(pairs))
    spoilt = data.draw(st.sampled_from(("train", "val", "test")))
    (root / f"{spoilt}.json").write_text(data.draw(spoiled_json(json.dumps(PAIRS))))
    with one_line():
        use(root, layout="ffpp", official_splits=root)


@given(data=st.data())
def test_notes(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp()
    (root / "corpus.json").write_text(data.draw(spoiled_json(json.dumps({"note": "All is drawn."}))))
    with one_line():
        note = corpus_note(root)
        assert note is None or isinstance(note, str)


def legal(name: str) -> bool:
    """Tell whether a file system takes a name."""
    return bool(name.strip(".")) and not {"/", "\0"} & set(name) and len(os.fsencode(name)) < 200


strange = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(legal)


@pytest.mark.parametrize("layout", TREES)
@given(data=st.data())
def test_folders(tmp_path_factory, layout, data):
    root = tmp_path_factory.mktemp(layout)
    for folder in TREES[layout]:
        (root / folder).mkdir(parents=True)
        for name in data.draw(st.lists(st.sampled_from(NAMES[layout]) | strange, max_size=3)):
            place = root / folder / (name if "." in name else f"{name}.mp4")
            match data.draw(st.sampled_from(("file", "file", "folder", "link"))):
                case _ if os.path.lexists(place):
                    pass
                case "file":
                    place.touch()
                case "folder":
                    place.mkdir()
                case "link":
                    place.symlink_to(root / "nowhere")
    with one_line():
        use(root, layout=data.draw(st.sampled_from((layout, "auto"))))
    with one_line():
        use(root, label="real", identity_pattern=data.draw(st.sampled_from((None, r"(\w+)", "a", "(", ""))))


def test_all_layouts_are_spoilt():
    assert set(LAYOUTS) == {*TREES, "dfdc", "csv"}
