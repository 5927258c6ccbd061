"""How what was measured fills a row."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.comparing import share_thresholds
from benchmarks.figures import Latency
from benchmarks.rounds import Corpora
from benchmarks.rows import Subject, fill_row, list_subjects
from benchmarks.schema import Row
from benchmarks.task import Measurement, Scores, Timing
from compress.metrics import Threshold
from export.bundle import Bundle
from files import shortest_names
from models.cost import macs_of
from models.run import Run
from stage import StageError
from tests.export.clip_student import clip_bundle


def row_of(name="a.onnx"):
    return Row(
        name=name, kind="artifact", model="repvit_m0_9", runtime="onnxruntime", scheme="fp32", machine="here",
        device="cpu", threads=1, input_size=224, status="measured", bytes=1,
    )  # fmt: skip


def subject(tmp_path):
    threshold = Threshold(value=0.5, false_positive_rate=0.0, rule="given", equal_error=0.5)
    return Subject(row_of(), tmp_path, False, threshold, None, None)


def timing(times, load=5.0, peak=100.0):
    return Timing(
        load_ms=load, first_run_ms=9.0, times_ms=times, peak_memory_mb=peak, idle_memory_mb=40.0, runtime_bytes=7,
        cores=[1],
    )  # fmt: skip


def test_rounds_are_pooled_and_their_medians_tell_the_spread(tmp_path):
    own = subject(tmp_path)
    rounds = [[10.0, 10.0, 10.0], [10.4, 10.4, 20.0], [10.2, 10.2, 10.2]]
    found = [Measurement(timing=timing(times, load, 100 + load), scores={}) for load, times in enumerate(rounds)]
    fill_row(own, found, None, "test")
    row = own.row
    assert row.medians_ms == [10.0, 10.4, 10.2]
    assert row.spread == pytest.approx(0.4 / 10.2)
    assert not row.unstable
    assert row.latency_ms == Latency(p50=np.median(np.concatenate(rounds)), p90=None, p99=None)
    assert row.repeats == 9
    assert row.throughput == pytest.approx(1e3 / np.mean(rounds))
    assert (row.load_ms, row.peak_memory_mb, row.peak_memory_over_idle_mb) == (0.0, 100.0, 60.0)
    assert (row.cores, row.runtime_bytes) == ([1], 7)


def test_medians_of_more_than_a_twentieth_apart_are_unstable(tmp_path):
    own = subject(tmp_path)
    fill_row(own, [Measurement(timing=timing([ms] * 4), scores={}) for ms in (10.0, 10.6)], None, "test")
    assert own.row.spread == pytest.approx(0.6 / 10.3)
    assert own.row.unstable


def test_a_single_round_is_told_by_its_thirds(tmp_path):
    own = subject(tmp_path)
    fill_row(own, [Measurement(timing=timing([10.0, 10, 10, 12, 12, 12, 14, 14, 14]), scores={})], None, "test")
    assert own.row.medians_ms == [10.0, 12.0, 14.0]
    assert own.row.unstable


def test_accuracy_comes_by_clips_videos_and_methods(tmp_path):
    own = subject(tmp_path)
    scores = Scores(
        clip_ids=list("abcdef"),
        video_ids=["1", "1", "2", "3", "4", "5"],
        labels=[0, 0, 0, 1, 1, 1],
        methods=["real", "real", "real", "Swap", "Swap", "Blend"],
        identities=[["p"]] * 6,
        frames=None,
        whole=[0.1, 0.7, 0.2, 0.9, 0.3, 0.15],
    )
    fill_row(own, [Measurement(timing=None, scores={"test": scores})], 0.75, "test")
    assert own.row.auc == pytest.approx(6 / 9)
    assert own.row.delta_auc == pytest.approx(6 / 9 - 0.75)
    assert own.row.video_auc == pytest.approx(3 / 6)  # the first video has the mean .4
    assert {name: (own.fake, own.auc) for name, own in own.row.methods.items()} == {
        "Swap": (2, pytest.approx(5 / 6)),
        "Blend": (1, pytest.approx(1 / 3)),
    }


def test_autocast_has_the_threshold_of_its_run_where_another_store_gave_that(drawn_run, opened_store, tmp_path):
    run = drawn_run(tmp_path / "run", {"data": {"fingerprint": "of its store"}})
    (run / "metrics.json").write_text(
        json.dumps({"threshold": {"value": 0.25, "false_positive_rate": 0.5, "rule": "given"}})
    )
    corpora = Corpora(opened_store, "test")
    for fingerprint, scored, threshold, reason in (
        ("of its store", {"test", "val"}, None, ""),
        ("of another", {"test"}, 0.25, "at the threshold of its fp32 run, which is of another store"),
    ):
        fp32, cast = list_subjects([run], [1], "here")
        cast.row.status, cast.row.reason = "measured", ""  # also where the processor has no bfloat16
        share_thresholds([fp32, cast], fingerprint)
        assert (fp32.threshold.value, fp32.row.reason) == (0.25, "")
        assert (cast.threshold and cast.threshold.value, cast.row.reason) == (threshold, reason)
        assert set(corpora.of(cast, first_threads=True)) == scored


def test_a_run_has_a_threshold_of_the_store_that_gave_its_artifacts_theirs(bundle_path, student_run, tmp_path):
    run = shutil.copytree(student_run, tmp_path / "run")
    told = json.loads((run / "model.json").read_text())
    artifacts = list_subjects([bundle_path], [1], "here")
    (scored,) = {own.threshold_store for own in artifacts}
    (run / "model.json").write_text(json.dumps(told | {"data": told["data"] | {"fingerprint": "of another store"}}))
    fp32, cast = list_subjects([run], [1], "here")
    for own in artifacts:
        own.student = fp32.student
    share_thresholds([*artifacts, fp32, cast], scored)
    assert (fp32.threshold, cast.threshold) == (None, None)  # to be set on the scored store's validation clips
    assert fp32.row.reason == "at a threshold of the scored store's validation clips, as what it is compared with is"
    assert {own.threshold_store for own in (*artifacts, fp32, cast)} == {scored}
    fp32, cast = list_subjects([run], [1], "here")
    share_thresholds([*artifacts, fp32, cast], "of a third store")
    assert fp32.threshold is not None and fp32.threshold_store == "of another store"


def test_a_run_has_a_threshold_of_the_store_that_gave_another_run_of_its_student_one(int8_run, student_run, tmp_path):
    int8 = shutil.copytree(int8_run, tmp_path / "int8")
    told = json.loads((int8 / "model.json").read_text())
    (int8 / "model.json").write_text(json.dumps(told | {"data": told["data"] | {"fingerprint": "of another store"}}))
    trained_on = told["data"]["fingerprint"]
    for scored, moved in ((trained_on, "int8"), ("of another store", "fp32"), ("of a third store", None)):
        (rounded,), (fp32, cast) = list_subjects([int8], [1], "here"), list_subjects([student_run], [1], "here")
        share_thresholds([rounded, fp32, cast], scored)
        assert [own.row.scheme for own in (rounded, fp32) if own.threshold is None] == ([moved] if moved else [])
        assert len({rounded.threshold_store, fp32.threshold_store}) == (1 if moved else 2)


def test_macs_of_an_artifact_are_those_of_its_network(bundle_path, student_run):
    detector = Run(student_run).detector()
    for own in list_subjects([bundle_path], [1], "here"):
        # Without the branches that fusing took away, and no more than a sum and a product for each pixel beside them.
        assert 0 < own.row.macs <= macs_of(detector, *detector.example(1))
    assert len({own.row.macs for own in list_subjects([bundle_path], [1], "here")}) == 1


def test_macs_of_a_clip_student_are_a_frame_s_share(demo_store, tmp_path_factory):
    path = clip_bundle(demo_store, tmp_path_factory)
    frames = Bundle(path).manifest.clip.frames
    by_form = {own.row.name: own.row.macs for own in list_subjects([path], [1], "here")}
    for artifact in Bundle(path).manifest.artifacts:
        counts = {program.name: program.macs for program in artifact.programs}
        if "clip" in counts:
            assert by_form[artifact.file] == counts["clip"] // frames
        else:
            assert by_form[artifact.file] == counts["embed"] + counts["score"] // frames
    assert max(by_form.values()) - min(by_form.values()) <= 1


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(9, None, None), (10, 9.1, None), (99, 89.2, None), (100, 90.1, 99.01)]
)
def test_a_percentile_needs_a_time_above_it(count, p90, p99):
    found = Latency.of([float(ms) for ms in range(1, count + 1)])
    assert (found.p50, found.p90, found.p99) == (pytest.approx((count + 1) / 2), pytest.approx(p90), pytest.approx(p99))


def test_rows_of_one_file_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / place / "small-int8.pte" for place in ("a/bundle", "b/bundle", "c")] + [tmp_path / "student"]
    names = shortest_names(paths)
    assert list(names.values()) == ["a/bundle/small-int8.pte", "b/bundle/small-int8.pte", "c/small-int8.pte", "student"]


def test_a_bundle_whose_manifest_was_changed_gets_no_rows(bundle_path, tmp_path):
    """Its thresholds would give verdicts that the exported files do not give."""
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["artifacts"][0]["threshold"]["value"] = 0.9
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StageError, match=r"manifest\.json is not the file that was exported: its SHA-256 differs"):
        list_subjects([path], [1], "here")
