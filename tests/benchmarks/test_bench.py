"""Bench: every artifact and run has its rows, and each figure is that of its own measurement."""

import json
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from benchmarks.bench import _peaks, bench, command_of_this_process
from benchmarks.figures import Peak
from benchmarks.processor import Products
from benchmarks.reference import read_reference
from benchmarks.rows import _artifact_subject, list_subjects
from benchmarks.schema import Report, read_report
from benchmarks.worker import measure
from compress.quantize import quantize
from compress.runs import diagnosis_of, pixel_detector, torch_scorer
from compress.scoring import Takes, score_split
from export.bundle import Bundle
from export.runtimes import evaluated_by
from export.verify import check_outputs
from models.run import Run
from stage import StageError
from tests.export.clip_student import NAME

ROW_KEYS = {
    "name", "kind", "model", "runtime", "scheme", "machine", "device", "threads", "cores", "batch", "whole_clip",
    "input_size", "status", "reason", "bytes", "sha256", "load_ms", "first_run_ms", "latency_ms", "repeats",
    "medians_ms", "spread",
    "throughput", "peak_memory_mb", "peak_memory_over_idle_mb", "delegated_fraction", "macs", "peak_fraction",
    "runtime_bytes", "threshold", "auc", "auc_interval", "frame_auc", "video_auc", "methods", "eer", "ap", "accuracy",
    "tpr_at_fpr", "delta_auc", "student", "verdict_flips", "equal_error_flips", "frame_verdict_flips", "control_auc",
    "speedup_over", "speedup", "size_ratio", "earned", "earned_because", "robustness", "sustained", "profile",
}  # fmt: skip


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
        patch.setattr("benchmarks.rounds.usable_cores", lambda: 1)
        patch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
        autocast_run = out.with_name("cast")
        quantize(student_run, demo_store, autocast_run, "autocast")
        bench([bundle_path, random_run, student_run, autocast_run], demo_store, reference_file, out, **options)
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert set(json.loads((out / "report.json").read_text())["rows"][0]) == ROW_KEYS
    return read_report(out / "report.json")


def _row(report, name, scheme):
    return next(row for row in report.rows if (row.name, row.scheme) == (name, scheme))


def test_every_artifact_and_run_has_its_rows(report):
    names = [(row.name, row.scheme) for row in report.rows]
    assert len(names) == 6 + 2 + 2 + 1
    assert {("large", "fp32"), ("large", "autocast"), ("student", "fp32"), ("student", "autocast")} <= set(names)


def test_a_run_that_was_quantized_to_autocast_is_that_of_its_fp32_run(report):
    cast, derived = _row(report, "cast", "autocast"), _row(report, "student", "autocast")
    assert (cast.status, cast.reason) == (derived.status, derived.reason)
    if derived.latency_ms:
        assert cast.macs == derived.macs
        assert cast.auc == pytest.approx(derived.auc, abs=0.02)


def test_a_package_of_a_mac_whose_operations_only_core_ml_computes_is_not_measured_elsewhere(bundle_path, monkeypatch):
    if not evaluated_by("coreml"):
        pytest.skip("Core ML runs here")
    bundle = Bundle(bundle_path)
    artifact = next(artifact for artifact in bundle.manifest.artifacts if artifact.runtime == "coreml")
    lowered = next(step for step in artifact.parity if step.step == "lowered")
    beside = lowered.model_copy(update={"step": "evaluated"})
    departs = beside.model_copy(update={"passed": False, "failure": "far apart"})
    for steps, status, reason in (
        ([], "not measured", "it has an operation that only its runtime computes"),
        ([departs], "not measured", "evaluated by Pocketproof, it departs from its runtime: far apart"),
        ([beside], "evaluated", "by Pocketproof, not by Core ML, which needs macOS"),
    ):
        of_mac = artifact.model_copy(update={"evaluated_by": None, "parity": [lowered, *steps]})
        row = _artifact_subject(bundle, of_mac, "here", 1, None).row
        assert (row.status, row.reason) == (status, reason)
        checked = "golden outputs within" if steps == [beside] else f"by its hash only: {reason}"
        assert check_outputs(bundle, of_mac).startswith(checked)
    unfit = artifact.model_copy(update={"file": "unfit", "evaluated_by": None, "parity": [lowered, departs]})
    for artifacts, mend in (([unfit], "$"), ([unfit, artifact], f": give --artifact {artifact.file}, which Pocketpr")):
        monkeypatch.setattr(bundle, "manifest", bundle.manifest.model_copy(update={"artifacts": artifacts}))
        with pytest.raises(StageError, match=f"no artifact of {bundle.path} can run on this machine{mend}"):
            bundle.chosen(None)


def test_peaks_are_the_faster_of_both_times_and_float32_s_drift_is_told(monkeypatch):
    monkeypatch.setattr("benchmarks.bench.measure_products", lambda threads: Products(fp32=80.0, int8=300.0))
    peaks = _peaks({1: Products(fp32=100.0, int8=200.0), 2: Products(fp32=60.0, int8=400.0)})
    assert peaks == [
        Peak(threads=1, fp32_gmacs=100.0, int8_gmacs=300.0, drift=0.2),
        Peak(threads=2, fp32_gmacs=80.0, int8_gmacs=400.0, drift=0.25),
    ]


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
    assert not any(note.startswith(("No ", "A file that takes a whole clip")) for note in report.notes)
    assert any("not new persons" in note for note in report.notes)


@pytest.fixture(scope="module")
def alone(student_run, demo_store, demo_corpus, reference_file, tmp_path_factory):
    """Bench of one run, with all that is asked for by option, as a function of the folder and of more options."""

    def measured(out, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("benchmarks.rounds.measure_apart", measure)
            patch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
            patch.setattr("benchmarks.clip_budget.answer_of", lambda _module, task, *_: task.measured())
            return bench([student_run], demo_store, reference_file, out, repeats=10, rounds=1, **options)

    out = tmp_path_factory.mktemp("alone") / "report"
    measured(out, video=sorted(demo_corpus.rglob("*.mp4"))[0], sustain=0.5, profile=True)
    return out, measured


def test_what_is_asked_for_by_option_is_in_the_report(alone):
    found = read_report(alone[0] / "report.json")
    timed = [row for row in found.rows if row.latency_ms]
    assert timed and all(row.sustained.frames_per_second and row.profile for row in timed)
    (budget, *_) = found.budgets
    assert budget.row == timed[0].name and budget.frames == 4
    assert [stage.name for stage in budget.stages][:3] == ["decode", "faces", "crop"]
    assert all(stage.ms > 0 for stage in budget.stages)


def test_a_row_that_is_worse_than_a_baseline_s_ends_the_command_after_its_report(alone, tmp_path):
    out, measured = alone
    earlier = json.loads((out / "report.json").read_text())
    for row in earlier["rows"]:
        row["latency_ms"] = row["latency_ms"] and row["latency_ms"] | {"p50": 1e-6}
    (tmp_path / "faster.json").write_text(json.dumps(earlier))
    with pytest.raises(StageError, match=r"the report is in .*again, and is worse than .*faster.json: .*% slower: "):
        measured(tmp_path / "again", baseline=tmp_path / "faster.json")
    assert (tmp_path / "again" / "report.html").exists()
    for row in earlier["rows"]:
        row["latency_ms"] = row["latency_ms"] and row["latency_ms"] | {"p50": 1e6}
    (tmp_path / "slower.json").write_text(json.dumps(earlier))
    measured(tmp_path / "third", baseline=tmp_path / "slower.json")


def test_clip_artifacts_have_rows(
    clip_artifacts, demo_store, demo_control_store, opened_store, reference_file, tmp_path, monkeypatch
):
    # In this process, as above, and one at a time: coremltools does not load two programs at once.
    monkeypatch.setattr("benchmarks.rounds.measure_apart", measure)
    monkeypatch.setattr("benchmarks.rounds.usable_cores", lambda: 1)
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
    assert [row.whole_clip for row in made.rows] == [False, True] * 3
    assert sum(note.endswith(f"Of whole clips: {', '.join(whole)}.") for note in made.notes) == 1
    names = ", ".join(row.name for row in made.rows)
    alone = f"No verdict flips, as the fp32 run is not among the rows, or was not scored: {names}."
    assert {alone, "No speedup or size ratio, as no teacher's fp32 run was timed beside these rows."} < {*made.notes}
    for row in made.rows[:4]:
        artifact = bundle.artifact(row.name)
        scores = score_split(bundle.load(artifact), opened_store, "test", Takes(per="clip"))
        assert (row.status, row.bytes) == ("measured", artifact.bytes) and row.repeats >= 10
        assert row.auc == pytest.approx(scores.metrics(artifact.threshold.value).auc)
        assert row.frame_auc is None
        assert row.control_auc == 0.5
        assert row.latency_ms is not None


def test_autocast_is_not_timed_where_it_would_be_emulated(student_run, monkeypatch):
    monkeypatch.setattr("benchmarks.rows.fast_dtype", lambda _: None)
    found = {own.row.scheme: (own.row.status, own.row.reason) for own in list_subjects([student_run], [1], "here")}
    assert found == {
        "fp32": ("measured", ""),
        "autocast": ("not measured", "this CPU has no bfloat16 instructions"),
    }


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
