"""Reference, bench and the worker, each measurement in its own process."""

import json
import os
import shutil
import sys
import time
from importlib.machinery import ModuleSpec

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.bench import bench, command_of_this_process
from benchmarks.doctor import diagnose
from benchmarks.machine import describe_machine
from benchmarks.measuring import measure_apart, write_timed_crops
from benchmarks.reference import Reference, read_reference, reference
from benchmarks.rows import check_fits, list_subjects
from benchmarks.schema import Report, read_report
from benchmarks.task import Measurement, Task, clip_scores
from benchmarks.timing import sustained, time_batches, time_runs
from benchmarks.worker import measure
from compress.runs import diagnosis_of, own_threshold, pixel_detector, takes, torch_scorer
from compress.scoring import Takes, score_split
from compress.teach import teach
from data.prepare import prepare
from data.store import ClipStore
from data.video import write_video
from export.bundle import Bundle
from models.detector import Architecture, Detector
from models.megatron import MegatronSettings
from models.run import Run, save_run
from stage import StageError
from tests.benchmarks.test_rounds import replace_store
from tests.conftest import note_anew
from tests.export.clip_student import NAME, clip_bundle

ROW_KEYS = {
    "name", "kind", "model", "runtime", "scheme", "machine", "device", "threads", "cores", "batch", "input_size",
    "status", "reason", "bytes", "sha256", "load_ms", "first_run_ms", "latency_ms", "repeats", "medians_ms", "spread",
    "throughput", "peak_memory_mb", "peak_memory_over_idle_mb", "delegated_fraction", "macs", "peak_fraction",
    "runtime_bytes", "threshold", "auc", "auc_interval", "frame_auc", "video_auc", "methods", "eer", "ap", "accuracy",
    "tpr_at_fpr", "delta_auc", "student", "verdict_flips", "equal_error_flips", "frame_verdict_flips", "control_auc",
    "speedup_over", "speedup", "size_ratio", "earned", "earned_because", "robustness", "sustained", "profile",
}  # fmt: skip


@pytest.fixture(scope="module")
def random_run(demo_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("random") / "large"
    teach("dino", demo_store, out, backbone="test_vit", random_weights=True, epochs=0)
    return out


@pytest.fixture(scope="module")
def report(
    bundle_path, random_run, student_run, demo_store, demo_control_store, reference_file, tmp_path_factory
) -> Report:
    """Measured in this process: ten others would each import torch anew. What a fresh one measures, see below."""
    out, options = (
        tmp_path_factory.mktemp("report") / "report",
        {"repeats": 10, "rounds": 1, "control": demo_control_store},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.rounds.measure_apart", measure)
        patch.setattr("benchmarks.rounds.os.cpu_count", lambda: 1)
        patch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
        bench([bundle_path, random_run, student_run], demo_store, reference_file, out, **options)
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert set(json.loads((out / "report.json").read_text())["rows"][0]) == ROW_KEYS
    return read_report(out / "report.json")


def _row(report, name, scheme):
    return next(row for row in report.rows if (row.name, row.scheme) == (name, scheme))


def test_reference_scores_are_the_teacher_s(reference_file, teacher_run, opened_store):
    found = read_reference(reference_file)
    scores = score_split(torch_scorer(pixel_detector(Run(teacher_run)), torch.device("cpu")), opened_store, "test")
    np.testing.assert_allclose(np.array(found.scores.frames), scores.frames, atol=1e-5)
    assert found.metrics.auc == scores.metrics(0.5).auc
    again = clip_scores(found.scores)
    for field in ("clip_ids", "video_ids", "methods", "identities", "whole"):
        assert getattr(again, field) == getattr(scores, field)
    assert set(json.loads(reference_file.read_text())) == set(Reference.model_fields)
    assert "measured on the CPU, not on a GPU" in " ".join(found.notes)
    assert "(test_vit) was trained from random weights" in " ".join(found.notes)


def test_reference_has_the_batch_of_the_best_throughput(reference_file):
    found = read_reference(reference_file)
    assert [own.batch for own in found.batches] == [2**power for power in range(len(found.batches))]
    best = max(found.batches, key=lambda own: own.frames_per_second)
    assert (found.best_batch, found.throughput) == (best.batch, best.frames_per_second)
    assert found.throughput == pytest.approx(1e3 / best.ms)
    assert found.device_memory_mb is None and found.tf32 is False
    assert found.batches[-1].peak_memory_mb >= found.peak_memory_mb


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("benchmarks.timing.time", self)

    def perf_counter(self):
        return self.now


def test_batches_grow_until_that_brings_little(tmp_path, demo_store, monkeypatch):
    """A model whose runs take 20 ms, and 5 more for each frame beyond the second."""
    task, clock = _onnx_task(tmp_path, demo_store, tmp_path), Clock(monkeypatch)

    def score(pixels):
        clock.now += 0.02 + 0.005 * max(0, len(pixels) - 2)

    found = time_batches(score, task)
    assert [own.batch for own in found] == [1, 2, 4, 8, 16, 32, 64]  # 32 and 64 frames take 170 and 330 ms
    assert [own.ms for own in found][:3] == pytest.approx([20, 10, 7.5])
    assert found[1].frames_per_second == pytest.approx(100)


def test_speed_without_a_pause_is_told_second_by_second(tmp_path, demo_store, monkeypatch):
    task = _onnx_task(tmp_path, demo_store, tmp_path).model_copy(update={"sustain": 4.0, "batch": 2})
    clock = Clock(monkeypatch)

    def score(pixels):
        assert len(pixels) == 2
        clock.now += 1 / 64 if clock.now < 2 else 1 / 32  # powers of two add up exactly

    found = sustained(score, task, task.inputs())
    assert found.seconds == 4.0
    assert found.frames_per_second == [128.0, 128.0, 64.0, 64.0]
    assert found.drop == 0.5


def test_every_artifact_and_run_has_its_rows(report):
    names = [(row.name, row.scheme) for row in report.rows]
    assert len(names) == 6 + 2 + 2
    assert {("large", "fp32"), ("large", "autocast"), ("student", "fp32"), ("student", "autocast")} <= set(names)


def test_core_ml_is_evaluated_and_not_timed_off_a_mac(report, bundle_path, opened_store):
    row = _row(report, "test_byobnet-int8.mlpackage", "int8")
    if sys.platform != "darwin":
        assert (row.status, row.reason) == ("evaluated", "by Pocketproof, not by Core ML, which needs macOS")
        assert (row.latency_ms, row.speedup, row.peak_memory_mb, row.throughput) == (None, None, None, None)
        assert (row.earned, row.earned_because) == (None, "not timed here")
        (note,) = (note for note in report.notes if note.startswith("Evaluated"))
        assert note == (
            "Evaluated by Pocketproof, not by Core ML, which needs macOS: "
            "test_byobnet-int8.mlpackage (int8), test_byobnet-fp32.mlpackage (fp32)."
        )
    bundle = Bundle(bundle_path)
    scores = score_split(bundle.load(bundle.artifact(row.name)), opened_store, "test")
    assert row.auc == scores.metrics(0.5).auc and row.bytes > 0 and row.verdict_flips is not None


def test_random_weights_have_latency_and_no_accuracy(report):
    row = _row(report, "large", "fp32")
    assert row.latency_ms is not None and row.auc is None
    assert row.reason.startswith("random weights, never trained")
    assert any(note.startswith("large (test_vit): random weights") for note in report.notes)


def test_speedup_and_size_ratio_are_against_the_first_teacher(report):
    base = _row(report, "large", "fp32")
    for row in report.rows:
        assert row.size_ratio == pytest.approx(base.bytes / row.bytes)
        if row.latency_ms:
            assert row.speedup == pytest.approx(base.latency_ms.p50 / row.latency_ms.p50)
    assert {row.speedup_over for row in report.rows} == {"large (test_vit, torch fp32)"}


def test_accuracy_is_that_of_the_artifact(report, bundle_path, opened_store, reference_file):
    bundle = Bundle(bundle_path)
    artifact = bundle.artifact("test_byobnet-int8.onnx")
    scores = score_split(bundle.load(artifact), opened_store, "test")
    row = _row(report, artifact.file, "int8")
    assert row.auc == pytest.approx(scores.metrics(artifact.threshold.value).auc)
    assert row.delta_auc == pytest.approx(row.auc - read_reference(reference_file).metrics.auc)
    assert row.threshold == artifact.threshold.value


def test_flips_are_against_the_fp32_student_each_at_its_own_threshold(report, bundle_path, student_run, opened_store):
    bundle = Bundle(bundle_path)
    artifact = bundle.artifact("test_byobnet-int8.pte")
    mine = score_split(bundle.load(artifact), opened_store, "test").clips > artifact.threshold.value
    student = score_split(torch_scorer(pixel_detector(Run(student_run)), torch.device("cpu")), opened_store, "test")
    its = student.clips > _row(report, "student", "fp32").threshold
    assert _row(report, artifact.file, "int8").verdict_flips == pytest.approx((mine != its).mean())
    assert _row(report, "student", "fp32").verdict_flips == 0.0
    assert {row.student for row in report.rows if row.verdict_flips is not None} == {"student"}


def test_what_int8_cost_comes_with_the_bundle(report, int8_run):
    assert report.diagnoses == {int8_run.name: diagnosis_of(Run(int8_run))}


def test_schemes_are_judged_against_fp32_in_their_own_runtime(report):
    for runtime in ("pte", "onnx"):
        row, base = (_row(report, f"test_byobnet-{scheme}.{runtime}", scheme) for scheme in ("int8", "fp32"))
        speed = base.latency_ms.p50 / row.latency_ms.p50
        assert row.earned_because.startswith(f"{speed:.3g}x as fast as fp32, AUC {row.auc - base.auc:+z.4f}")
        varies = max(row.spread, base.spread)
        assert row.earned == (speed > 1 + varies and row.auc >= base.auc - 0.005)
        assert (base.earned, base.earned_because) == (None, "")
    assert _row(report, "test_byobnet-int8.mlpackage", "int8").earned is None


def test_identity_forgeries_cannot_be_told_from_real_clips(report):
    assert _row(report, "test_byobnet-int8.pte", "int8").control_auc == 0.5
    assert _row(report, "student", "fp32").control_auc is None


def test_notes_say_what_the_demo_does_not_measure(report):
    assert any("not new persons" in note for note in report.notes)


def _onnx_task(path, store, folder):
    return Task(
        path=path,
        runtime="onnxruntime",
        scheme="fp32",
        threads=1,
        repeats=10,
        size=64,
        crops=write_timed_crops(ClipStore(store), "test", folder),
        scored={},
    )


def test_peak_memory_is_of_the_worker_and_not_of_its_parent(bundle_path, demo_store, tmp_path):
    ballast = np.ones(400 * 2**20, np.uint8)  # a parent of 400 MB
    task = _onnx_task(bundle_path / "test_byobnet-fp32.onnx", demo_store, tmp_path)
    found = measure_apart(task)
    assert 20 < found.timing.idle_memory_mb <= found.timing.peak_memory_mb < 300
    assert ballast.any()
    assert len(found.timing.times_ms) >= 10 and min(found.timing.times_ms) > 0


def test_failing_worker_is_a_line(demo_store, tmp_path):
    task = _onnx_task(tmp_path / "none.onnx", demo_store, tmp_path)
    with pytest.raises(
        StageError, match=r"measuring .*none.onnx failed: /\S*none.onnx cannot be loaded by onnxruntime"
    ):
        measure_apart(task)


@pytest.fixture(scope="module")
def clip_run_and_store(demo_store, teacher_run, tmp_path_factory):
    """A Megatron run of random weights that says it was trained, and a store whose depth is a copy of its RGB."""
    folder = tmp_path_factory.mktemp("clips")
    store = shutil.copytree(demo_store, folder / "store")
    for file in (store / "clips").iterdir():
        rows = pq.read_table(file)
        rows = rows.set_column(rows.schema.get_field_index("depth"), "depth", rows["rgb"])
        pq.write_table(rows, file, row_group_size=1)
    info = json.loads((store / "store.json").read_text())
    info["settings"]["modalities"] = ["rgb", "depth"]
    (store / "store.json").write_text(json.dumps(info))
    note_anew(store)
    source = Run(teacher_run)
    changes = {"modalities": ("rgb", "depth"), "megatron": MegatronSettings(feed_forward=16)}
    architecture = Architecture(backbone="test_byobnet", size=64, **changes)
    metrics = json.loads(source.read("metrics.json"))
    run_info = source.info.model_copy(update={"architecture": architecture})
    save_run(folder / "megatron", run_info, Detector(architecture), metrics)
    return folder / "megatron", store


def test_clip_model_can_be_the_reference(clip_run_and_store, tmp_path, monkeypatch):
    run, path = clip_run_and_store
    store = ClipStore(path)
    # In this process, which has torch: starting another takes longer than all the rest.
    monkeypatch.setattr("benchmarks.reference.measure_apart", measure)
    made = reference(run, path, tmp_path / "reference.json", device="cpu", repeats=10)
    scores = clip_scores(made.scores)
    assert made.metrics.frame is None and scores.frames is None
    assert made.metrics.threshold == own_threshold(Run(run)).value
    scorer = torch_scorer(pixel_detector(Run(run)), torch.device("cpu"))
    expected = score_split(scorer, store, "test", takes(Run(run).info))
    np.testing.assert_allclose(scores.clips, expected.whole, atol=1e-5)


def test_a_reference_of_one_label_is_refused_before_it_is_measured(clip_run_and_store, tmp_path, monkeypatch):
    run, store = clip_run_and_store
    store = shutil.copytree(store, tmp_path / "store")
    videos = pq.read_table(store / "videos.parquet")
    keep = [row["split"] != "test" or row["label"] == 0 for row in videos.to_pylist()]
    pq.write_table(videos.filter(keep), store / "videos.parquet")
    note_anew(store)
    monkeypatch.setattr("benchmarks.reference.measure_apart", lambda task: pytest.fail("it was measured"))
    with pytest.raises(StageError, match=r"the test split of .* needs both"):
        reference(run, store, tmp_path / "reference.json", device="cpu", repeats=10)


def test_a_reference_is_of_the_run_that_it_names(clip_run_and_store, tmp_path, monkeypatch):
    run, store = clip_run_and_store
    run = shutil.copytree(run, tmp_path / "run")

    def replaced(task):
        (run / "model.safetensors").write_bytes(b"another")
        return Measurement(timing=None, scores={})

    monkeypatch.setattr("benchmarks.reference.measure_apart", replaced)
    with pytest.raises(StageError, match=rf"{run} was changed while it was measured"):
        reference(run, store, tmp_path / "reference.json", device="cpu", repeats=10)
    assert not (tmp_path / "reference.json").exists()


def test_a_reference_is_of_the_store_that_it_names(clip_run_and_store, tmp_path, monkeypatch):
    run, store = clip_run_and_store
    store = shutil.copytree(store, tmp_path / "store")

    def replaced(task):
        replace_store(None, None, store)
        return Measurement(timing=None, scores={})

    monkeypatch.setattr("benchmarks.reference.measure_apart", replaced)
    with pytest.raises(StageError, match=rf"{store} was changed while it was scored"):
        reference(run, store, tmp_path / "reference.json", device="cpu", repeats=10)


def test_time_of_a_clip_is_divided_by_its_frames(demo_store, tmp_path):
    task = _onnx_task(tmp_path, demo_store, tmp_path).model_copy(update={"per": "clip", "frames": 4, "repeats": 3})
    times = time_runs(lambda pixels, valid: time.sleep(0.1), task, task.inputs())
    assert len(times) == 3
    assert 25 <= min(times) < 90
    assert len(time_runs(lambda pixels, valid: time.sleep(0.01), task, task.inputs(), seconds=0.2)) > 5


def test_timed_inputs_have_the_shape_that_the_model_takes(clip_run_and_store, tmp_path):
    _, path = clip_run_and_store
    store = ClipStore(path)
    shapes = {
        Takes(): [(1, 64, 64, 3)],
        Takes(("depth",)): [(1, 64, 64, 3)],
        Takes(("rgb", "depth")): [(1, 2, 64, 64, 3)],
        Takes(("rgb", "depth"), "clip"): [(1, 4, 2, 64, 64, 3), (1, 4)],
    }
    for looks, expected in shapes.items():
        crops = write_timed_crops(store, "test", tmp_path, looks)
        task = _onnx_task(tmp_path, path, tmp_path).model_copy(
            update={"crops": crops, "modalities": looks.modalities, "per": looks.per, "frames": store.frames}
        )
        assert [array.shape for array in task.inputs()(0)] == expected
        given = [task.inputs()(number)[0] for number in (0, 1, 8)]
        np.testing.assert_array_equal(given[0], given[2])
        assert not np.array_equal(given[0], given[1])
    several = task.model_copy(update={"batch": 3}).inputs()(7)
    assert [array.shape for array in several] == [(3, 4, 2, 64, 64, 3), (3, 4)]
    np.testing.assert_array_equal(several[0][1:], np.concatenate([task.inputs()(0)[0], task.inputs()(1)[0]]))


@pytest.fixture(scope="module")
def clip_artifacts(demo_store, tmp_path_factory):
    return clip_bundle(demo_store, tmp_path_factory)


def test_clip_artifacts_have_rows(
    clip_artifacts, demo_store, demo_control_store, opened_store, reference_file, tmp_path, monkeypatch
):
    # In this process, as above, and one at a time: coremltools does not load two programs at once.
    monkeypatch.setattr("benchmarks.rounds.measure_apart", measure)
    monkeypatch.setattr("benchmarks.rounds.os.cpu_count", lambda: 1)
    monkeypatch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
    made = bench(
        [clip_artifacts],
        demo_store,
        reference_file,
        tmp_path / "report",
        repeats=10,
        rounds=1,
        control=demo_control_store,
    )
    bundle = Bundle(clip_artifacts)
    whole = [f"test_tiny-whole-clip-fp32.{ending}" for ending in ("pte", "onnx", "mlpackage")]
    steps = [f"{NAME}.pte", f"{NAME}-onnx", f"{NAME}-coreml"]
    assert [row.name for row in made.rows] == [name for pair in zip(steps, whole, strict=True) for name in pair]
    for row in made.rows[:4]:
        artifact = bundle.artifact(row.name)
        scores = score_split(bundle.load(artifact), opened_store, "test", Takes(per="clip"))
        assert (row.status, row.bytes) == ("measured", artifact.bytes) and row.repeats >= 10
        assert row.auc == pytest.approx(scores.metrics(artifact.threshold.value).auc)
        assert row.frame_auc is None
        assert row.control_auc == 0.5
        assert row.latency_ms is not None


def test_clip_artifact_needs_clips_of_its_length(clip_artifacts, opened_store):
    subject = list_subjects([clip_artifacts], [1], "here")[0]
    check_fits(subject, opened_store)
    subject.frames = 20
    with pytest.raises(StageError, match=r"-clip-fp32.pte takes clips of 20 frames, .* holds 4"):
        check_fits(subject, opened_store)


def test_clips_and_crops_of_another_size_than_in_training_are_refused(clip_run_and_store, tmp_path):
    made, path = clip_run_and_store
    run, store = shutil.copytree(made, tmp_path / "run"), shutil.copytree(path, tmp_path / "store")
    model = json.loads((run / "model.json").read_text())
    model["data"]["frames"] = 20
    (run / "model.json").write_text(json.dumps(model))
    with pytest.raises(StageError, match=r"was trained on clips of 20 frames, and .* holds clips of 4"):
        reference(run, store, tmp_path / "reference.json", device="cpu")
    with pytest.raises(StageError, match=r"run takes clips of 20 frames, .*store holds 4"):
        check_fits(list_subjects([run], [1], "here")[0], ClipStore(store))
    info = json.loads((store / "store.json").read_text())
    info["settings"]["crop"]["size"] = 96
    (store / "store.json").write_text(json.dumps(info))
    with pytest.raises(StageError, match=r"run takes 64 px crops, .*store holds 96 px"):
        reference(run, store, tmp_path / "reference.json", device="cpu")
    assert not (tmp_path / "reference.json").exists()


def test_autocast_is_not_timed_where_it_would_be_emulated(student_run, monkeypatch):
    monkeypatch.setattr("benchmarks.rows.fast_dtype", lambda _: None)
    found = {own.row.scheme: (own.row.status, own.row.reason) for own in list_subjects([student_run], [1], "here")}
    assert found == {
        "fp32": ("measured", ""),
        "autocast": ("not measured", "this CPU has no bfloat16 instructions"),
    }


def test_reference_of_another_store_is_refused(bundle_path, reference_file, demo_corpus, tmp_path):
    prepare([demo_corpus], tmp_path / "store", frames=4, size=64, ratios="0.5,0.25,0.25", seed=9, workers=2)
    with pytest.raises(StageError, match=r"was measured on another store than"):
        bench([bundle_path], tmp_path / "store", reference_file, tmp_path / "out")


def test_random_teacher_cannot_be_the_reference(random_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"cannot be a reference: random weights, never trained"):
        reference(random_run, demo_store, tmp_path / "reference.json")


def test_threads_must_be_counts(bundle_path, demo_store, reference_file, tmp_path):
    with pytest.raises(StageError, match=r"--threads 'all': give one or more counts, as 1 or 1,2"):
        bench([bundle_path], demo_store, reference_file, tmp_path / "out", threads="all")


def test_doctor_knows_this_machine():
    diagnosis = diagnose()
    assert diagnosis["runtimes"]["onnxruntime"] == "runs here"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    assert describe_machine().cores == cores
    assert describe_machine().versions["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("module", "called"),
    [
        ("benchmarks.studies.headline", "python -m benchmarks.studies.headline photos 'my videos'"),
        ("benchmarks.bench", "python -m benchmarks.bench photos 'my videos'"),
        ("pocketproof", "pocketproof photos 'my videos'"),
        (None, "pocketproof photos 'my videos'"),
    ],
)
def test_a_report_names_the_command_that_can_be_called_again(monkeypatch, module, called):
    monkeypatch.setattr(sys, "argv", ["anything", "photos", "my videos"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module and ModuleSpec(module, None), raising=False)
    assert command_of_this_process() == called


def test_more_threads_than_cores_or_one_run_twice_is_refused_before_anything_is_measured(
    student_run, demo_store, reference_file, tmp_path
):
    with pytest.raises(StageError, match=r"--threads 1,4096: this machine has \d+ cores?$"):
        bench([student_run], demo_store, reference_file, tmp_path / "out", threads="1,4096")
    with pytest.raises(StageError, match=r"student is named twice: name each bundle and run once"):
        bench([student_run, student_run.parent / "." / student_run.name], demo_store, reference_file, tmp_path / "out")


def test_a_missing_video_or_depth_network_is_said_before_anything_is_measured(
    student_run, demo_store, reference_file, tmp_path
):
    with pytest.raises(StageError, match=r"typo.mp4"):
        bench([student_run], demo_store, reference_file, tmp_path / "out", video=tmp_path / "typo.mp4")
    video = tmp_path / "some.mp4"
    write_video(video, [np.zeros((120, 160, 3), np.uint8)] * 4)
    with pytest.raises(StageError, match=r"no-weights"):
        bench(
            [student_run],
            demo_store,
            reference_file,
            tmp_path / "out",
            video=video,
            depth_weights=tmp_path / "no-weights",
        )


def test_a_reference_under_autocast_needs_a_processor_that_has_it(teacher_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.reference.fast_dtype", lambda _: None)
    with pytest.raises(StageError, match=r"--precision autocast: this CPU has no bfloat16 instructions"):
        reference(teacher_run, demo_store, tmp_path / "r.json", device="cpu", precision="autocast")
    assert not (tmp_path / "r.json").exists()
