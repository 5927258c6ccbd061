"""Schedules, cached features and the two training stages on a small store."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from compress.caches import CacheKey, FrameCache
from compress.distill import distill, load_teacher
from compress.teach import teach
from compress.training import Schedule, settle_batch_norms
from data.batches import Batch, batch_pixels
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import PixelDetector
from models.freezing import freeze
from models.run import Run
from stage import StageError


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    schedule = Schedule(epochs=1, warmup_share=0.1)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert factors[99] < 0.001


def test_cached_features_are_those_of_the_frozen_part(teacher_run, opened_store, tmp_path):
    run = Run(teacher_run)
    detector = run.detector()
    pixels_in = PixelDetector(detector, run.info.preprocessing)
    frozen, _ = freeze(detector.backbone, "1")
    views = Views(opened_store, ViewRule())

    def features(pixels):
        with torch.inference_mode():
            return frozen(pixels_in.pictures(torch.from_numpy(pixels)))

    key = CacheKey(of="f", store="s", weights="w", network="n", precision="fp32", rule=views.rule)
    cache = FrameCache.fill(tmp_path, key, views, features)
    rows = np.array([0, 7, 42, 13])
    live = features(batch_pixels(views, Batch(rows, np.zeros(4, np.int64))))
    torch.testing.assert_close(cache[rows], live, atol=2e-3, rtol=2e-3)


def test_frozen_part_of_a_teacher_keeps_its_starting_weights(demo_store, tmp_path):
    options = {"backbone": "test_vit", "random_weights": True, "unfreeze": "1", "seed": 3}
    teach("dino", demo_store, tmp_path / "start", epochs=0, **options)
    teach("dino", demo_store, tmp_path / "taught", epochs=1, **options)
    start, taught = (Run(tmp_path / name).detector().state_dict() for name in ("start", "taught"))
    moved = {name for name in start if not torch.equal(start[name], taught[name])}
    blocks = len(Run(tmp_path / "start").detector().backbone.blocks)
    assert f"backbone.blocks.{blocks - 1}.mlp.fc1.weight" in moved
    assert all(name.startswith((f"backbone.blocks.{blocks - 1}.", "backbone.norm.", "head.")) for name in moved)


def test_run_that_was_never_trained_says_so(demo_store, tmp_path):
    teach("dino", demo_store, tmp_path / "run", backbone="test_vit", random_weights=True, epochs=0)
    assert Run(tmp_path / "run").info.meaningless.startswith("random weights, never trained")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] is None
    with pytest.raises(StageError, match=r"has nothing to teach: random weights, never trained"):
        load_teacher(tmp_path / "run", ClipStore(demo_store))


def test_student_s_metrics_hold_history_threshold_and_both_splits(student_run):
    metrics = json.loads((student_run / "metrics.json").read_text())
    assert set(metrics) == {"cost", "training", "threshold", "val", "test"}
    assert len(metrics["training"]["passes"]) == 8
    assert metrics["training"]["steps"] == 8 * 3  # 24 real frames, 8 of them a batch
    assert metrics["training"]["passes"][-1]["loss"] < metrics["training"]["passes"][0]["loss"]
    assert (metrics["test"]["clip"]["real"], metrics["test"]["clip"]["fake"]) == (3, 3)


def test_best_epoch_on_validation_is_what_is_kept(student_run):
    metrics = json.loads((student_run / "metrics.json").read_text())
    # The kept weights are scored in float32, the epochs under autocast: equal but for the order of near scores.
    assert metrics["val"]["auc"] == pytest.approx(max(e["val_auc"] for e in metrics["training"]["passes"]), abs=0.12)


def test_same_seed_same_student(demo_store, teacher_run, tmp_path):
    for name in ("a", "b"):
        distill(teacher_run, demo_store, tmp_path / name, student="test_byobnet", epochs=1, seed=5)
    a, b = (Run(tmp_path / name).detector().state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_student_of_crops_of_another_size_is_refused(demo_corpus, teacher_run, tmp_path):
    from data.prepare import prepare

    prepare([demo_corpus], tmp_path / "store", frames=1, size=32, ratios="0.5,0.25,0.25", workers=2)
    with pytest.raises(StageError, match=r"takes 64 px crops, .* holds 32 px"):
        distill(teacher_run, tmp_path / "store", tmp_path / "out")


def test_settled_batch_norms_hold_the_plain_mean_over_batches():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3)
    data = [torch.randn(16, 3) * 2 + 5 for _ in range(4)]
    settle_batch_norms(norm.train(), [(part,) for part in data], lambda tensor: tensor)
    torch.testing.assert_close(norm.running_mean, torch.stack([d.mean(0) for d in data]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([d.var(0) for d in data]).mean(0))
    assert norm.momentum == 0.1


@pytest.fixture(scope="module")
def reals_store(demo_corpus, tmp_path_factory):
    """ClipStore of real videos alone, with forgeries in validation and test."""
    from data.prepare import prepare

    out = tmp_path_factory.mktemp("reals") / "store"
    prepare([demo_corpus], out, methods="youtube", frames=4, size=64, ratios="0.5,0.25,0.25", forge=2, workers=2)
    return out


def test_a_teacher_learns_from_real_faces_alone(reals_store, tmp_path, capfd):
    with pytest.raises(StageError, match=r"6 real and 0 fake clips and needs both: .* or --forge"):
        teach("dino", reals_store, tmp_path / "run", backbone="test_vit", random_weights=True)
    options = {"backbone": "test_vit", "random_weights": True, "forge": True, "views": 2, "epochs": 1}
    teach("dino", reals_store, tmp_path / "run", **options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rule = {"views": 2, "augment": "ten", "forge": True, "weakest_forgery": 0.25, "seed": 0}
    assert metrics["training"]["views"] == rule | {"count": 24, "replaced_clips": []}
    assert (metrics["test"]["clip"]["real"], metrics["test"]["clip"]["fake"]) == (3, 6)


def test_a_second_teacher_finds_the_frozen_features(reals_store, tmp_path, capfd):
    options = {"backbone": "test_vit", "random_weights": True, "forge": True, "epochs": 1, "cache": tmp_path / "cache"}
    teach("dino", reals_store, tmp_path / "one", **options)
    features = next((tmp_path / "cache").glob("frozen-features-*/block-0.npy"))
    written = features.stat().st_mtime_ns
    teach("dino", reals_store, tmp_path / "two", learning_rate=1e-4, **options)
    assert features.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of the training and the validation split
    capfd.readouterr()
    teach("dino", reals_store, tmp_path / "three", seed=1, **options)
    assert "frozen features are computed anew: weights, rule changed" in capfd.readouterr().err


def test_a_damaged_clip_is_replaced_and_named(reals_store, tmp_path):
    store = shutil.copytree(reals_store, tmp_path / "store")
    clip = ClipStore(store).clips("train", both=False)[0]
    file = store / "clips" / f"{clip.video_id}.parquet"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"IDAT", b"IDAX"))
    options = {"backbone": "test_vit", "random_weights": True, "forge": True, "epochs": 1, "unfreeze": "all"}
    teach("dino", store, tmp_path / "run", **options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["training"]["views"]["replaced_clips"] == [clip.clip_id]


def test_a_loss_that_is_not_a_number_ends_training_with_one_line(demo_store, teacher_run, tmp_path):
    with pytest.raises(StageError, match=r"the loss is not a number after \d steps: give a smaller --learning-rate"):
        distill(teacher_run, demo_store, tmp_path / "run", student="test_vit", learning_rate=1e20, epochs=3)
