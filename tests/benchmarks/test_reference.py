"""The reference: what it says of the teacher, and which teachers and stores it refuses."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.reference import Reference, read_reference, reference
from benchmarks.task import Measurement
from benchmarks.worker import measure
from compress.runs import own_threshold, pixel_detector, takes, torch_scorer
from compress.scoring import score_split
from data.store import ClipStore
from models.run import Run
from stage import StageError
from tests.benchmarks.test_rounds import replace_store
from tests.conftest import note_anew


def test_reference_scores_are_the_teacher_s(reference_file, teacher_run, opened_store):
    found = read_reference(reference_file)
    scores = score_split(torch_scorer(pixel_detector(Run(teacher_run)), torch.device("cpu")), opened_store, "test")
    np.testing.assert_allclose(np.array(found.scores.frames), scores.frames, atol=1e-5)
    assert found.metrics.auc == scores.metrics(0.5).auc
    again = found.scores.to_clip_scores()
    for field in ("clip_ids", "video_ids", "methods", "identities", "whole"):
        assert getattr(again, field) == getattr(scores, field)
    assert set(json.loads(reference_file.read_text())) == set(Reference.model_fields)
    assert re.fullmatch(r"(1 thread|\d+ threads) of .+, \d+ cores?", found.device)
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


def test_clip_model_can_be_the_reference(clip_run_and_store, tmp_path, monkeypatch):
    run, path = clip_run_and_store
    store = ClipStore(path)
    # In this process, which has torch: starting another takes longer than all the rest.
    monkeypatch.setattr("benchmarks.reference.measure_apart", measure)
    made = reference(run, path, tmp_path / "reference.json", device="cpu", repeats=10)
    scores = made.scores.to_clip_scores()
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


def test_the_timed_pictures_lie_beside_the_reference_while_it_is_made(clip_run_and_store, tmp_path, monkeypatch):
    def killed(task):
        assert {path.parent.parent for path in task.crops.parent.iterdir()} == {tmp_path}
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.reference.measure_apart", killed)
    with pytest.raises(KeyboardInterrupt):
        reference(*clip_run_and_store, tmp_path / "reference.json", device="cpu", repeats=10)
    assert not list(tmp_path.iterdir())


def test_a_reference_is_of_the_store_that_it_names(clip_run_and_store, tmp_path, monkeypatch):
    run, store = clip_run_and_store
    store = shutil.copytree(store, tmp_path / "store")

    def replaced(task):
        replace_store(None, None, store)
        return Measurement(timing=None, scores={})

    monkeypatch.setattr("benchmarks.reference.measure_apart", replaced)
    with pytest.raises(StageError, match=rf"{store} was changed while it was scored"):
        reference(run, store, tmp_path / "reference.json", device="cpu", repeats=10)


def test_random_teacher_cannot_be_the_reference(random_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"cannot be a reference: random weights, never trained"):
        reference(random_run, demo_store, tmp_path / "reference.json")


def test_a_reference_under_autocast_needs_a_processor_that_has_it(teacher_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.reference.fast_dtype", lambda _: None)
    with pytest.raises(StageError, match=r"--precision autocast: this CPU has no bfloat16 instructions"):
        reference(teacher_run, demo_store, tmp_path / "r.json", device="cpu", precision="autocast")
    assert not (tmp_path / "r.json").exists()
