"""Evaluating runs and artifacts on their own and on other corpora, and what recompression costs them."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.evaluation import Evaluation
from compress.metrics import compute_metrics
from compress.runs import own_threshold, pixel_detector, takes, torch_scorer
from compress.scoring import Takes, score_clip_list
from data.depth import DepthAnything
from data.prepare import prepare
from data.recompress import RecompressedStore, Recompression
from data.store import ClipStore
from export.bundle import Bundle
from export.evaluate import evaluate
from models.detector import Detector
from models.run import Run, save_run
from stage import StageError
from tests.conftest import forget_hashes


@pytest.fixture
def teacher_copy(teacher_run, tmp_path):
    return shutil.copytree(teacher_run, tmp_path / "teacher")


def _run_looking_at(path, like, modalities):
    """Write a run that says it looks at these modalities; its weights are drawn at random."""
    source = Run(like)
    architecture = source.info.architecture.model_copy(update={"modalities": modalities})
    info = source.info.model_copy(update={"architecture": architecture})
    save_run(path, info, Detector(architecture), json.loads(source.read("metrics.json")))
    return path


@pytest.fixture(scope="module")
def photo_store(astronaut, tmp_path_factory):
    """One real photo, 64 pixels."""
    folder = tmp_path_factory.mktemp("photo")
    (folder / "photos").mkdir()
    Image.fromarray(astronaut).save(folder / "photos" / "p0.png")
    prepare([folder / "photos"], folder / "store", label="real", size=64, ratios="0,0,1")
    return folder / "store"


def _scores(run, store, split, source=None):
    scorer = torch_scorer(pixel_detector(Run(run)), torch.device("cpu"))
    return score_clip_list(scorer, source or store, store.clips(split), "score")


def _by_hand(run, store, split, source=None):
    return compute_metrics(_scores(run, store, split, source), own_threshold(Run(run)).value)


def _file_name(evaluation):
    parts = (evaluation.store, evaluation.fingerprint[:8], evaluation.split, evaluation.recompression)
    return "-".join(filter(None, parts)) + ".json"


def _set_threshold(run, value):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["threshold"]["value"] = value
    (run / "metrics.json").write_text(json.dumps(metrics))


def test_plain_and_recompressed_figures_are_saved_and_shown(teacher_copy, demo_store, opened_store, capsys):
    made = evaluate(teacher_copy, demo_store, recompress="jpeg:20,90")
    assert [entry.recompression for entry in made] == [None, "jpeg-20", "jpeg-90"]
    files = {path.name: path for path in (teacher_copy / "evaluations").iterdir()}
    fingerprint = opened_store.info.fingerprint[:8]
    assert set(files) == {f"demo-{fingerprint}-test{how}.json" for how in ("", "-jpeg-20", "-jpeg-90")}
    for entry in made:
        assert Evaluation.model_validate_json(files[_file_name(entry)].read_bytes()) == entry
    assert made[0].metrics == _by_hand(teacher_copy, opened_store, "test")
    source = RecompressedStore(opened_store, Recompression("jpeg", 20))
    assert made[1].metrics == _by_hand(teacher_copy, opened_store, "test", source)
    assert made[0].model.name == "teacher"
    assert made[0].fingerprint == opened_store.info.fingerprint
    printed = capsys.readouterr().out
    for text in ("crops as they are", "jpeg-20", "clips of SelfBlended", "videos", "TPR at 1% FPR", "new persons"):
        assert text in printed
    assert (
        "not given for clips, videos, clips of SelfBlended: intervals: needs 10 persons of each label, has 3" in printed
    )
    levels = "frames, clips, videos, clips of SelfBlended"
    assert f"not given for {levels}: tpr_at_fpr 0.01: needs 300 real videos, has 3" in printed


def test_h264_as_json(teacher_copy, demo_store, opened_store, capsys):
    source = RecompressedStore(opened_store, Recompression("h264", 45))
    plain, changed = (_scores(teacher_copy, opened_store, "val", pictures) for pictures in (None, source))
    # Between a clip's two scores, so that its verdict tells which pictures were scored.
    cuts = (plain.clips + changed.clips) / 2
    verdicts = [[(scores.clips > cut) == scores.labels for cut in cuts] for scores in (plain, changed)]
    telling = np.flatnonzero(np.mean(verdicts[0], 1) != np.mean(verdicts[1], 1))[0]
    _set_threshold(teacher_copy, float(cuts[telling]))
    made = evaluate(teacher_copy, demo_store, split="val", recompress="h264:45", as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["recompression"] for line in lines] == [None, "h264-45"]
    assert lines == [json.loads(entry.model_dump_json()) for entry in made]
    assert made[1].metrics == _by_hand(teacher_copy, opened_store, "val", source)
    assert made[0].metrics == _by_hand(teacher_copy, opened_store, "val")
    assert made[1].metrics.clip.accuracy != made[0].metrics.clip.accuracy


def test_int8_run_has_the_figures_that_quantize_measured(int8_run, demo_store, tmp_path):
    run = shutil.copytree(int8_run, tmp_path / "int8")
    (made,) = evaluate(run, demo_store, split="val")
    expected = json.loads(Run(run).read("metrics.json"))["val"]
    assert expected.pop("auc") == made.metrics.auc
    assert json.loads(made.metrics.model_dump_json()) == expected


def test_training_clips_that_are_lost_are_noted(teacher_copy, demo_store, tmp_path):
    store = shutil.copytree(demo_store, tmp_path / "store")
    lost = store / "clips" / f"{ClipStore(store).clips('train')[0].video_id}.parquet"
    lost.unlink()
    (made,) = evaluate(teacher_copy, store, split="train")
    assert f"1 files of the train split are missing or damaged: {lost.name}." in made.notes


def test_another_corpus_of_photos_of_one_label(teacher_copy, photo_store, capsys):
    (made,) = evaluate(teacher_copy, photo_store)
    assert (made.metrics.clip.real, made.metrics.clip.fake) == (1, 0)
    assert made.metrics.clip.accuracy in (0.0, 1.0)
    assert made.metrics.methods == {}
    assert "needs both labels: 1 real, 0 fake" in capsys.readouterr().out
    again = evaluate(teacher_copy, photo_store)
    assert len(list((teacher_copy / "evaluations").iterdir())) == len(again) == 1


def test_a_run_takes_what_its_architecture_says(teacher_run, tmp_path):
    assert takes(Run(teacher_run).info) == Takes(("rgb",), "frame")
    run = _run_looking_at(tmp_path / "run", teacher_run, ("rgb", "flow"))
    assert takes(Run(run).info) == Takes(("rgb", "flow"), "frame")


def test_figures_of_a_run_that_may_not_be_written_go_where_they_are_asked_to(
    teacher_copy, demo_store, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, _: path != teacher_copy)
    monkeypatch.setattr("compress.evaluation.score_clip_list", lambda *_: pytest.fail("scored in vain"))
    with pytest.raises(StageError, match=rf"as {teacher_copy} may not: give --out, a folder that may"):
        evaluate(teacher_copy, demo_store)
    monkeypatch.undo()
    (made,) = evaluate(teacher_copy, demo_store, out=tmp_path / "figures")
    kept = Evaluation.model_validate_json((tmp_path / "figures" / _file_name(made)).read_bytes())
    assert kept == made and not (teacher_copy / "evaluations").exists()


def test_figures_do_not_go_into_a_bundle(bundle_path, teacher_run, demo_store, monkeypatch):
    monkeypatch.setattr("compress.evaluation.score_clip_list", lambda *_: pytest.fail("scored in vain"))
    with pytest.raises(StageError, match=r"is in the bundle .+, which stays as it was exported: give a path beside it"):
        evaluate(teacher_run, demo_store, out=bundle_path)


def test_figures_of_another_model_are_not_overwritten(teacher_run, student_run, demo_store, tmp_path):
    (made,) = evaluate(teacher_run, demo_store, out=tmp_path)
    evaluate(teacher_run, demo_store, out=tmp_path)
    kept = (tmp_path / _file_name(made)).read_bytes()
    with pytest.raises(StageError, match=r"-test\.json is not of student as it is now: remove it or"):
        evaluate(student_run, demo_store, out=tmp_path)
    assert (tmp_path / _file_name(made)).read_bytes() == kept
    (tmp_path / _file_name(made)).write_text("[]")
    with pytest.raises(StageError, match=r"-test\.json is not of teacher as it is now"):
        evaluate(teacher_run, demo_store, out=tmp_path)


def test_a_file_or_a_broken_link_in_place_of_the_folder_is_refused_before_scoring(
    teacher_run, demo_store, tmp_path, capsys
):
    (tmp_path / "figures.json").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for out, culprit in (("figures.json", "figures.json"), ("link/figures", "link")):
        with pytest.raises(StageError, match=rf"as \S+/{culprit} is no folder: give --out, a folder"):
            evaluate(teacher_run, demo_store, out=tmp_path / out)
    assert not capsys.readouterr().out


def test_figures_that_cannot_be_saved_are_shown(teacher_run, demo_store, tmp_path, monkeypatch, capsys):
    def refuse(target, evaluation):
        raise StageError(f"cannot write {target}: No space left on device")

    monkeypatch.setattr("compress.evaluation._save", refuse)
    with pytest.raises(StageError, match="No space left"):
        evaluate(teacher_run, demo_store, out=tmp_path)
    assert "crops as they are" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_figures_are_saved_where_standard_output_is_full(teacher_run, demo_store, tmp_path, monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left"):
            evaluate(teacher_run, demo_store, out=tmp_path)
        with contextlib.suppress(OSError):
            full.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_refused_work_is_one_line_and_saves_nothing(teacher_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"--recompress 'h265:23': give h264:CRF of 0 to 51 or jpeg:QUALITY"):
        evaluate(teacher_run, demo_store, recompress="h265:23")
    with pytest.raises(StageError, match=r"--depth-weights is for --recompress and runs that look at depth"):
        evaluate(teacher_run, demo_store, depth_weights=tmp_path)
    with pytest.raises(StageError, match=r"is not a run: it has no readable model.json"):
        evaluate(tmp_path, demo_store)
    assert not (teacher_run / "evaluations").exists()


def test_depth_of_recompressed_crops_is_computed_anew(drawn_run, modal_store, tiny_depth, tmp_path):
    of_crops = {"crops": ClipStore(modal_store).info.settings.made(["depth"])}
    run = drawn_run(tmp_path / "run", {"data": {"fingerprint": "none"} | of_crops}, modalities=("depth",))
    metrics = {"threshold": {"value": 0.5, "false_positive_rate": 0.0, "rule": "by hand", "equal_error": 0.5}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    forget_hashes(run)
    plain, found = evaluate(run, modal_store, recompress="jpeg:30", depth_weights=tiny_depth)
    store = ClipStore(modal_store)
    pictures = RecompressedStore(store, Recompression("jpeg", 30), DepthAnything(folder=tiny_depth))
    scorer = torch_scorer(pixel_detector(Run(run)), torch.device("cpu"))
    scores = score_clip_list(scorer, pictures, store.clips("test"), "score", takes(Run(run).info))
    assert found.metrics.clip == compute_metrics(scores, 0.5).clip
    assert found.recompression == "jpeg-30" and plain.recompression is None


def test_persons_of_its_own_validation_on_whom_a_parent_was_trained_are_noted(teacher_copy, demo_store):
    """As where the parent has seen another store: the run chose its weights on faces that it knew."""
    told = json.loads((teacher_copy / "model.json").read_text())
    validation = told["data"]["validation_persons"]
    assert evaluate(teacher_copy, demo_store, split="val")[0].notes == Run(teacher_copy).info.data.notes
    told["data"]["validation_persons"] = validation[1:]
    (teacher_copy / "model.json").write_text(json.dumps(told))
    forget_hashes(teacher_copy)
    shutil.rmtree(teacher_copy / "evaluations")
    (found,) = evaluate(teacher_copy, demo_store, split="val")
    assert found.notes[-1].startswith(f"1 of {len(validation)} persons of the val split have names of persons in the")
    told["data"]["validation_persons"] = []  # all of them, not none
    (teacher_copy / "model.json").write_text(json.dumps(told))
    forget_hashes(teacher_copy)
    shutil.rmtree(teacher_copy / "evaluations")
    (found,) = evaluate(teacher_copy, demo_store, split="val")
    assert found.notes[-1].startswith(f"{len(validation)} of {len(validation)} persons of the val split")


def test_store_must_hold_what_the_run_looks_at_and_flow_cannot_be_recompressed(teacher_run, demo_store, tmp_path):
    run = _run_looking_at(tmp_path / "run", teacher_run, ("rgb", "flow"))
    with pytest.raises(StageError, match=r"holds no flow: prepare it with --modalities rgb,flow"):
        evaluate(run, demo_store)
    store = shutil.copytree(demo_store, tmp_path / "store")
    info = json.loads((store / "store.json").read_text())
    info["settings"]["modalities"] = ["rgb", "flow"]
    (store / "store.json").write_text(json.dumps(info))
    with pytest.raises(StageError, match=r"--recompress h264-23: flow cannot be computed from such crops"):
        evaluate(run, store, recompress="h264:23")


def test_size_of_the_crops_must_fit(teacher_run, demo_store, tmp_path):
    store = shutil.copytree(demo_store, tmp_path / "store")
    info = json.loads((store / "store.json").read_text())
    info["settings"]["crop"]["size"] = 96
    (store / "store.json").write_text(json.dumps(info))
    with pytest.raises(StageError, match=r"teacher takes 64 px crops, .*store holds 96 px"):
        evaluate(teacher_run, store)


def test_untrained_random_weights_are_refused_with_the_reason(teacher_run, demo_store, tmp_path):
    source = Run(teacher_run)
    info = source.info.model_copy(update={"trained_steps": 0})
    save_run(tmp_path / "random", info, source.detector(), {})
    with pytest.raises(StageError, match=r"random cannot be evaluated: random weights, never trained"):
        evaluate(tmp_path / "random", demo_store)


def test_scores_do_not_depend_on_which_clips_are_scored_together(teacher_run, opened_store):
    scorer = torch_scorer(pixel_detector(Run(teacher_run)), torch.device("cpu"))
    clips = opened_store.clips("test")
    together = score_clip_list(scorer, opened_store, clips, "score").frames
    alone = [score_clip_list(scorer, opened_store, [clip], "score").frames[0] for clip in clips]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("file", ["test_byobnet-int8.onnx", "test_byobnet-fp32.mlpackage"])
def test_an_artifact_is_measured_at_its_own_threshold(file, bundle_path, demo_store, opened_store, tmp_path):
    copy = shutil.copytree(bundle_path, tmp_path / "bundle")
    bundle = Bundle(copy)
    artifact = bundle.artifact(file)
    plain, jpeg = evaluate(copy, demo_store, artifact=file, recompress="jpeg:20")
    scores = score_clip_list(bundle.load(artifact), opened_store, opened_store.clips("test"), "score")
    assert plain.metrics == compute_metrics(scores, artifact.threshold.value)
    assert jpeg.metrics.frame != plain.metrics.frame  # of 24 frames; those of 6 clips may stay equal
    assert (plain.model.name, plain.model.sha256) == (file, artifact.sha256)
    assert any("not by Core ML" in note for note in plain.notes) == (artifact.evaluated_by is not None)
    saved = tmp_path / "bundle.evaluations" / file / _file_name(plain)
    assert Evaluation.model_validate_json(saved.read_bytes()) == plain
    bundle.check_files()


def test_what_does_not_fit_a_bundle_is_refused(bundle_path, student_run, photo_store, demo_store):
    with pytest.raises(StageError, match=r"has no artifact 'x.pte'; it has test_byobnet-"):
        evaluate(bundle_path, demo_store, artifact="x.pte")
    with pytest.raises(StageError, match=r"--artifact x.pte is for bundles, and .*student is not one: leave it out"):
        evaluate(student_run, demo_store, artifact="x.pte")
    (made,) = evaluate(bundle_path, photo_store)
    assert made.model.name == "test_byobnet-int8.onnx" and made.metrics.clip.real == 1
