"""What profilers tell of each runtime, against the graphs on disk and an independent clock."""

import time
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks.bench import bench
from benchmarks.measuring import measure_apart, write_timed_crops
from benchmarks.profiling import LISTED, PROFILERS, RUNS, _by_run, profile
from benchmarks.schema import read_report
from benchmarks.task import Task
from benchmarks.worker import WARM_UPS, load_scorer, measure
from compress.runs import pixel_detector
from compress.scoring import Takes
from data.store import ClipStore
from export.bundle import Bundle
from models.run import Run
from tests.export.clip_student import NAME, clip_bundle


@pytest.fixture(scope="module")
def task_of(demo_store, tmp_path_factory):
    """Return how to make the task of a path: on one thread, on crops of ``demo_store``."""
    store, folder = ClipStore(demo_store), tmp_path_factory.mktemp("crops")

    def make(path, runtime, **fields) -> Task:
        per = fields.get("per", "frame")
        crops = write_timed_crops(store, "test", folder, Takes(per=per))
        fixed = {"scheme": "fp32", "threads": 1, "repeats": 10, "size": 64, "frames": store.frames, "scored": {}}
        return Task(path=path, runtime=runtime, crops=crops, **fixed, **fields)

    return make


@pytest.fixture(scope="module")
def tasks(task_of, bundle_path, student_run, demo_store, tmp_path_factory):
    clips = clip_bundle(demo_store, tmp_path_factory)
    steps = {"per": "clip", "method": "steps"}
    return {
        "onnx": task_of(bundle_path / "test_byobnet-fp32.onnx", "onnxruntime"),
        "int8 onnx": task_of(bundle_path / "test_byobnet-int8.onnx", "onnxruntime"),
        "pte": task_of(bundle_path / "test_byobnet-int8.pte", "executorch"),
        "torch": task_of(student_run, "torch"),
        "steps in pte": task_of(clips / f"{NAME}.pte", "executorch", **steps),
        "steps in onnx": task_of(clips / f"{NAME}-onnx", "onnxruntime", **steps),
    }


@pytest.fixture(scope="module")
def profiles(tasks):
    return {name: profile(task) for name, task in tasks.items()}


def _total(found) -> float:
    return sum(operation.ms for operation in found.operations) + found.others_ms


def _clocked_ms(task: Task) -> float:
    """Return the fastest of several runs."""
    score, inputs = load_scorer(task), task.inputs()
    spent = []
    for number in range(30):
        before = time.perf_counter()
        score(*inputs(number))
        spent.append(1e3 * (time.perf_counter() - before))
    return min(spent)


@pytest.mark.parametrize("name", ["onnx", "int8 onnx", "pte", "torch", "steps in pte", "steps in onnx"])
def test_slowest_operations_come_first_and_shares_sum_to_one(profiles, name):
    found = profiles[name]
    assert (found.runs, found.reason, len(found.operations)) == (RUNS, "", LISTED)
    times = [operation.ms for operation in found.operations]
    assert times == sorted(times, reverse=True) and min(times) > 0
    assert len({(operation.name, operation.kind) for operation in found.operations}) == LISTED
    for operation in found.operations:
        assert operation.share == pytest.approx(operation.ms / _total(found))
    others = found.others_ms / _total(found)
    assert sum(operation.share for operation in found.operations) + others == pytest.approx(1)
    assert found.others_ms > 0


@pytest.mark.parametrize("name", ["onnx", "int8 onnx", "pte", "torch", "steps in pte"])
def test_total_is_about_what_a_clock_says(profiles, tasks, name):
    assert 0.3 * _clocked_ms(tasks[name]) < _total(profiles[name]) < 6 * _clocked_ms(tasks[name])


def _everything(task, folder):
    """Return the name and kind of every operation, those too fast for the profiler's clock too."""
    _, trace_of = PROFILERS[task.runtime]
    return list(trace_of(task, folder))


def _sine(monkeypatch, task):
    monkeypatch.setattr("benchmarks.profiling.LISTED", 10_000)
    (sine,) = [operation for operation in profile(task).operations if operation.kind == "sin"]
    return sine


def test_convolutions_of_a_onnx_are_those_of_its_graph(tasks, tmp_path):
    graph = onnx.load(tasks["onnx"].path).graph
    # The optimizer joins a convolution with what follows, and names it for the value that comes out.
    values = {node.name for node in graph.node} | {output for node in graph.node for output in node.output}
    found = _everything(tasks["onnx"], tmp_path)
    convolutions = [name.removesuffix("_nchwc") for name, kind in found if kind == "Conv"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in graph.node)
    assert set(convolutions) <= values
    linear = [node.name for node in graph.node if node.op_type == "Gemm"]
    assert [name for name, kind in found if kind == "Gemm"] == linear


def test_a_onnx_s_programs_are_told_apart(tasks, tmp_path):
    found = _everything(tasks["steps in onnx"], tmp_path)
    for program in ("embed", "score"):
        graph = onnx.load(tasks["steps in onnx"].path / f"{program}.onnx").graph
        named = {name.removeprefix(f"{program}: ") for name, _ in found if name.startswith(program)}
        for kind in ("Gemm", "ReduceMean"):
            assert {node.name for node in graph.node if node.op_type == kind} <= named | {""}


def test_warm_ups_do_not_count(monkeypatch, tasks):
    sizes = iter([4_000_000] * WARM_UPS + [1] * RUNS)
    monkeypatch.setattr("benchmarks.profiling.load_scorer", lambda task: lambda *_: torch.zeros(next(sizes)).sin())
    assert _sine(monkeypatch, tasks["torch"]).ms < 0.5
    times = [run + part for run in range(WARM_UPS + RUNS) for part in (0, 100)]  # two times a run
    assert _by_run(times).tolist() == [2 * run + 100 for run in range(WARM_UPS, WARM_UPS + RUNS)]


def test_one_interrupted_run_does_not_count(monkeypatch, tasks):
    sizes = iter([1] * (WARM_UPS + RUNS - 3) + [8_000_000] * 3)
    monkeypatch.setattr("benchmarks.profiling.load_scorer", lambda task: lambda *_: torch.zeros(next(sizes)).sin())
    assert _sine(monkeypatch, tasks["torch"]).ms < 0.5


def test_operations_of_a_pte_are_in_delegates_or_are_those_that_the_manifest_lists(tasks, bundle_path, tmp_path):
    artifact = Bundle(bundle_path).artifact("test_byobnet-int8.pte")
    left = {name.removeprefix("aten::").partition(".")[0] for name in artifact.programs[0].operators} - {
        "XnnpackBackend"
    }
    found = _everything(tasks["pte"], tmp_path)
    outside = {kind for name, kind in found if not name.startswith(("delegate ", "ExecuTorch"))}
    assert {kind.partition(".")[0] for kind in outside} == {name.partition("::")[2] or name for name in left}
    inside = Counter(kind.partition(" (")[0] for name, kind in found if name.startswith("delegate "))
    assert inside["Convolution"] + inside["Fully Connected"] > 10


def test_torch_s_operators_are_those_of_the_network(tasks, tmp_path):
    detector = pixel_detector(Run(tasks["torch"].path))
    layers = {type(module) for module in detector.modules()}
    kinds = {kind for _, kind in _everything(tasks["torch"], tmp_path)}
    known = {nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_norm", nn.AvgPool2d: "avg_pool2d", nn.Linear: "linear"}
    assert {known[layer] for layer in layers & set(known)} <= kinds
    assert {"conv2d", "linear"} <= kinds


def test_what_cannot_be_profiled_says_why(task_of, tmp_path):
    package = profile(task_of(tmp_path / "x.mlpackage", "coreml"))
    assert (package.operations, package.reason) == ([], "Core ML tells the times of operations to Xcode alone")
    missing = profile(task_of(tmp_path / "none.onnx", "onnxruntime"))
    assert missing.operations == [] and missing.reason.startswith("profiling failed: ")
    assert "none.onnx" in missing.reason
    assert profile(task_of(tmp_path, "torch", device="cuda")).reason == "operations are profiled on the CPU alone"


def test_a_worker_profiles_only_when_asked(tasks):
    task = tasks["onnx"].model_copy(update={"profiled": True})
    found = measure_apart(task)
    assert found.timing is not None and found.profile is not None
    assert len(found.profile.operations) == LISTED
    assert measure(tasks["onnx"]).profile is None


def test_profiled_crops_are_those_that_were_timed(monkeypatch, tasks):
    seen = []
    monkeypatch.setattr("benchmarks.profiling.load_scorer", lambda task: lambda *inputs: seen.append(inputs[0].copy()))
    profile(tasks["torch"])
    inputs = tasks["torch"].inputs()
    np.testing.assert_array_equal(seen[:3], [inputs(number)[0] for number in range(3)])


def test_bench_profiles_every_row_when_asked(bundle_path, demo_store, reference_file, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.rounds.measure_apart", measure)
    monkeypatch.setattr("benchmarks.rounds.usable_cores", lambda: 1)
    monkeypatch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
    made = bench([bundle_path], demo_store, reference_file, tmp_path / "out", repeats=10, rounds=1, profile=True)
    assert read_report(tmp_path / "out" / "report.json") == made
    for row in made.rows:
        assert row.profile is not None
        assert bool(row.profile.operations) == (row.runtime != "coreml") == (row.profile.reason == "")
