"""Every reader of a file that a user hands in: whatever it meets, it reads it or ends with one line on what is wrong.

``python -m pytest tests/test_readers.py --hypothesis-profile many`` tries ten times as much.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pages.render import write_report
from benchmarks.reference import read_reference
from benchmarks.schema import read_report
from compress.checkpoints import Position, load_checkpoint, save_checkpoint
from compress.filling import _mapped as mapped
from compress.int8 import rebuild
from compress.runs import diagnosis_of, own_threshold
from data.layouts.notes import corpus_note
from data.store import ClipStore
from export.bundle import Bundle
from export.scan import scan
from export.verify import check_crops
from models.run import Run
from models.weights import read_state
from stage import StageError
from tests.spoiling import one_line, spoiled_bytes, spoiled_json, spoiled_table

ROOT = Path(__file__).parents[1]


class Spoilt:
    """A copy of a folder whose files are spoilt one by one and made whole again."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path = shutil.copytree(source, folder / source.name)

    @contextmanager
    def with_file(self, name: str, data: bytes) -> Iterator[Path]:
        file = self.path / name
        before = file.read_bytes()
        file.write_bytes(data)
        try:
            yield self.path
        finally:
            file.write_bytes(before)


def use_store(path: Path) -> None:
    store = ClipStore(path)
    for split in ("train", "val", "test"):
        for clip in store.clips(split, both=False):
            assert store.boxes_in_crops(clip).shape == (store.frames, 4)
            assert clip.valid.shape == (store.frames,)
            assert store.pixels(clip, [0]).shape == (1, store.size, store.size, 3)


@pytest.fixture(scope="module")
def store(demo_store, tmp_path_factory):
    return Spoilt(demo_store, tmp_path_factory.mktemp("store"))


@given(data=st.data())
def test_store_json(store, data):
    text = data.draw(spoiled_json((store.path / "store.json").read_text()))
    with store.with_file("store.json", text.encode()) as path, one_line():
        use_store(path)


@given(data=st.data())
def test_tables_of_a_store(store, data, tmp_path_factory):
    clips = sorted(file.relative_to(store.path).as_posix() for file in (store.path / "clips").iterdir())[:4]
    name = data.draw(st.sampled_from(["videos.parquet", *clips]))
    file = store.path / name
    if data.draw(st.booleans()):
        spoilt = data.draw(spoiled_bytes(file.read_bytes()))
    else:
        other = tmp_path_factory.getbasetemp() / "spoilt.parquet"
        pq.write_table(data.draw(spoiled_table(pq.read_table(file))), other, row_group_size=1)
        spoilt = other.read_bytes()
    info = json.loads((store.path / "store.json").read_text())
    if name == "videos.parquet":  # as one who means it would
        info["fingerprint"] = hashlib.sha256(spoilt).hexdigest()
    with store.with_file(name, spoilt) as path, store.with_file("store.json", json.dumps(info).encode()), one_line():
        use_store(path)


@contextlib.contextmanager
def with_videos(store, change, folder):
    """A store of which ``change`` made another table of videos, as one who means it would."""
    pq.write_table(change(pq.read_table(store.path / "videos.parquet")), folder / "videos.parquet")
    spoilt = (folder / "videos.parquet").read_bytes()
    info = json.loads((store.path / "store.json").read_text()) | {"fingerprint": hashlib.sha256(spoilt).hexdigest()}
    with store.with_file("videos.parquet", spoilt) as path, store.with_file("store.json", json.dumps(info).encode()):
        yield path


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_store_that_names_files_elsewhere_is_refused(store, name, tmp_path):
    def renamed(table):
        return table.set_column(table.column_names.index("video_id"), "video_id", pa.array([name] * len(table)))

    refused = pytest.raises(StageError, match=r"videos.parquet names the video '.*' in the split")
    with with_videos(store, renamed, tmp_path) as path, refused:
        ClipStore(path)


def test_a_store_that_names_a_video_twice_is_refused(store, tmp_path):
    refused = pytest.raises(StageError, match=r"videos.parquet names a video twice: prepare the store again")
    with with_videos(store, lambda table: pa.concat_tables([table, table.slice(0, 1)]), tmp_path) as path, refused:
        ClipStore(path)


def test_a_file_that_lost_a_clip_is_damaged(store, tmp_path):
    videos = pq.read_table(store.path / "videos.parquet", columns=["video_id", "split"]).to_pylist()
    video = next(row["video_id"] for row in videos if row["split"] == "val")
    pq.write_table(pq.read_table(store.path / "clips" / f"{video}.parquet").slice(0, 0), tmp_path / "shorter.parquet")
    refused = pytest.raises(StageError, match=rf"{video}.parquet is missing or damaged")
    with store.with_file(f"clips/{video}.parquet", (tmp_path / "shorter.parquet").read_bytes()) as path, refused:
        ClipStore(path).clips("val")


@pytest.fixture(scope="module")
def run(drawn_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return Spoilt(drawn_run(folder / "drawn", {"kind": "student"}), folder / "copy")


@pytest.fixture(scope="module")
def int8(int8_run, tmp_path_factory):
    return Spoilt(int8_run, tmp_path_factory.mktemp("int8"))


@given(data=st.data())
def test_model_json(run, data):
    text = data.draw(spoiled_json((run.path / "model.json").read_text()))
    with run.with_file("model.json", text.encode()) as path, one_line():
        opened = Run(path)
        opened.detector()


@given(data=st.data())
def test_figures_of_a_run(int8, data):
    text = data.draw(spoiled_json((int8.path / "metrics.json").read_text()))
    with int8.with_file("metrics.json", text.encode()) as path:
        with one_line():
            own_threshold(Run(path))
        with one_line():
            diagnosis_of(Run(path))


@settings(max_examples=5)
@given(data=st.data())
def test_quantization_json(int8, data):
    text = data.draw(spoiled_json((int8.path / "quantization.json").read_text()))
    with int8.with_file("quantization.json", text.encode()) as path, one_line():
        rebuild(Run(path))


@settings(max_examples=20)
@given(data=st.data())
def test_weights_of_a_run(run, data):
    spoilt = data.draw(spoiled_bytes((run.path / "model.safetensors").read_bytes()))
    with run.with_file("model.safetensors", spoilt) as path:
        with one_line():
            Run(path).detector()
        with one_line():
            read_state(path / "model.safetensors")


@pytest.fixture(scope="module")
def bundle(bundle_path, tmp_path_factory):
    return Spoilt(bundle_path, tmp_path_factory.mktemp("bundle"))


@settings(max_examples=25)
@given(data=st.data())
def test_manifest_json(bundle, data):
    text = data.draw(spoiled_json((bundle.path / "manifest.json").read_text()))
    with bundle.with_file("manifest.json", text.encode()) as path, one_line():
        opened = Bundle(path)
        check_crops(opened)
        opened.golden_inputs()
        opened.chosen(None)
        for artifact in opened.manifest.artifacts:
            opened.check_programs(artifact)
            opened.golden_outputs(artifact)


@given(data=st.data())
def test_sums(bundle, data):
    spoilt = data.draw(spoiled_bytes((bundle.path / "SHA256SUMS").read_bytes()))
    with bundle.with_file("SHA256SUMS", spoilt) as path, one_line():
        Bundle(path).check_files()


@given(data=st.data())
def test_reference_json(reference_file, data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoilt-reference.json"
    file.write_text(data.draw(spoiled_json(reference_file.read_text())))
    with one_line():
        reference = read_reference(file)
        reference.summary()
        assert len(reference.scores.to_clip_scores().clips) == len(reference.scores.labels)


@pytest.mark.parametrize("label", [2, -1, 2**63, 0.5])
def test_a_reference_of_clips_that_are_neither_real_nor_fake_is_refused(reference_file, label, tmp_path):
    content = json.loads(reference_file.read_text())
    content["scores"]["labels"][0] = label
    (tmp_path / "reference.json").write_text(json.dumps(content))
    with pytest.raises(StageError, match=r"reference\.json is not valid: scores\.labels\.0: "):
        read_reference(tmp_path / "reference.json")


@settings(max_examples=8)
@given(data=st.data())
def test_report_json(data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoilt-report.json"
    report = json.loads((ROOT / "docs" / "report.json").read_text())
    file.write_text(data.draw(spoiled_json(json.dumps(report | {"rows": report["rows"][:6]}))))
    out = tmp_path_factory.getbasetemp() / "spoilt-report"
    shutil.rmtree(out, ignore_errors=True)
    with one_line():
        write_report(read_report(file), out)


@given(data=st.data())
def test_checkpoints(data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "checkpoints" / "last.pt"
    save_checkpoint(file, Position([], 0), {"weights": {"a": torch.ones(3)}, "where": "here"})
    file.write_bytes(data.draw(spoiled_bytes(file.read_bytes())))
    with one_line():
        load_checkpoint(file)


@given(data=st.data())
def test_arrays_of_a_cache(data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "cache" / "0.npy"
    file.unlink(missing_ok=True)
    mapped(file, np.float16, (4, 3))
    file.write_bytes(data.draw(spoiled_bytes(file.read_bytes())))
    with one_line():
        rows = mapped(file, np.float16, (4, 3))
        assert (rows.shape, rows.dtype) == ((4, 3), np.float16)
        assert np.asarray(rows).nbytes == 24  # every byte is there: a shorter file would kill the process


SCORED = {"video": "a.mp4", "bytes": 1, "modified_ns": 2, "status": "ok", "score": 0.5, "clips": [{"score": 0.5}]}


@given(data=st.data())
def test_tables_of_scores(bundle, data, tmp_path_factory):
    opened, file = Bundle(bundle.path), tmp_path_factory.getbasetemp() / "scores" / "scores.parquet"
    file.unlink(missing_ok=True)
    scan([], opened, opened.chosen(None), file, 1, None)
    table = pa.Table.from_pylist([SCORED, SCORED | {"video": "b.mp4"}], schema=pq.read_schema(file))
    if data.draw(st.booleans()):
        table = data.draw(spoiled_table(table))
    pq.write_table(table, file)
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(spoiled_bytes(file.read_bytes())))
    before = file.read_bytes()
    refused = True
    with one_line():
        scan([], opened, opened.chosen(None), file, 1, None)
        refused = False
    assert not refused or file.read_bytes() == before


NESTED = {"objects": '{"schema_version":' * 50_000, "lists": "[" * 200_000}


@pytest.fixture(params=NESTED.values(), ids=NESTED)
def nested(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder of files that are nested deeper than Python follows."""
    for name in ("report.json", "manifest.json", "model.json", "corpus.json"):
        (tmp_path / name).write_text(request.param, encoding="utf-8")
    return tmp_path


def test_json_that_is_nested_without_end(nested, student_run):
    with pytest.raises(StageError, match=r"report.json is not valid: Invalid JSON: .*: measure it again$"):
        read_report(nested / "report.json")
    with pytest.raises(StageError, match=r"report.json is not valid: Invalid JSON: .*: measure it again$"):
        read_reference(nested / "report.json")
    with pytest.raises(StageError, match=r"manifest.json is not valid: Invalid JSON"):
        Bundle(nested)
    with pytest.raises(StageError, match=r"model.json"):
        _ = Run(nested).info
    with pytest.raises(StageError, match=r"corpus.json is not of the form"):
        corpus_note(nested)
    run = Run(student_run)
    run.read = lambda name: (nested / "report.json").read_bytes()
    with pytest.raises(StageError, match=r"metrics.json holds no readable threshold"):
        own_threshold(run)
