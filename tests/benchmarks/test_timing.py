"""What a worker times, and how often: batches, runs without a pause, clips, memory, and what makes it fail."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.energy import Joules
from benchmarks.measuring import measure_apart, write_timed_crops
from benchmarks.rounds import times_alone
from benchmarks.task import Task
from benchmarks.timing import peak_mb, sustained, time_batches, time_runs
from compress.scoring import Takes
from data.store import ClipStore
from stage import StageError
from tests.benchmarks.powercap import zone

ENDINGS = {"onnx": "onnxruntime", "pte": "executorch"}


class Model:
    """Takes a millisecond whatever the batch, and fails on a batch of four."""

    def __init__(self, error):
        self.error, self.batches = error, []

    def __call__(self, crops):
        self.batches.append(len(crops))
        if len(crops) == 4:
            raise self.error
        torch.linalg.matrix_power(torch.ones(200, 200), 20)


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.LEAST_GAIN", 0.0)
    monkeypatch.setattr("benchmarks.timing.MOST_SECONDS", 0.1)
    np.zeros((4, 8, 8, 3), np.uint8).tofile(tmp_path / "crops.bin")
    known = {"path": tmp_path, "runtime": "torch", "scheme": "fp32", "threads": 1, "repeats": 3, "size": 8}
    return Task.model_validate(known | {"crops": tmp_path / "crops.bin", "scored": {}})


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_batches_end_where_memory_ends(error, task):
    assert [timing.batch for timing in time_batches(Model(error), task)] == [1, 2]


def test_any_other_error_of_a_batch_is_none_of_memory(task):
    with pytest.raises(RuntimeError, match="shapes do not match"):
        time_batches(Model(RuntimeError("shapes do not match")), task)


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
    clock, powercap = Clock(monkeypatch), tmp_path / "powercap"
    zone(powercap, "intel-rapl:0", 0)
    monkeypatch.setattr("benchmarks.timing.Joules", lambda: Joules(powercap))

    def score(pixels):
        assert len(pixels) == 2
        clock.now += 1 / 64 if clock.now < 2 else 1 / 32  # powers of two add up exactly
        zone(powercap, "intel-rapl:0", int(clock.now * 700_000) % 1_000_000)  # 700 mW: it wraps around twice in 4 s

    found = sustained(score, task, task.inputs())
    assert found.joules_per_frame == pytest.approx(4 * 0.7 / 384, rel=1e-3)
    assert found.seconds == 4.0
    assert found.frames_per_second == [128.0, 128.0, 64.0, 64.0]
    assert found.drop == 0.5
    shorter = sustained(score, task.model_copy(update={"sustain": 1.0}), task.inputs())
    assert (shorter.frames_per_second, shorter.drop) == ([64.0], None)  # nothing to compare it with


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


def test_time_of_a_clip_is_divided_by_its_frames(demo_store, tmp_path):
    task = _onnx_task(tmp_path, demo_store, tmp_path).model_copy(update={"per": "clip", "frames": 4, "repeats": 3})
    times = time_runs(lambda pixels, valid: time.sleep(0.1), task, task.inputs())
    assert len(times) == 3
    assert 25 <= min(times) < 90
    assert len(time_runs(lambda pixels, valid: time.sleep(0.01), task, task.inputs(), seconds=0.2)) > 5


def test_a_row_that_is_timed_again_is_run_as_often_as_asked(demo_store, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.MOST_SECONDS", 0.0)
    task = times_alone(_onnx_task(tmp_path, demo_store, tmp_path), 17)
    assert len(time_runs(lambda pixels: None, task, task.inputs(), seconds=10)) == 17


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


def test_no_package_is_imported_while_a_model_is_loaded(bundle_path, int8_run):
    """Bench counts load time and memory from the moment when a runtime's modules are there."""
    models = [(int8_run, "torch")]
    models += [(bundle_path / f"test_byobnet-int8.{ending}", kind) for ending, kind in ENDINGS.items()]
    code = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from benchmarks import worker
for path, runtime in {[(str(path), runtime) for path, runtime in models]}:
    scheme = "int8" if "int8" in path else "fp32"
    task = SimpleNamespace(path=Path(path), runtime=runtime, scheme=scheme, threads=1, device="cpu", method="forward")
    worker._import_runtime(task)
    before = {{name.partition(".")[0] for name in sys.modules}}
    worker.load_scorer(SimpleNamespace(units="all", **vars(task)))
    print(path, *sorted({{name.partition(".")[0] for name in sys.modules}} - before))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == [[str(path)] for path, _ in models]


def test_a_sandbox_that_tells_no_peak_of_its_own_is_asked_for_the_usage(monkeypatch):
    known = peak_mb()
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: "Name:\tpython\nVmRSS:\t 1 kB\n")
    assert known / 2 < peak_mb() < 4 * known
