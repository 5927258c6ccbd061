"""A scan of many videos that is interrupted, or whose files, processes or bundle change meanwhile."""

import json
import shutil
import time

import pytest

from data import journal
from data.journal import KILLER, Journal
from export.detect import detect
from export.scan import _cached_scorer
from export.scorer import VideoScorer
from processes import WorkerDied
from stage import StageError
from tests.export.scanned import FILE, rows_of


def test_a_file_that_changes_while_it_is_read_is_scored_by_the_next_scan(
    uploads, bundle_path, tmp_path, scored, monkeypatch
):
    """As of an upload that is still written, or a disk that goes away: what was read is not the video."""
    out, video = tmp_path / "scores.parquet", uploads / "real/000.mp4"
    score_clips = VideoScorer._score_clips

    def written_meanwhile(self, path, *arguments):
        score_clips(self, path, *arguments)
        if path == video:
            with video.open("ab") as file:
                file.write(b"more")

    with monkeypatch.context() as patch:
        patch.setattr(VideoScorer, "_score_clips", written_meanwhile)
        detect([uploads / "real"], bundle_path, FILE, out=out)
    row = rows_of(out)["000.mp4"]
    assert (row["status"], row["reason"], row["score"]) == (
        "unreadable", "changed or went away while it was read", None,
    )  # fmt: skip
    detect([uploads / "real"], bundle_path, FILE, out=out)
    assert rows_of(out)["000.mp4"]["status"] == "ok" and scored == ["000.mp4", "001.mp4", "000.mp4"]


def test_a_bundle_that_is_replaced_meanwhile_scores_nothing(uploads, bundle_path, tmp_path, scored, monkeypatch):
    """A process that is started after another died would load it."""
    copy = shutil.copytree(bundle_path, tmp_path / "bundle")
    monkeypatch.setattr("export.scan._cached_scorer", _cached_scorer.__wrapped__)
    in_this_process = journal.in_processes

    def replaced_meanwhile(function, jobs, *arguments):
        manifest = json.loads((copy / "manifest.json").read_text())
        for artifact in manifest["artifacts"]:
            artifact["threshold"]["value"] = 0.123
        (copy / "manifest.json").write_text(json.dumps(manifest))
        in_this_process(function, jobs, *arguments)

    monkeypatch.setattr("data.journal.in_processes", replaced_meanwhile)
    with pytest.raises(
        StageError, match=r"bundle was replaced meanwhile: what is done is kept, for a call with the fo"
    ):
        detect([uploads], copy, FILE, out=tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


def test_an_interrupted_scan_goes_on(uploads, bundle_path, tmp_path, scored, monkeypatch):
    whole, out = tmp_path / "whole.parquet", tmp_path / "scores.parquet"
    detect([uploads], bundle_path, FILE, out=whole)
    expected = rows_of(whole)

    def two(function, jobs, *_):
        for job in list(jobs)[:2]:
            function(*job)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.journal.in_processes", two)
        with pytest.raises(KeyboardInterrupt):
            detect([uploads], bundle_path, FILE, out=out)
    assert not out.exists()
    (tmp_path / ".scores.parquet.unfinished" / "rows" / "torn.json").write_text("")
    with pytest.raises(StageError, match=r"is unfinished work of another call \(another artifact, threshold or rule\)"):
        detect([uploads], bundle_path, "test_byobnet-int8.onnx", out=out)
    scored.clear()
    detect([uploads / "real"], bundle_path, FILE, out=out)
    begun = len(scored)
    assert len(rows_of(out)) == 2 + begun  # those of the first command are in it too
    detect([uploads], bundle_path, FILE, out=out)
    assert sorted(scored[begun:]) == ["<b>text.mp4", "face.png"]  # what was not begun, and what could not be read
    timings = ("milliseconds",)
    for name, row in rows_of(out).items():
        assert {k: v for k, v in row.items() if k not in timings} == {
            k: v for k, v in expected[name].items() if k not in timings
        }


def test_new_and_changed_files_are_scored_and_others_kept(uploads, demo_control, bundle_path, tmp_path, scored):
    out = tmp_path / "scores.parquet"
    detect([uploads], bundle_path, FILE, out=out)
    before = rows_of(out)
    scored.clear()
    detect([uploads], bundle_path, FILE, out=out)
    assert scored == ["<b>text.mp4"] and rows_of(out) == before  # one that could not be read is tried again
    scored.clear()
    shutil.copy(demo_control / "real" / "002.mp4", uploads / "black.mp4")
    time.sleep(0.01)
    shutil.copy(demo_control / "real" / "002.mp4", tmp_path / "other.mp4")
    detect([uploads, tmp_path / "other.mp4"], bundle_path, FILE, out=out)
    assert sorted(scored) == ["<b>text.mp4", "black.mp4", "other.mp4"]
    after = rows_of(out)
    assert after["black.mp4"]["status"] == after["other.mp4"]["status"] == "ok"
    assert len(after) == 6 and after["000.mp4"] == before["000.mp4"]


def test_a_file_that_kills_its_process_has_its_row_and_is_tried_once_more_another_time(
    uploads, bundle_path, tmp_path, monkeypatch
):
    killed = []

    def dying(function, jobs, *_):
        for job in jobs:
            journal = Journal(job[5])
            if job[0].name == "black.mp4" and not journal.row(job[1]):
                journal.begin(job[1])
                killed.append(job[1])
                raise WorkerDied("detect: a process was killed")
            function(*job)

    out = tmp_path / "scores.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("data.journal.in_processes", dying)
        detect([uploads], bundle_path, FILE, out=out)
    assert len(killed) == 2
    row = rows_of(out)["black.mp4"]
    assert (row["status"], row["reason"]) == ("unreadable", KILLER)
    monkeypatch.setattr("data.journal.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
    detect([uploads], bundle_path, FILE, out=out)
    assert rows_of(out)["black.mp4"]["status"] == "no_face"
