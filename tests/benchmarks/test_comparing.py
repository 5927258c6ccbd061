"""Whether a scheme earned its slot, and against which student verdicts flip."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.comparing import against_peaks, compare_rows, runtimes_apart
from benchmarks.figures import Latency, Peak
from benchmarks.rows import Subject
from benchmarks.schema import Row
from compress.metrics import Threshold
from compress.scoring import ClipScores

CLIPS = 400
FEW = 5
"""Persons: too few for an interval, which takes a second to draw."""


def subject(
    name, scheme, p50, scores=None, student="a", kind="artifact", runtime="executorch", at=0.5, eer=0.5, threads=1
):
    row = Row(
        name=name, kind=kind, model="repvit_m0_9", runtime=runtime, scheme=scheme, machine="here", device="cpu",
        threads=threads, input_size=224, status="measured", bytes=1,
        latency_ms=Latency(p50=p50, p90=p50, p99=p50) if p50 else None,
    )  # fmt: skip
    threshold = Threshold(value=at, false_positive_rate=0.0, rule="given", equal_error=eer)
    return Subject(row, Path(name), False, threshold, None, student, scores=scores)


def scores_of(values, persons=100):
    names = tuple(str(number) for number in range(CLIPS))
    labels = np.arange(CLIPS) % 2
    identities = tuple((str(number // 2 % persons),) for number in range(CLIPS))
    return ClipScores(names, names, labels, ("",) * CLIPS, identities, whole=np.asarray(values, np.float64))


@pytest.fixture
def good():
    """Scores of AUC about .98."""
    rng = np.random.default_rng(0)
    return np.clip(0.5 + 0.25 * (np.arange(CLIPS) % 2 - 0.5) * 2 + rng.normal(0, 0.17, CLIPS), 0.01, 0.99)


def judged(*subjects):
    compare_rows(subjects)
    return subjects[-1].row


def test_a_faster_scheme_of_equal_accuracy_earns_its_slot(good):
    row = judged(subject("fp32", "fp32", 12.0, scores_of(good)), subject("int8", "int8", 4.0, scores_of(good + 1e-6)))
    assert row.earned is True
    assert row.earned_because == "3x as fast as fp32, AUC +0.0000 (+0.0000 to +0.0000)"


def test_speed_is_that_at_equal_threads_and_against_the_first_teacher(good):
    def timed(name, scheme, p50_by_threads, **options):
        scores = scores_of(good, FEW)
        return [subject(name, scheme, p50, scores, threads=n, **options) for n, p50 in p50_by_threads.items()]

    of_teachers = {"kind": "run", "runtime": "torch"}
    teachers = [
        *timed("first", "fp32", {1: 300.0, 2: 160.0}, student="t", **of_teachers),
        *timed("second", "fp32", {1: 30.0, 2: 20.0}, student="u", **of_teachers),
    ]
    for own in teachers:
        own.teacher = True
    fp32, int8 = timed("a", "fp32", {1: 12.0, 2: 10.0}), timed("b", "int8", {1: 4.0, 2: 8.0})
    compare_rows([*teachers, *fp32, *int8])
    assert [own.row.speedup for own in int8] == [75, 20]
    assert [own.row.earned_because.partition(" as ")[0] for own in int8] == ["3x", "1.25x"]


def test_a_slower_scheme_does_not(good):
    row = judged(
        subject("fp32", "fp32", 12.0, scores_of(good, FEW)), subject("fp16", "fp16", 15.0, scores_of(good, FEW))
    )
    assert row.earned is False and row.earned_because.endswith("; not faster here")
    assert row.earned_because.startswith("0.8x as fast as fp32")


def test_a_scheme_that_loses_accuracy_does_not(good):
    noisy = good + np.random.default_rng(1).normal(0, 0.2, CLIPS)
    row = judged(
        subject("fp32", "fp32", 12.0, scores_of(good, FEW)), subject("int8", "int8", 4.0, scores_of(noisy, FEW))
    )
    assert row.earned is False and "; loses more than 0.005 AUC; turns 13.0% of" in row.earned_because


def test_a_scheme_that_is_faster_by_less_than_latencies_vary_does_not(good):
    fp32, fp16 = (
        subject("fp32", "fp32", 12.0, scores_of(good, FEW)),
        subject("fp16", "fp16", 11.8, scores_of(good, FEW)),
    )
    fp16.row.spread = 0.03
    row = judged(fp32, fp16)
    assert row.earned is False and row.earned_because.endswith("; by less than these latencies vary, 3.0%")
    fp16.row.spread = 0.01
    assert judged(fp32, fp16).earned is True
    fp32.row.spread = 0.03
    assert judged(fp32, fp16).earned is False


@pytest.mark.parametrize(("turned", "earned"), [(12, True), (13, False)])
def test_of_100_verdicts_three_may_turn(turned, earned):
    """Those that do lie above those of real clips still, so that the AUC does not change."""
    sure = np.where(np.arange(CLIPS) % 2 == 0, 0.1, 0.9)
    other = sure.copy()
    other[1 : 2 * turned : 2] = 0.45
    row = judged(
        subject("fp32", "fp32", 12.0, scores_of(sure, FEW)),
        subject("int8", "int8", 4.0, scores_of(other, FEW)),
    )
    assert row.earned is earned, row.earned_because


@pytest.mark.parametrize(("turned", "earned"), [(1, True), (2, False)])
def test_of_20_verdicts_one_may_turn_though_that_is_more_than_three_of_100(turned, earned):
    few = 20
    names, labels = tuple(map(str, range(few))), np.arange(few) % 2
    sure = np.where(labels == 0, 0.1, 0.9)
    other = sure.copy()
    other[1 : 2 * turned : 2] = 0.45
    row = judged(
        *(
            subject(scheme, scheme, p50, ClipScores(names, names, labels, names, (("one",),) * few, whole=values))
            for scheme, p50, values in (("fp32", 12.0, sure), ("int8", 4.0, other))
        )
    )
    assert row.earned is earned, row.earned_because


@pytest.mark.parametrize("thresholds", [{"at": 0.7}, {"eer": 0.7}])
def test_a_scheme_that_turns_verdicts_does_not(good, thresholds):
    """Its scores are those of fp32, its threshold is not."""
    row = judged(
        subject("fp32", "fp32", 12.0, scores_of(good, FEW)),
        subject("int8", "int8", 4.0, scores_of(good, FEW), **thresholds),
    )
    share = ((good > 0.5) != (good > 0.7)).mean()
    assert row.earned is False and row.earned_because.endswith(f"; turns {share:.1%} of the verdicts")


def test_one_model_in_two_runtimes_must_say_the_same(good):
    def pair(other, source="run"):
        rows = [subject("a.pte", "int8", 4.0, scores_of(good)), other]
        for entry, delegate, origin in zip(rows, ("xnnpack", None), ("run", source), strict=True):
            entry.row.auc = 0.9
            entry.artifact = SimpleNamespace(
                source_run=origin, scheme=entry.row.scheme, method="forward", batch=1, delegate=delegate
            )
        return runtimes_apart(rows)

    assert pair(subject("a.onnx", "int8", 4.0, scores_of(good), runtime="onnxruntime")) == []
    assert pair(subject("b.pte", "int8", 4.0, scores_of(good), at=0.9)) == []
    assert pair(subject("a.onnx", "fp32", 4.0, scores_of(good), runtime="onnxruntime", at=0.9)) == []
    assert pair(subject("a.onnx", "int8", 4.0, scores_of(good), runtime="onnxruntime", at=0.9), "another") == []
    share = ((good > 0.5) != (good > 0.9)).mean()
    assert pair(subject("a.onnx", "int8", 4.0, scores_of(good), runtime="onnxruntime", at=0.9)) == [
        f"a.pte and a.onnx are one model in two runtimes, and lie 0.0000 AUC and {share:.1%} of the verdicts apart "
        "(at most 0.005 and 3% are expected)."
    ]


def test_a_scheme_that_may_lose_accuracy_does_not():
    """One clip below 80 % of the reals costs .004, but three times that where its person is drawn three times."""
    right = np.arange(CLIPS) % 2 + np.linspace(0, 0.5, CLIPS)
    wrong = right.copy()
    wrong[1] = np.quantile(right[::2], 0.2)
    row = judged(
        subject("fp32", "fp32", 12.0, scores_of(right, persons=12)),
        subject("int8", "int8", 4.0, scores_of(wrong, persons=12)),
    )
    assert row.earned is False and "AUC -0.0040 (-0.01" in row.earned_because
    assert row.earned_because.endswith("; may lose 0.01 AUC")


def test_what_cannot_be_told_is_not(good):
    fp32 = subject("fp32", "fp32", 12.0, scores_of(good))
    cases = {
        "no fp32 row of the same student, runtime and device to compare with": subject("b", "int8", 4.0, student="b"),
        "not timed here": subject("int8", "int8", None, scores_of(good)),
        "its accuracy was not measured": subject("int8", "int8", 4.0),
    }
    for reason, own in cases.items():
        row = judged(fp32, own)
        assert (row.earned, row.earned_because) == (None, reason)
    other_runtime = judged(fp32, subject("int8", "int8", 4.0, scores_of(good), runtime="onnxruntime"))
    assert other_runtime.earned is None
    assert fp32.row.earned is None and fp32.row.earned_because == ""


def test_few_persons_give_no_interval(good):
    few = (scores_of(good, persons=5) for _ in range(2))
    row = judged(*(subject(name, scheme, p50, next(few)) for name, scheme, p50 in (("f", "fp32", 2), ("i", "int8", 1))))
    assert row.earned is True and row.earned_because.endswith("(too few persons for an interval)")


def test_verdicts_flip_against_the_student_that_a_row_was_made_from(good):
    gelu = subject("gelu", "fp32", 12.0, scores_of(good), "a", "run", "torch", at=0.9, eer=0.5)
    relu = subject("relu", "fp32", 12.0, scores_of(1 - good), "b", "run", "torch", at=0.9, eer=0.5)
    own = subject("relu.pte", "int8", 4.0, scores_of(1 - good), "b", at=0.8, eer=0.55)
    stray = subject("stray.pte", "int8", 4.0, scores_of(good), "c")
    compare_rows([gelu, relu, own, stray])
    assert own.row.student == "relu"
    assert own.row.verdict_flips == np.mean((1 - good > 0.8) != (1 - good > 0.9)) > 0
    assert own.row.equal_error_flips == np.mean((1 - good > 0.55) != (1 - good > 0.5)) > 0
    assert (gelu.row.verdict_flips, relu.row.verdict_flips, stray.row.verdict_flips) == (0.0, 0.0, None)


def test_verdicts_at_thresholds_of_two_stores_are_not_compared(good):
    run = subject("run", "fp32", 12.0, scores_of(good), "a", "run", "torch", at=0.9)
    own = subject("a.pte", "int8", 4.0, scores_of(good), "a", at=0.3)
    run.threshold_store, own.threshold_store = "one", "two"
    compare_rows([run, own])
    assert (own.row.student, own.row.verdict_flips, run.row.verdict_flips) == (None, None, 0.0)


def test_a_scheme_whose_threshold_is_of_another_store_is_judged_by_all_else(good):
    fp32 = subject("fp32", "fp32", 12.0, scores_of(good, FEW))
    own = subject("int8", "int8", 4.0, scores_of(good, FEW), at=0.7)
    fp32.threshold_store, own.threshold_store = "one", "two"
    row = judged(fp32, own)
    assert row.earned is None
    assert row.earned_because.endswith("; its verdicts cannot be compared: its threshold and fp32's are of two stores")
    own.row.latency_ms = Latency(p50=15, p90=15, p99=15)
    assert judged(fp32, own).earned is False and own.row.earned_because.endswith("; not faster here")


def test_runtimes_whose_thresholds_are_of_two_stores_are_compared_by_auc(good):
    one = subject("a.pte", "int8", 4.0, scores_of(good))
    other = subject("a.onnx", "int8", 4.0, scores_of(good), runtime="onnxruntime", at=0.9)
    for own, store in ((one, "one"), (other, "two")):
        own.row.auc, own.threshold_store = 0.9, store
        own.artifact = SimpleNamespace(source_run="run", scheme="int8", method="forward", batch=1, delegate=None)
    assert runtimes_apart([one, other]) == []
    other.row.auc = 0.8
    assert runtimes_apart([one, other]) == [
        "a.pte and a.onnx are one model in two runtimes, and lie 0.1000 AUC apart (at most 0.005 is expected)."
    ]


def test_verdicts_of_an_exported_teacher_flip_against_its_run(good):
    teacher = subject("teacher", "fp32", 12.0, scores_of(good), "a", "run", "torch")
    rounded = subject("teacher-int8", "int8", None, scores_of(1 - good), "a", "run", "torch")
    teacher.teacher = rounded.teacher = True
    own = subject("teacher.pte", "int8", 4.0, scores_of(1 - good), "a")
    compare_rows([teacher, rounded, own])
    assert (own.row.student, own.row.verdict_flips) == ("teacher", np.mean((1 - good > 0.5) != (good > 0.5)))
    assert (teacher.row.verdict_flips, rounded.row.verdict_flips) == (None, own.row.verdict_flips)


def test_share_of_the_peak_is_of_rows_on_the_cores_it_was_measured_on(good):
    peaks = [
        Peak(threads=1, fp32_gmacs=100.0, int8_gmacs=400.0, drift=0.0),
        Peak(threads=2, fp32_gmacs=200.0, int8_gmacs=500.0, drift=0.0),
    ]
    rows = [
        subject("a", "fp32", 10.0),
        subject("b", "int8", 10.0),
        subject("c", "fp32", 0.5, runtime="coreml"),
        subject("d", "autocast", 10.0, kind="run", runtime="torch"),
        subject("e", "fp32", None),
        subject("f", "fp32", 10.0, threads=2),
        subject("g", "int8", 10.0, threads=2),
        subject("h", "fp32", 10.0, threads=4),
    ]
    for own in rows:
        own.row.macs = 500_000_000
    against_peaks(rows, peaks)
    shares = [own.row.peak_fraction for own in rows]
    assert shares == [*map(pytest.approx, (0.5, 0.125)), None, None, None, *map(pytest.approx, (0.25, 0.1)), None]
