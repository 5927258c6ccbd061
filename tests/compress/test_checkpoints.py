"""Interrupted trainings end with the weights of uninterrupted ones; what a spoiled checkpoint does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress import training
from compress.checkpoints import Position, load_checkpoint, save_checkpoint
from compress.distill import distill
from compress.teach import teach
from data.store import ClipStore
from stage import StageError
from tests.compress.interrupted import InterruptedAfter

ROOT = Path(__file__).parents[2]
TEACHER = {"backbone": "test_vit", "random_weights": True, "unfreeze": "1", "epochs": 3, "seed": 4}


def same_training(a: Path, b: Path) -> None:
    left, right = (load_file(path / "model.safetensors") for path in (a, b))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    left, right = (json.loads((path / "metrics.json").read_text()) for path in (a, b))
    for metrics in (left, right):
        metrics["training"].pop("speed")
        for entry in metrics["training"]["passes"]:
            entry.pop("seconds")
    assert left == right


@pytest.fixture(scope="module")
def whole(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted teacher, with dropout in its head."""
    out = tmp_path_factory.mktemp("whole") / "run"
    teach("dino", demo_store, out, **TEACHER)
    return out


@pytest.mark.parametrize("saves", [1, 5, 8])
def test_training_goes_on_at_the_very_step(
    saves: int, whole: Path, demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 epochs of 3 steps: interrupted within an epoch, after one, and before the last step's checkpoint."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
        patched.setattr(training, "save_checkpoint", InterruptedAfter(saves))
        teach("dino", demo_store, tmp_path / "run", **TEACHER)
    assert not (tmp_path / "run").exists()
    teach("dino", demo_store, tmp_path / "run", **TEACHER)
    same_training(tmp_path / "run", whole)


def test_a_student_with_batch_norms_goes_on_too(
    teacher_run: Path, demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"student": "test_byobnet", "epochs": 2, "views": 2, "curve": "plateau"}
    distill(demo_store, tmp_path / "whole", teacher_run, **options)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        patched.setattr(training, "save_checkpoint", InterruptedAfter(4))
        distill(demo_store, tmp_path / "run", teacher_run, **options)
    renamed = shutil.copytree(teacher_run, tmp_path / "renamed")  # it is known by its files
    distill(demo_store, tmp_path / "run", renamed, **options)
    same_training(tmp_path / "run", tmp_path / "whole")


def test_a_killed_command_goes_on(whole: Path, demo_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--backbone=test_vit", "--random-weights", "--unfreeze=1", "--epochs=3", "--seed=4"]
    command = [sys.executable, "-m", "compress.teach", "dino", f"--data={demo_store}", f"--out={out}", *options]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on their number
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | threads)
    while not (tmp_path / ".run.unfinished" / "checkpoints" / "last.pt").exists():
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=20)
    teach("dino", demo_store, out, **TEACHER)
    same_training(out, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_other_settings_lose_no_work_and_a_spoiled_checkpoint_is_named(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "save_checkpoint", InterruptedAfter(1))
        teach("dino", demo_store, tmp_path / "run", **TEACHER)
    checkpoint = tmp_path / ".run.unfinished" / "checkpoints" / "last.pt"
    asked = checkpoint.with_name("asked.json")
    begun = asked.read_text()
    asked.write_text(begun.replace("1 processes on cpu", "3 processes on cpu"))
    with pytest.raises(StageError, match=r"unfinished work of another call \(where was \"3 processes on cpu in"):
        teach("dino", demo_store, tmp_path / "run", **TEACHER, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # it is said before anything is computed
    asked.write_text(begun)
    store = shutil.copytree(demo_store, tmp_path / "store")
    lost = store / "clips" / f"{ClipStore(store).clips('train')[0].video_id}.parquet"
    lost.rename(tmp_path / lost.name)
    with pytest.raises(StageError, match=r"its clips were others: of another store, or files were damaged"):
        teach("dino", store, tmp_path / "run", **TEACHER)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(StageError, match=r"last\.pt cannot be read \(.*\): remove it to start anew"):
        teach("dino", demo_store, tmp_path / "run", **TEACHER)
    kept = checkpoint.read_bytes()
    with pytest.raises(
        StageError, match=r"run\.unfinished is unfinished work of another call \(epochs was \d+\): .* or remove it"
    ):
        teach("dino", demo_store, tmp_path / "run", **TEACHER | {"epochs": 1})
    assert checkpoint.read_bytes() == kept
    checkpoint.unlink()  # as it was told; then there is nothing to lose
    assert any(file.name.startswith("events") for file in checkpoint.parents[1].rglob("*"))
    teach("dino", demo_store, tmp_path / "run", **TEACHER | {"epochs": 1})
    assert len(json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["passes"]) == 1


def test_a_checkpoint_that_does_not_fit_says_so_and_leaves_the_last_one(tmp_path: Path, small_disk: None) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, Position([], 0, passes=1), {})
    with pytest.raises(StageError, match=r"cannot write .*last\.pt: File too large"):
        save_checkpoint(path, Position([], 0, passes=2), {"weights": torch.zeros(10_000)})
    assert load_checkpoint(path)[0].passes == 1 and [file.name for file in tmp_path.iterdir()] == ["last.pt"]
