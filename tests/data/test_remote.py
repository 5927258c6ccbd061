"""Corpora behind URLs: what lies there must not reach out of where it is read."""

import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from data.crops import CropRule
from data.layouts import Source
from data.layouts.notes import corpus_note
from data.modalities import Modalities
from data.picture import UnreadableVideo
from data.prepare import prepare
from data.prepare_video import Recipe, prepare_video
from data.remote import PAUSES, NotFetched, _table_and_note, at_hand, fetched, place, refuse_occupied, upload
from data.settings import StoreSettings
from stage import StageError
from tests.data.commands import files


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    files = fsspec.filesystem("memory")
    files.store.clear()
    return files


def test_a_name_that_leads_out_of_the_corpus_is_refused(memory: fsspec.AbstractFileSystem) -> None:
    memory.store["/corpus/../../evil.json"] = memory.store["/corpus/real/a.mp4"] = None
    memory.pipe({"/corpus/real/a.mp4": b"x"})
    memory.store["/corpus/../../evil.json"] = memory.store["/corpus/real/a.mp4"]
    with (
        pytest.raises(StageError, match=r"/corpus/\.\./\.\./evil\.json leads out of memory:///?corpus: remove it"),
        at_hand([place("memory://corpus")]),
    ):
        pass


def test_the_shadow_of_a_corpus_has_its_names_and_sizes_and_leads_back(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/corpus/real/a.mp4": b"x" * 70, "/corpus/corpus.json": b'{"note": "n"}'})
    with at_hand([place("memory://corpus")]) as ((root,), origin):
        shadow = root / "real" / "a.mp4"
        assert (root.name, str(origin(root))) == ("corpus", "memory://corpus")
        assert shadow.stat().st_size == 70 and (root / "corpus.json").read_bytes() == b'{"note": "n"}'
        assert str(origin(shadow)) == "memory://corpus/real/a.mp4"


def test_the_url_of_one_file_is_said_to_be_no_folder(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/corpus/a.mp4": b"x" * 70})
    with (
        pytest.raises(StageError, match=r"memory://corpus/a\.mp4 is not a folder: give the folder of a corpus"),
        at_hand([place("memory://corpus/a.mp4")]),
    ):
        pass


def test_marks_of_folders_are_no_files(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/corpus/real/a.mp4": b"x" * 70})
    listed = {"/corpus/": 0, "/corpus": 0, "/corpus/real/": 0, "/corpus/real": 0, "/corpus/real/a.mp4": 70}
    found = {path: {"size": size, "type": "file"} for path, size in listed.items()}  # as s3fs does
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: found)
    with at_hand([place("memory://corpus")]) as ((root,), _):
        assert [path.name for path in root.rglob("*") if path.is_file()] == ["a.mp4"]


def test_an_interrupted_upload_goes_on(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"clips/a.parquet": b"aa", "clips/b.parquet": b"bb", "store.json": b"{}", "videos.parquet": b"v"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    left = {"videos.parquet": b"v", "clips/a.parquet": b"aa", "clips/b.parquet": b"b"}  # the last came in half
    memory.pipe({f"/out/{name}": content for name, content in left.items()})
    sent, put_file = [], type(memory).put_file

    def put(self: object, path: str, *args: object) -> object:
        sent.append(Path(path).name)
        return put_file(self, path, *args)

    monkeypatch.setattr(type(memory), "put_file", put)
    upload(tmp_path, place("memory://out"))
    assert sent == ["b.parquet", "store.json"]
    assert {name: memory.cat(f"/out/{name}") for name in files} == files


@pytest.mark.parametrize(
    "there",
    [
        {"videos.parquet": b"of another store", "clips/a.parquet": b"no"},
        {"clips/a.parquet": b"no"},
        {"videos.parquet": b"v", "store.json": b"{}"},
    ],
)
def test_an_upload_mixes_with_nothing_that_is_there(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, there: dict[str, bytes]
) -> None:
    for name, content in {"a.parquet": b"aa", "store.json": b"{}", "videos.parquet": b"v"}.items():
        (tmp_path / name).write_bytes(content)
    memory.pipe({f"/out/{name}": content for name, content in there.items()})
    with pytest.raises(StageError, match=r"memory:///?out already exists: remove it or give another --out"):
        upload(tmp_path, place("memory://out"))
    assert {name: memory.cat(f"/out/{name}") for name in there} == there


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://[::1", "cannot be reached: "),
        ("nothing://x", "cannot be reached: "),
        ("data://x", "is not the URL of a file or folder"),
    ],
)
def test_what_is_no_url_is_one_line(url: str, message: str) -> None:
    with pytest.raises(StageError, match=re.escape(f"{url} {message}")):
        place(url)


def test_the_top_of_a_file_system_is_no_place_for_a_store(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="names no folder: give one below it"):
        refuse_occupied(place("memory://"), tmp_path)


def test_a_file_that_does_not_come_at_once_is_tried_again(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe({"/corpus/a.mp4": b"film"})
    tries, slept = [], []
    get_file = type(memory).get_file

    def sometimes(self: object, *args: object) -> object:
        tries.append(args)
        if len(tries) < fails:
            raise TimeoutError("no answer")
        return get_file(self, *args)

    monkeypatch.setattr(type(memory), "get_file", sometimes)
    monkeypatch.setattr("data.remote.time.sleep", slept.append)
    fails = 3
    with fetched(place("memory://corpus/a.mp4")) as copy:
        assert Path(copy).read_bytes() == b"film"
    assert slept == list(PAUSES)
    fails, tries[:] = 99, []
    with pytest.raises(NotFetched, match="cannot be fetched: no answer"), fetched(place("memory://corpus/a.mp4")):
        pass
    assert len(tries) == 3
    fails = 0
    with pytest.raises(UnreadableVideo, match="there is no such file"), fetched(place("memory://corpus/none.mp4")):
        pass


def test_a_table_comes_with_what_its_corpus_says_of_itself(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/corpus/t.csv": b"path,label", "/corpus/corpus.json": b'{"note": "n"}', "/corpus/a.mp4": b"x"})
    with at_hand([place("memory://corpus/t.csv")]) as ((table,), _):
        assert sorted(path.name for path in table.parent.iterdir()) == ["corpus.json", "t.csv"]
        assert corpus_note(table.parent) == "n"


def test_a_web_server_that_tells_no_sizes_and_whose_addresses_have_two_slashes(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe({"/corpus/real/a.mp4": b"film", "/corpus/fake/b.mp4": b"film", "/corpus/corpus.json": b'{"note": "n"}'})
    find = type(memory).find

    def without_sizes(self: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return {path: info | {"size": None} for path, info in find(self, *args, **options).items()}

    monkeypatch.setattr(type(memory), "find", without_sizes)
    with at_hand([place("memory://corpus")]) as ((root,), _):
        assert sorted(path.stat().st_size for path in root.rglob("*.mp4")) == [0, 0]
        assert corpus_note(root) == "n"
    asked: list[str] = []
    server = SimpleNamespace(info=lambda path: {"size": 1}, exists=lambda path: not asked.append(path))
    table = SimpleNamespace(path="https://host/c/corpus.csv", fs=server)
    assert list(_table_and_note(table)) == ["https://host/c/corpus.csv", "https://host/c/corpus.json"] and asked


def test_a_table_at_the_top_of_an_archive_comes_with_what_its_corpus_says_of_itself(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("t.csv", "path,label\na.mp4,real\n"), archive.writestr("a.mp4", "film")
        archive.writestr("corpus.json", '{"note": "n"}')
    with at_hand([place(f"zip://t.csv::{tmp_path}/a.zip")]) as ((table,), _):
        assert corpus_note(table.parent) == "n"


def test_prepare_stops_where_the_way_to_a_file_is_broken_and_does_not_blame_the_file(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe({"/corpus/a.mp4": b"film"})
    monkeypatch.setattr("data.remote.time.sleep", lambda _: None)
    monkeypatch.setattr(type(memory), "get_file", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
    settings = StoreSettings(
        frames=4, crop=CropRule(size=32), ratios=(1.0, 0.0, 0.0), seed=0, sources_sha256="", clips_per_video=1
    )
    source = Source(place("memory://corpus/a.mp4"), "a.mp4", 0, "none", ("a",))
    with pytest.raises(StageError, match=r"a.mp4 cannot be fetched: no answer: what is done is kept, call the command"):
        prepare_video(source, "train", Recipe(settings, Modalities()), print)


def test_a_corpus_and_a_store_behind_urls_are_those_of_a_disk(
    memory: fsspec.AbstractFileSystem, demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.journal.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
    monkeypatch.chdir(tmp_path)  # where the store for a URL is made
    below = demo_corpus / "original_sequences/youtube/c23/videos"
    videos = sorted(below.glob("*.mp4"))[:3]
    for video in videos:
        memory.pipe(f"/corpus/real/{video.name}", video.read_bytes())
        (tmp_path / "corpus" / "real").mkdir(parents=True, exist_ok=True)
        shutil.copy(video, tmp_path / "corpus" / "real")
    options = {"frames": 4, "size": 64, "ratios": "0,0,1"}
    prepare([place("memory://corpus")], place("memory://stores/mine"), **options)
    prepare([tmp_path / "corpus"], tmp_path / "store", **options)
    there = "/stores/mine/"
    uploaded = {path.removeprefix(there): memory.cat_file(path) for path in memory.store if path.startswith(there)}
    assert uploaded == files(tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store"]
    with pytest.raises(StageError, match=r"memory://stores/mine already exists: remove it or give another --out"):
        prepare([place("memory://corpus")], place("memory://stores/mine"), **options)
