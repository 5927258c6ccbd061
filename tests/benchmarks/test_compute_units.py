"""Core ML's rows on a Mac, as far as they can be told without one."""

import sys
from types import SimpleNamespace
from typing import get_args

import coremltools as ct
import pytest
from coremltools.models import compute_device

from benchmarks.rounds import Corpora, Effort, task_of
from benchmarks.rows import fill_row, list_subjects
from benchmarks.task import Measurement
from benchmarks.worker import measure
from export.coreml import UNITS, count_off_cpu
from export.runtimes import ComputeUnits, load_artifact

NAMES = ["test_byobnet-int8.mlpackage", "test_byobnet-fp32.mlpackage"]


def _plan(*devices: type | None) -> SimpleNamespace:
    """Return what has the shape of an ``MLComputePlan``: each operation's preferred device, None where not known."""
    usages = {
        f"operation {number}": device and SimpleNamespace(preferred_compute_device=object.__new__(device))
        for number, device in enumerate(devices)
    }
    block = SimpleNamespace(operations=list(usages))
    program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
    return SimpleNamespace(
        model_structure=SimpleNamespace(program=program),
        get_compute_device_usage_for_mlprogram_operation=usages.__getitem__,
    )


def test_operations_off_the_cpu_are_counted_and_constants_are_not():
    cpu, gpu = compute_device.MLCPUComputeDevice, compute_device.MLGPUComputeDevice
    ane = compute_device.MLNeuralEngineComputeDevice
    assert count_off_cpu(_plan(cpu, None, ane, ane, gpu, None, cpu)) == (3, 5)
    assert count_off_cpu(_plan(cpu, cpu)) == (0, 2)
    assert count_off_cpu(_plan(None)) == (0, 0)


def test_compute_units_are_those_of_coremltools():
    assert {ct.ComputeUnit[name] for name in UNITS.values()} == set(ct.ComputeUnit)
    assert set(UNITS) == set(get_args(ComputeUnits))


def test_on_a_mac_each_package_has_a_row_per_choice_of_units(bundle_path, opened_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    subjects = [s for s in list_subjects([bundle_path], [1, 2], "here") if s.row.runtime == "coreml"]
    wanted = [(name, device) for name in NAMES for device in ("cpu", "cpu+gpu", "cpu+ane", "all")]
    assert [(s.row.name, s.row.device) for s in subjects] == wanted
    assert {(s.row.status, s.row.threads) for s in subjects} == {("measured", 1)}
    tasks = [task_of(s, tmp_path, Effort(), Corpora(opened_store, "test"), True) for s in subjects]
    assert [task.units for task in tasks] == [device for _, device in wanted]
    assert {task.device for task in tasks} == {"cpu"}  # of torch


def test_elsewhere_a_package_has_one_row(bundle_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    found = [s.row for s in list_subjects([bundle_path], [1, 2], "here")]
    assert [(row.name, row.device) for row in found if row.runtime == "coreml"] == [(name, "cpu") for name in NAMES]
    assert {row.device for row in found} == {"cpu"}


def test_share_off_the_cpu_comes_from_the_worker_with_its_reason(bundle_path):
    (subject, *_) = [s for s in list_subjects([bundle_path], [1], "here") if s.row.runtime == "coreml"]
    subject.row.reason = ""
    fill_row(subject, [Measurement(timing=None, scores={}, delegated_fraction=0.75)], None, "test")
    assert (subject.row.delegated_fraction, subject.row.reason) == (0.75, "")
    fill_row(subject, [Measurement(timing=None, scores={}, reason="Core ML did not tell")], None, "test")
    assert (subject.row.delegated_fraction, subject.row.reason) == (0.75, "Core ML did not tell")
    delegated = [s for s in list_subjects([bundle_path], [1], "here") if s.row.name.endswith(".pte")]
    for one in delegated:
        before = one.row.delegated_fraction
        fill_row(one, [Measurement(timing=None, scores={})], None, "test")
        assert one.row.delegated_fraction == before is not None


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML tells its plan there")
def test_worker_says_why_core_ml_told_no_plan(bundle_path, opened_store, tmp_path, monkeypatch):
    (subject, *_) = [s for s in list_subjects([bundle_path], [1], "here") if s.row.runtime == "coreml"]
    task = task_of(subject, tmp_path, Effort(), Corpora(opened_store, "test"), True)
    monkeypatch.setattr("benchmarks.worker.timing", lambda task, inputs: (None, None))
    monkeypatch.setattr("benchmarks.task.Task.inputs", lambda self: None)
    found = measure(task.model_copy(update={"timed": True, "scored": {}}))
    assert found.delegated_fraction is None
    assert found.reason.startswith("Core ML did not tell where its operations run: ")


@pytest.mark.skipif(sys.platform != "darwin", reason="needs Core ML")
@pytest.mark.parametrize("units", get_args(ComputeUnits))
def test_core_ml_scores_alike_on_all_units(bundle_path, real_crops, units):
    path = bundle_path / NAMES[1]
    found, base = (load_artifact(path, "coreml", 1, units=own)(real_crops[:4]) for own in (units, "cpu"))
    assert abs(found - base).max() < 1e-2
