"""A phone whose runner crashes or says nothing, that goes away, or a bench on it that is interrupted."""

import pytest

from benchmarks.adb import Phone
from benchmarks.rounds import Effort
from stage import StageError
from tests.benchmarks.runner_logs import EXECUTORCH
from tests.benchmarks.scripted_adb import timed

WANTED = ["test_byobnet-int8.pte", "test_byobnet-int8.onnx", "test_byobnet-fp32.pte", "test_byobnet-fp32.onnx"]


def test_runner_that_crashes_fails_its_row_and_leaves_nothing(adb, runners, bundle_path):
    adb.change(code=134, stderr="terminating with uncaught exception\nAborted\n", prints={"executor_runner": ""})
    rows = timed(bundle_path, runners[:1], [1], Effort(repeats=5, rounds=3))
    row = rows["test_byobnet-fp32.pte", 1]
    assert (row.status, row.reason) == ("failed", "executor_runner ended with exit code 134: Aborted")
    assert row.latency_ms is None
    assert len(adb.ran) == 2  # a row that failed is called no more
    assert adb.left == set()


def test_reason_of_a_crash_may_be_in_android_s_log(adb, runners, bundle_path):
    said = "Execution of method forward failed with status 0x12\n"
    adb.change(code=134, logcat=said, prints={"executor_runner": ""})
    row = timed(bundle_path, runners[:1], [1], Effort(repeats=5, rounds=1))["test_byobnet-fp32.pte", 1]
    assert row.reason == f"executor_runner ended with exit code 134: {said.strip()}"


def test_build_that_writes_to_android_s_log_is_read_there(adb, runners, bundle_path):
    lines = [line.partition("] ")[2] for line in EXECUTORCH.splitlines() if "] " in line]
    adb.change(logcat="\n".join(lines), prints={"executor_runner": "OutputX 0: tensor(sizes=[1, 1], [0.401872])\n"})
    row = timed(bundle_path, runners[:1], [1], Effort(repeats=5, rounds=1))["test_byobnet-fp32.pte", 1]
    assert (row.status, row.latency_ms.p50, row.load_ms) == ("measured", 4, 29.49)


def test_output_that_tells_no_times_is_said_with_the_mend(adb, runners, bundle_path):
    adb.change(prints={"executor_runner": "OutputX 0: tensor\n", "perf_test": "Session creation time cost: 0.2 s\n"})
    rows = timed(bundle_path, runners, [1], Effort(repeats=5, rounds=1))
    assert rows["test_byobnet-fp32.pte", 1].reason == (
        "executor_runner told no times (no line 'Model executed successfully N time(s) in X ms'): a release build logs "
        "nothing: build it with -DEXECUTORCH_ENABLE_LOGGING=ON"
    )
    assert rows["test_byobnet-fp32.onnx", 1].reason.startswith("perf_test told no times (no line 'Average inference")
    assert adb.left == set()


def test_folder_is_removed_after_ctrl_c(adb, runners, bundle_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.on_phone._Calls.add_round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        timed(bundle_path, runners, [1], Effort(repeats=5, rounds=1))
    assert adb.left == set()


def test_an_interrupted_bench_on_a_phone_goes_on(adb, runners, bundle_path, monkeypatch):
    effort, run, left = Effort(repeats=5, rounds=2), Phone.run, [6]

    def unplugged(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return run(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Phone, "run", unplugged)
        timed(bundle_path, runners, [1], effort)
    assert len(adb.ran) == 6
    rows = timed(bundle_path, runners, [1], effort)
    assert len(adb.ran) == 8  # what was told before is not asked again
    assert adb.pushed["3-forward.onnx"] == bundle_path.resolve() / WANTED[3]
    row = rows["test_byobnet-fp32.pte", 1]
    assert (row.latency_ms.p50, row.medians_ms, row.repeats) == (4, [4, 4], 10)


def test_a_phone_that_goes_away_ends_the_command_and_what_was_told_is_kept(adb, runners, bundle_path, monkeypatch):
    effort, run, left = Effort(repeats=5, rounds=2), Phone.run, [6]

    def unplugged(*arguments):
        if not left[0]:
            adb.change(devices=[])
            raise StageError("executor_runner ended with exit code 1: error: device 'R5CT' not found")
        left[0] -= 1
        return run(*arguments)

    with monkeypatch.context() as patch, pytest.raises(StageError, match="adb sees no phone: plug one in"):
        patch.setattr(Phone, "run", unplugged)
        timed(bundle_path, runners, [1], effort)
    adb.change(devices=[("R5CT", "device")])
    rows = timed(bundle_path, runners, [1], effort)
    assert len(adb.ran) == 8
    assert rows["test_byobnet-fp32.pte", 1].status == "measured"
