"""The training loop on a small store, and what a student's training leaves in its run."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress import training
from compress.checkpoints import load_checkpoint
from compress.compute import Compute, prepare_compute
from compress.distill import distill
from compress.schedule import Schedule
from compress.training import Task, fit
from data.batches import read_batch
from data.store import ClipStore
from data.views import ViewRule, Views
from models.run import Run, UnfinishedRun
from stage import StageError
from tests.compress.interrupted import InterruptedAfter
from tests.conftest import note_anew


def test_student_s_metrics_hold_history_threshold_and_both_splits(student_run):
    metrics = json.loads((student_run / "metrics.json").read_text())
    assert set(metrics) == {"cost", "training", "threshold", "val", "test", "notes"}
    assert metrics["notes"] == []  # teacher and student are of one store, whose splits share no person
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
        distill(demo_store, tmp_path / name, teacher_run, student="test_byobnet", epochs=1, seed=5)
    a, b = (Run(tmp_path / name).detector().state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_student_of_crops_of_another_size_is_refused(demo_corpus, teacher_run, tmp_path):
    from data.prepare import prepare

    prepare([demo_corpus], tmp_path / "store", frames=1, size=32, ratios="0.5,0.25,0.25", workers=2)
    with pytest.raises(StageError, match=r"takes 64 px crops, .* holds 32 px"):
        distill(tmp_path / "store", tmp_path / "out", teacher_run)


def test_a_loss_that_is_not_a_number_ends_training_with_one_line(demo_store, teacher_run, tmp_path):
    with pytest.raises(StageError, match=r"the loss is not a number after \d steps: give a smaller --learning-rate"):
        distill(demo_store, tmp_path / "run", teacher_run, student="test_vit", learning_rate=1e20, epochs=3)
    assert not [thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard")]


def test_weights_that_diverge_in_a_pass_of_one_step_end_training_with_the_same_mend(opened_store, tmp_path):
    schedule = Schedule(epochs=2, batch_size=64, learning_rate=1e38, precision="fp32")
    with pytest.raises(StageError, match="a validation score is not a number after 1 steps: give a smaller"):
        _fit_colours(opened_store, tmp_path / "run", schedule)


class Colours(torch.nn.Linear):
    """Logits of a frame by its mean colour; as an objective, the cross-entropy with labels."""

    def __init__(self):
        torch.manual_seed(2)
        super().__init__(3, 2)

    def forward(self, labels, colours):
        return torch.nn.functional.cross_entropy(super().forward(colours), labels)

    def score(self, colours):
        return torch.nn.functional.linear(colours, self.weight, self.bias).softmax(1)[:, 1].numpy()


def _mean_colours(pixels):
    return torch.from_numpy(pixels).float().mean((1, 2)) / 255


EMA = Schedule(epochs=2, batch_size=8, learning_rate=0.05, ema=0.6, precision="fp32")


def _colours_task(store, said=None):
    """A task whose validation scores are the objective's own, or else ``said`` of every frame."""
    views, objective = Views(store, ViewRule()), Colours()

    def inputs_of(batch):
        return torch.from_numpy(batch.labels), _mean_colours(read_batch(views, batch).pixels)

    def score(clips):
        if said is not None:
            return [np.full(clip.valid.sum(), said) for clip in clips]
        return [objective.score(_mean_colours(store.pixels(clip)[clip.valid])) for clip in clips]

    return Task(objective, inputs_of, score, views)


def _fit_colours(store, out, schedule=EMA, said=None, spoiled=()):
    task = _colours_task(store, said)
    task.views.unreadable.update(spoiled)
    with UnfinishedRun(out, {"what": "colours"}) as unfinished:
        history = fit(prepare_compute(schedule.precision), task, schedule, 0, unfinished)
        _, states = load_checkpoint(unfinished.checkpoint)
    return task.objective, history, states


def _by_hand(store):
    """The weights after each step, and their averages, in a plain loop."""
    task = _colours_task(store)
    objective, step = task.objective, 0
    optimizer = torch.optim.AdamW(objective.parameters(), EMA.learning_rate, weight_decay=EMA.weight_decay)
    passes = [EMA.batches(task.views, 0, number, "frame") for number in range(EMA.epochs)]
    average, ends = {name: p.detach().clone() for name, p in objective.named_parameters()}, []
    for batches in passes:
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = EMA.learning_rate * EMA.factor(step, sum(map(len, passes)))
            optimizer.zero_grad()
            objective(*task.inputs_of(batch)).backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), EMA.clip_norm)
            optimizer.step()
            decay = min(EMA.ema, (1 + step) / (10 + step))  # 0.1, 2/11, ... while what it started from is far off
            for name, parameter in objective.named_parameters():
                average[name] = decay * average[name] + (1 - decay) * parameter.detach()
            step += 1
        ends.append({name: tensor.clone() for name, tensor in average.items()})
    return {name: p.detach() for name, p in objective.named_parameters()}, ends, step


def test_the_moving_average_of_the_weights_is_what_is_kept(opened_store, tmp_path):
    kept, history, states = _fit_colours(opened_store, tmp_path / "run")
    weights, averages, steps = _by_hand(opened_store)
    assert steps == history["steps"] == 12
    best = max(range(2), key=lambda n: (history["passes"][n]["val_auc"], -history["passes"][n]["val_loss"]))
    for name, parameter in kept.named_parameters():
        torch.testing.assert_close(parameter.detach(), averages[best][name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states["weights"][name], weights[name], atol=1e-5, rtol=1e-5)
        assert (averages[-1][name] - weights[name]).abs().max() > 1e-4
    for found, expected in zip(states["average"], averages[-1].values(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("saves", [1, 6, 9])
def test_an_interrupted_moving_average_goes_on(saves, opened_store, tmp_path, monkeypatch):
    whole, history, _ = _fit_colours(opened_store, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
        patched.setattr(training, "save_checkpoint", InterruptedAfter(saves))
        _fit_colours(opened_store, tmp_path / "run")
    again, rest, _ = _fit_colours(opened_store, tmp_path / "run")
    assert rest["steps"] == history["steps"]
    for own, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, other)


class Normed(Colours):
    """Colours whose batch norm sees what comes in, whatever the weights."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3, affine=False)

    def forward(self, labels, colours):
        return super().forward(labels, self.norm(colours))


def test_batch_norms_settle_on_the_first_batches_of_a_pass(opened_store, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SETTLING_BATCHES", 4)
    task = replace(_colours_task(opened_store, said=0.5), objective=Normed())
    with UnfinishedRun(tmp_path / "run", {"what": "norms"}) as unfinished:
        fit(prepare_compute("fp32"), task, replace(EMA, epochs=1), 0, unfinished)
    batches = EMA.batches(task.views, 0, 0, "frame")
    means = [task.inputs_of(batch)[1].mean(0) for batch in batches]
    assert len(batches) == 6
    torch.testing.assert_close(task.objective.norm.running_mean, torch.stack(means[:4]).mean(0))


def test_training_stops_where_validations_no_longer_get_better(opened_store, tmp_path):
    schedule = Schedule(epochs=9, batch_size=8, patience=3, precision="fp32")
    kept, history, states = _fit_colours(opened_store, tmp_path / "run", schedule, said=0.5)
    first, _, _ = _fit_colours(opened_store, tmp_path / "first", replace(schedule, patience=1), said=0.5)
    assert len(history["passes"]) == 4 and history["stopped"] == "no better pass in 3"
    assert all(torch.equal(own, other) for own, other in zip(kept.parameters(), first.parameters(), strict=True))
    assert not torch.equal(states["weights"]["weight"], kept.weight)


@pytest.mark.parametrize(("passes", "share"), [(3, 1), (4, 0.5), (6, 0.5), (7, 0.25)])
def test_learning_rate_halves_after_three_passes_without_a_smaller_loss(passes, share, opened_store, tmp_path):
    schedule = Schedule(epochs=passes, batch_size=8, learning_rate=0.02, curve="plateau", precision="fp32")
    _, _, states = _fit_colours(opened_store, tmp_path / "run", schedule, said=0.5)
    assert states["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.02 * share)


def test_fp16_learns_what_fp32_does_and_scales_its_loss(opened_store, tmp_path):
    schedule = Schedule(epochs=2, batch_size=8, learning_rate=0.05, precision="fp16")
    half, history, states = _fit_colours(opened_store, tmp_path / "half", schedule)
    whole, _, plain = _fit_colours(opened_store, tmp_path / "whole", replace(schedule, precision="fp32"))
    torch.testing.assert_close(half.weight, whole.weight, atol=5e-3, rtol=0)
    moved = (whole.weight - Colours().weight).abs().max()
    assert moved > 0.05  # ten times as far as the two may lie apart
    assert history["precision"] == "fp16"
    assert states["scaler"]["scale"] == 2.0**16 and plain["scaler"] == {}


def test_fp16_skips_steps_whose_gradients_overflow(opened_store, tmp_path):
    schedule = Schedule(epochs=1, batch_size=8, learning_rate=0.05, precision="fp16")
    steep = _colours_task(opened_store)
    inputs_of = steep.inputs_of
    steep = replace(steep, inputs_of=lambda batch: (lambda labels, colours: (labels, 1e4 * colours))(*inputs_of(batch)))
    with UnfinishedRun(tmp_path / "run", {"what": "steep"}) as unfinished:
        fit(prepare_compute("fp16"), steep, schedule, 0, unfinished)
        _, states = load_checkpoint(unfinished.checkpoint)
    assert states["scaler"]["scale"] < 2.0**16
    assert torch.isfinite(steep.objective.weight).all()


@pytest.mark.parametrize("readers", [0, 3])
@pytest.mark.parametrize("saves", [1, 3, 6, 8])
def test_an_interrupted_training_goes_on_without_the_views_that_it_could_not_read(
    saves, readers, demo_store, tmp_path, monkeypatch
):
    store = shutil.copytree(demo_store, tmp_path / "store")
    for clip in ClipStore(store).clips("train")[2:5]:
        file = store / "clips" / f"{clip.video_id}.parquet"
        file.write_bytes(file.read_bytes().replace(b"IDAT", b"IDAX"))
    note_anew(store)
    whole, history, _ = _fit_colours(ClipStore(store), tmp_path / "whole")
    monkeypatch.setattr(Compute, "readers", readers)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
        patched.setattr(training, "save_checkpoint", InterruptedAfter(saves))
        _fit_colours(ClipStore(store), tmp_path / "run")
    again, rest, _ = _fit_colours(ClipStore(store), tmp_path / "run")
    assert len(history["views"]["replaced_clips"]) == 3
    assert rest["views"] == history["views"]
    assert [own["loss"] for own in rest["passes"]] == [own["loss"] for own in history["passes"]]
    assert all(torch.equal(own, other) for own, other in zip(again.parameters(), whole.parameters(), strict=True))
    _, ended, _ = _fit_colours(ClipStore(store), tmp_path / "run")  # as after a kill behind the last pass
    assert ended == rest


@pytest.mark.parametrize("saves", [1, 6, 9])
def test_views_that_can_be_read_again_change_nothing_of_a_training_that_goes_on(
    saves, opened_store, tmp_path, monkeypatch
):
    spoiled = range(3, 8)
    whole, history, _ = _fit_colours(opened_store, tmp_path / "whole", spoiled=spoiled)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
        patched.setattr(training, "save_checkpoint", InterruptedAfter(saves))
        _fit_colours(opened_store, tmp_path / "run", spoiled=spoiled)
    again, rest, _ = _fit_colours(opened_store, tmp_path / "run")
    assert (rest["steps"], rest["views"]) == (history["steps"], history["views"])
    assert all(torch.equal(own, other) for own, other in zip(again.parameters(), whole.parameters(), strict=True))
