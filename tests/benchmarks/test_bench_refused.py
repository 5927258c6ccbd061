"""What bench refuses, before anything is measured where it can, and how it names what failed."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.bench import bench, check_measured
from benchmarks.reference import reference
from benchmarks.rows import check_fits, list_subjects
from compress.quantize import quantize
from data.prepare import prepare
from data.store import ClipStore
from data.video import write_video
from stage import StageError
from tests.benchmarks.reports import plain_report


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


def test_reference_of_another_store_is_refused(bundle_path, reference_file, demo_corpus, tmp_path):
    prepare([demo_corpus], tmp_path / "store", frames=4, size=64, ratios="0.5,0.25,0.25", seed=9, workers=2)
    with pytest.raises(StageError, match=r"was measured on another store than"):
        bench([bundle_path], tmp_path / "store", reference_file, tmp_path / "out")


@pytest.mark.parametrize("option", ["control", "sources"])
def test_what_only_artifacts_have_a_use_for_is_refused_without_one(
    option, student_run, demo_store, demo_control_store, reference_file, tmp_path
):
    given = {"control": demo_control_store, "sources": [tmp_path]}[option]
    with pytest.raises(StageError, match=f"--{option}: for artifacts that are timed here, and there is none: leave it"):
        bench([student_run], demo_store, reference_file, tmp_path / "out", **{option: given})


def test_what_only_timed_rows_have_a_use_for_is_refused_without_one(
    student_run, demo_store, demo_corpus, reference_file, tmp_path
):
    quantize(student_run, demo_store, tmp_path / "run", scheme="autocast", max_auc_drop=1.0)
    video, arguments = sorted(demo_corpus.rglob("*.mp4"))[0], ([tmp_path / "run"], demo_store, reference_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.rows.fast_dtype", lambda _: None)
        with pytest.raises(StageError, match="--sustain: for rows that are timed here, and there is none: leave"):
            bench(*arguments, tmp_path / "out", sustain=5)
        with pytest.raises(StageError, match="--video: no file or run of one sample at once is timed here: leave"):
            bench(*arguments, tmp_path / "out", video=video)


def test_threads_must_be_counts(bundle_path, demo_store, reference_file, tmp_path):
    with pytest.raises(StageError, match=r"--threads 'all': give one or more counts, as 1 or 1,2"):
        bench([bundle_path], demo_store, reference_file, tmp_path / "out", threads="all")


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


def test_rows_that_failed_are_named_with_their_scheme(tmp_path):
    with pytest.raises(StageError, match=r"is in \S*out, but these rows failed: broken\.pte \(fp32, cpu\)$"):
        check_measured(plain_report(), tmp_path / "out")
