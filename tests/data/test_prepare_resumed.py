"""``prepare`` that was killed or stopped: it goes on, and ends as if never interrupted."""

import json
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from data.cluster import refuse_not_shared
from data.journal import KILLER as KILLED
from data.journal import Journal
from data.layouts.source import Source
from data.parquet import Row
from data.prepare import _prepare_on_cluster, prepare
from data.prepare_video import Recipe, prepare_video
from data.store import ClipStore
from data.unfinished import Unfinished
from processes import WorkerDied
from stage import StageError
from tests.data.commands import ROOT, command, files, made


@pytest.fixture(scope="module")
def killed(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that was killed after its second video left behind."""
    out = tmp_path_factory.mktemp("killed") / "store"
    unfinished = out.with_name(".store.unfinished")
    with subprocess.Popen(command(small_corpus, out), cwd=ROOT) as run:
        while len(list(unfinished.glob("rows/*.json"))) < 2:
            assert run.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert len(list(unfinished.glob("rows/*.json"))) < 8
    return unfinished


@pytest.fixture
def resumable(killed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(killed, tmp_path / ".store.unfinished")


def test_a_killed_run_ends_as_if_never_killed(small_corpus: Path, whole: dict[str, bytes], resumable: Path) -> None:
    done = {path: path.stat().st_mtime_ns for path in resumable.glob("rows/*.json")}
    kept = {json.loads(path.read_text())["video_id"] for path in done}
    clips = {path.stem: path.stat().st_mtime_ns for path in resumable.glob("clips/*.parquet") if path.stem in kept}
    out = resumable.with_name("store")
    made(small_corpus, out)
    assert files(out) == whole
    assert not resumable.exists()
    assert {path.stem: path.stat().st_mtime_ns for path in out.glob("clips/*") if path.stem in kept} == clips


def test_a_file_that_changed_since_it_was_done_is_done_again(
    small_corpus: Path, resumable: Path, tmp_path: Path
) -> None:
    (done,) = [path for path in sorted(resumable.glob("rows/*.json")) if json.loads(path.read_text())["clips"]][:1]
    clips = resumable / "clips" / f"{done.stem}.parquet"
    before = clips.stat().st_mtime_ns
    source = small_corpus / json.loads(done.read_text())["path"]
    old = source.stat()
    os.utime(source)
    try:
        made(small_corpus, resumable.with_name("store"))
    finally:
        os.utime(source, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (tmp_path / "store" / "clips" / clips.name).stat().st_mtime_ns > before


def test_clips_of_a_file_that_was_replaced_by_one_without_a_face_are_not_kept(
    small_corpus: Path, resumable: Path, tmp_path: Path
) -> None:
    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    (done,) = [path for path in sorted(resumable.glob("rows/*.json")) if json.loads(path.read_text())["clips"]][:1]
    assert (resumable / "clips" / f"{done.stem}.parquet").exists()
    source = corpus / json.loads(done.read_text())["path"]
    source.write_bytes(bytes(source.stat().st_size))
    info = made(corpus, tmp_path / "store")
    assert info.videos["unreadable"] == 1
    assert len(list((tmp_path / "store/clips").iterdir())) == info.videos["ok"]


def test_files_that_go_away_meanwhile_stop_it_and_what_is_done_is_kept(
    demo_control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out, done = tmp_path / "corpus", tmp_path / "store", []
    shutil.copytree(demo_control / "real", corpus / "real")

    def one_and_then_away(function: Callable[..., object], jobs: Iterable[tuple[Any, ...]], *_: object) -> None:
        for job in jobs:
            function(*job)
            done.append(job[0].name)
            corpus.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("data.journal.in_processes", one_and_then_away)
    options = {"label": "real", "frames": 2, "size": 32}
    with pytest.raises(StageError, match=r"is no longer there: what is done is kept, call the command again to go on"):
        prepare([corpus], out, **options)
    assert len(done) == 1 and not out.exists()
    (tmp_path / "elsewhere").rename(corpus)
    monkeypatch.undo()
    info = prepare([corpus], out, **options)
    assert info.videos["ok"] == sum(info.videos.values()) > 1


def test_a_video_that_goes_away_while_it_is_read_is_not_done(
    demo_control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "store"
    shutil.copytree(demo_control / "real", corpus / "real")
    whole = prepare([corpus], tmp_path / "whole", label="real", frames=2, size=32)
    begun: list[tuple[Source, str, Recipe]] = []

    def read_until_it_was_gone(source: Source, split: str, recipe: Recipe, write: Callable[[Row], None]) -> Row:
        begun.append((source, split, recipe))
        row = prepare_video(source, split, recipe, write)
        corpus.rename(tmp_path / "elsewhere")
        return row

    monkeypatch.setattr("data.prepare.prepare_video", read_until_it_was_gone)
    monkeypatch.setattr("data.journal.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
    with pytest.raises(StageError, match=r"is no longer there: what is done is kept, call the command again to go on"):
        prepare([corpus], out, label="real", frames=2, size=32)
    assert not list(tmp_path.glob(".store.unfinished/rows/*.json"))
    (tmp_path / "elsewhere").rename(corpus)
    result = _prepare_on_cluster(*begun[0])
    assert result["seen"] is False
    (tmp_path / "elsewhere").rename(corpus)
    with pytest.raises(StageError, match=rf"\.mp4 is not on {platform.node()}: share the disk with the cluster"):
        refuse_not_shared(begun[0][0].path, result)
    monkeypatch.undo()
    assert prepare([corpus], out, label="real", frames=2, size=32) == whole


def test_a_file_that_is_deleted_meanwhile_has_its_row_and_stops_nothing(
    demo_control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = shutil.copytree(demo_control / "real", tmp_path / "corpus/real")
    first, *others = sorted(corpus.rglob("*.mp4"), key=lambda path: -path.stat().st_size)

    def delete_one(function: Callable[..., object], jobs: Iterable[tuple[Any, ...]], *_: object) -> None:
        first.unlink(missing_ok=True)
        for job in jobs:
            function(*job)

    monkeypatch.setattr("data.journal.in_processes", delete_one)
    info = prepare([corpus.parent], tmp_path / "store", label="real", frames=2, size=32)
    assert (info.videos["ok"], info.videos["unreadable"]) == (len(others), 1)
    monkeypatch.undo()
    reasons = pq.read_table(tmp_path / "store/videos.parquet", columns=["reason"])["reason"].to_pylist()
    assert any("No such file" in reason for reason in reasons)


def test_what_a_power_cut_left_half_written_is_made_again(
    small_corpus: Path, whole: dict[str, bytes], resumable: Path
) -> None:
    row, other = sorted(resumable.glob("rows/*.json"))[:2]
    row.write_text(row.read_text()[:20])
    (resumable / "clips" / f"{other.stem}.parquet").write_bytes(b"")
    (resumable / "clips/.a.parquet.77.partial").write_bytes(b"half")
    (resumable / ".videos.parquet.77.partial").write_bytes(b"half")
    out = resumable.with_name("store")
    made(small_corpus, out)
    assert files(out) == whole


def test_unfinished_work_of_other_inputs_is_kept_until_it_is_removed(small_corpus: Path, resumable: Path) -> None:
    corpus = resumable.with_name("corpus")
    for kind in ("real", "fake"):
        (corpus / kind).mkdir(parents=True)
        shutil.copy(next(small_corpus.rglob("000.mp4")), corpus / kind)
    out, rows = resumable.with_name("store"), sorted(resumable.glob("rows/*"))
    with pytest.raises(
        StageError,
        match=rf"{resumable} is unfinished work of another call \(a source was added, removed or changed\): call",
    ):
        made(corpus, out)
    assert rows and sorted(resumable.glob("rows/*")) == rows
    shutil.rmtree(resumable / "rows")  # then there is nothing to lose
    made(corpus, out)
    assert len(list(out.glob("clips/*"))) == 2
    assert ClipStore(out).info.videos["ok"] == 2


def test_unfinished_work_does_not_go_on_where_it_is_known_better_whose_faces_they_are(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [shutil.copy(path, tmp_path / f"{n}.mp4") for n, path in enumerate(small_corpus.rglob("*.mp4")) if n < 3]
    table, out = tmp_path / "corpus.csv", tmp_path / "store"
    for persons in ("abc", "aaa"):
        lines = [f"{path.name},real,{person}" for path, person in zip(videos, persons, strict=True)]
        table.write_text("\n".join(["path,label,identity", *lines]))
        with monkeypatch.context() as patched:
            if persons == "abc":
                patched.setattr(Unfinished, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    made(table, out)
            else:
                with pytest.raises(StageError, match=r"unfinished work of another call \(a source was added"):
                    made(table, out)
    shutil.rmtree(tmp_path / ".store.unfinished")
    made(table, out)
    found = pq.read_table(out / "videos.parquet").to_pylist()
    assert {tuple(row["identities"]) for row in found} == {("a",)} and len({row["split"] for row in found}) == 1


def test_a_file_that_killed_its_process_is_done_again_once_it_was_replaced(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = shutil.copytree(small_corpus, tmp_path / "corpus"), tmp_path / "store"
    killer = sorted(corpus.rglob("*.mp4"))[0]

    def dying(function: Callable[..., object], jobs: Iterable[tuple[Any, ...]], *_: object) -> None:
        for job in jobs:
            if job[0].path == killer and not Journal(job[4]).row(job[0].video_id):
                Journal(job[4]).begin(job[0].video_id)
                raise WorkerDied("prepare: a process was killed")
            function(*job)

    monkeypatch.setattr("data.journal.in_processes", dying)
    with monkeypatch.context() as patch:
        patch.setattr("data.prepare.Unfinished.finish", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            made(corpus, out)
    (row,) = [row for row in Journal(tmp_path / ".store.unfinished").rows() if row["status"] == "unreadable"]
    assert row["reason"] == KILLED
    monkeypatch.setattr("data.journal.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
    os.utime(killer)
    made(corpus, out)
    assert ClipStore(out).info.videos["unreadable"] == 0
