"""Rounds: what is measured is what the row names, and nothing is kept of what was replaced meanwhile."""

import json
import shutil
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from benchmarks.kept import KeptMeasurements
from benchmarks.on_phone import _Calls
from benchmarks.rounds import Corpora, Effort, Rounds, measure_all, task_of
from benchmarks.rows import list_subjects
from benchmarks.task import Measurement, Timing
from data.store import ClipStore
from files import sha256_of
from stage import StageError


def replace_artifact(bundle, run, store):
    (bundle / "test_byobnet-fp32.onnx").write_bytes(b"another")


def remove_artifact(bundle, run, store):
    (bundle / "test_byobnet-fp32.onnx").unlink()


def replace_weights(bundle, run, store):
    (run / "model.safetensors").write_bytes(b"another")


def replace_store(bundle, run, store):
    videos = pq.read_table(store / "videos.parquet")
    pq.write_table(videos.slice(0, len(videos) - 1), store / "videos.parquet")
    info = json.loads((store / "store.json").read_text()) | {"fingerprint": sha256_of(store / "videos.parquet")}
    (store / "store.json").write_text(json.dumps(info))


def nothing(bundle, run, store):
    pass


@pytest.mark.parametrize(
    ("change", "failed", "reason"),
    [
        (replace_artifact, {"artifact"}, "test_byobnet-fp32.onnx was changed while it was measured"),
        (remove_artifact, {"artifact"}, "test_byobnet-fp32.onnx went away while it was measured"),
        (replace_weights, {"run"}, "run was changed while it was measured"),
        (replace_store, {"artifact", "run"}, "store was changed while it was scored"),
        (nothing, set(), ""),
    ],
)
def test_what_is_replaced_while_it_is_measured_fails_its_row(
    bundle_path, student_run, demo_store, tmp_path, monkeypatch, change, failed, reason
):
    own = [shutil.copytree(source, tmp_path / name) for source, name in
           ((bundle_path, "bundle"), (student_run, "run"), (demo_store, "store"))]  # fmt: skip
    corpora = Corpora(ClipStore(own[2]), "test")
    rows = {("artifact", "onnxruntime", "fp32"), ("run", "torch", "fp32")}
    listed = list_subjects(own[:2], [1], "here")
    subjects = [one for one in listed if (one.row.kind, one.row.runtime, one.row.scheme) in rows]
    assert len(subjects) == 2
    changes = [change]

    def measured(task):
        for made in changes:
            made(*own)
        changes.clear()
        return Measurement(timing=None, scores={})

    monkeypatch.setattr("benchmarks.rounds.measure_apart", measured)
    with pytest.raises(KeyboardInterrupt), KeptMeasurements(tmp_path / "report", "here") as kept:
        rounds = Rounds(corpora, kept)
        for subject in subjects:
            rounds.measure(subject, task_of(subject, tmp_path / "crops", Effort(), corpora, True))
        raise KeyboardInterrupt
    assert {subject.row.kind for subject in subjects if subject.row.status == "failed"} == failed
    assert all(reason in subject.row.reason for subject in subjects if subject.row.status == "failed")
    assert len(list(tmp_path.glob(".report.unfinished/*.json"))) == 2 - len(failed)


def test_the_pictures_that_are_timed_lie_beside_the_report(bundle_path, opened_store, tmp_path, monkeypatch):
    """A killed command leaves them in the unfinished report, which the next one removes, and nowhere else."""
    listed = list_subjects([bundle_path], [1], "here")
    subjects = [one for one in listed if one.row.name == "test_byobnet-fp32.onnx"]
    folders = []

    def measured(task):
        folders.append(task.crops.parent)
        raise StageError("killed")

    monkeypatch.setattr("benchmarks.rounds.measure_apart", measured)
    with KeptMeasurements(tmp_path / "report", "here") as kept:
        measure_all(subjects, Corpora(opened_store, "test"), None, Effort(rounds=1), kept)
    assert folders and {folder.parent for folder in folders} == {tmp_path / ".report.unfinished"}


def test_each_round_has_the_same_part_in_the_percentiles(bundle_path, opened_store, tmp_path, monkeypatch):
    """The first, twice as fast for a while, takes twice as many samples as the others would by themselves."""
    listed = list_subjects([bundle_path], [1], "here")
    subject = next(one for one in listed if one.row.name == "test_byobnet-fp32.onnx")

    def measured(task):
        ms, count = (2.0, task.repeats) if task.again else (1.0, 400)
        figures = {"load_ms": 1.0, "first_run_ms": 1.0, "peak_memory_mb": 1.0, "idle_memory_mb": 1.0}
        return Measurement(timing=Timing(times_ms=[ms] * count, runtime_bytes=None, cores=None, **figures), scores={})

    monkeypatch.setattr("benchmarks.rounds.measure_apart", measured)
    with KeptMeasurements(tmp_path / "report", "here") as kept:
        measure_all([subject], Corpora(opened_store, "test"), None, Effort(repeats=200, rounds=3), kept)
    assert (subject.row.latency_ms.p50, subject.row.repeats, subject.row.medians_ms) == (2.0, 1200, [1.0, 2.0, 2.0])


def test_what_is_replaced_while_it_is_pushed_to_a_phone_fails_its_row(bundle_path, tmp_path):
    bundle = shutil.copytree(bundle_path, tmp_path / "bundle")
    subject = next(one for one in list_subjects([bundle], [1], "here") if one.row.name == "test_byobnet-fp32.onnx")
    phone = SimpleNamespace(push=lambda source, target: source.write_bytes(b"another"), require=lambda: None)
    call = _Calls(phone, "folder", 0, subject, subject.artifact, SimpleNamespace())
    call.add_round(10, SimpleNamespace(once=lambda _, measured, __: measured()), "here")
    assert (subject.row.status, subject.row.reason) == ("failed", f"{subject.path} was changed while it was measured")
