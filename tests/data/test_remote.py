"""Corpora behind URLs: what lies there must not reach out of where it is read."""

from pathlib import Path

import fsspec
import pytest

from data.picture import UnreadableVideo
from data.remote import PAUSES, at_hand, fetched, place
from stage import StageError


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
        assert shadow.stat().st_size == 70 and (root / "corpus.json").read_bytes() == b'{"note": "n"}'
        assert str(origin(shadow)) == "memory://corpus/real/a.mp4"


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
    with pytest.raises(UnreadableVideo, match="cannot be fetched: no answer"), fetched(place("memory://corpus/a.mp4")):
        pass
    assert len(tries) == 3
    fails = 0
    with pytest.raises(UnreadableVideo, match="there is no such file"), fetched(place("memory://corpus/none.mp4")):
        pass
