"""Rows timed on a phone, over an ``adb`` that replays what both runners print (``runner_logs``)."""

import pytest

from benchmarks.adb import Phone
from benchmarks.bench import bench
from benchmarks.native_runners import tool_of
from benchmarks.on_phone import ACCURACY, PhoneTimer
from benchmarks.pages.render import markdown
from benchmarks.report import report as merged
from benchmarks.rounds import Effort
from benchmarks.schema import read_report
from benchmarks.worker import measure
from export.bundle import Bundle
from stage import StageError
from tests.benchmarks.runner_logs import BEFORE_ITERATIONS
from tests.benchmarks.scripted_adb import PHONE, timed
from tests.export.clip_student import NAME, clip_bundle

WANTED = ["test_byobnet-int8.pte", "test_byobnet-int8.onnx", "test_byobnet-fp32.pte", "test_byobnet-fp32.onnx"]


def test_runner_of_no_known_kind_or_place(tmp_path, runners, adb):
    (tmp_path / "benchmark_model").touch()
    with pytest.raises(StageError, match=r"must contain executor_runner \(runs .pte\) or perf_test \(runs .onnx\)"):
        tool_of(tmp_path / "benchmark_model")
    with pytest.raises(StageError, match=r"--runner .*/executor_runner: there is no such file"):
        tool_of(tmp_path / "executor_runner")
    with pytest.raises(StageError, match=r"--device adb needs --runner"):
        PhoneTimer.connect([])
    with pytest.raises(StageError, match=r"--runner: give one runner of each kind"):
        PhoneTimer.connect([runners[0], runners[0]])
    assert tool_of(runners[0]).runtime == "executorch" and tool_of(runners[1]).runtime == "onnxruntime"


def test_adb_must_be_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StageError, match=r"needs adb on the PATH: install Android's platform-tools"):
        Phone()


@pytest.mark.parametrize(
    ("devices", "serial", "said"),
    [
        ([], None, "adb sees no phone: plug one in with USB debugging allowed"),
        (
            [("R5CT", "device"), ("emulator-5554", "device")],
            None,
            r"several phones: set ANDROID_SERIAL to one of R5CT \(device\), emulator-5554 \(device\)",
        ),
        ([("R5CT", "device")], "ABC", r"adb does not see ANDROID_SERIAL=ABC: it sees R5CT \(device\)"),
        ([("R5CT", "unauthorized")], None, r"cannot use R5CT \(unauthorized\): allow USB debugging on its screen"),
        ([("R5CT", "offline")], None, r"cannot use R5CT \(offline\): plug it in again, or call: adb reconnect"),
        (
            [("R5CT", "no permissions (missing udev rules? user is in the plugdev group); see [http://x]")],
            None,
            r"cannot use R5CT \(no permissions .*\): see: adb devices",
        ),
    ],
)
def test_phone_that_cannot_be_used(adb, monkeypatch, devices, serial, said):
    adb.change(devices=devices)
    if serial:
        monkeypatch.setenv("ANDROID_SERIAL", serial)
    with pytest.raises(StageError, match=said):
        Phone()


def test_one_of_two_phones_by_its_serial_number(adb, monkeypatch):
    adb.change(devices=[("R5CT", "device"), ("emulator-5554", "offline")])
    monkeypatch.setenv("ANDROID_SERIAL", "R5CT")
    assert Phone().name == PHONE


def test_a_wireless_phone_whose_name_holds_a_space(adb):
    serial = "adb-R3CN70 (2)._adb-tls-connect._tcp"
    adb.change(devices=[(serial, "device")], serial=serial)
    assert Phone().name == PHONE


def test_phone_without_a_chip_s_name_whose_model_names_its_maker(adb):
    adb.change(
        properties={
            "ro.product.manufacturer": "OnePlus",
            "ro.product.model": "ONEPLUS A6003",
            "ro.build.version.release": "11",
        }
    )
    phone = Phone()
    assert phone.name == "ONEPLUS A6003, Android 11"
    assert phone.properties == {
        "manufacturer": "OnePlus",
        "model": "ONEPLUS A6003",
        "android": "11",
        "chip": "not told",
    }


def test_artifacts_are_timed_with_the_threads_and_runs_asked_for(adb, runners, bundle_path):
    rows = timed(bundle_path, runners, [1, 2], Effort(repeats=5, rounds=2))
    assert {key for key, row in rows.items() if row.status == "measured"} == {
        (name, threads) for name in WANTED for threads in (1, 2)
    }
    expected = []
    for threads in (1, 2):
        for name in WANTED:
            number = len(expected)
            if name.endswith(".pte"):
                options = f"--cpu_threads={threads} --num_executions=8"
                expected.append(f"./executor_runner --model_path={number}-forward.pte {options}")
            else:
                expected.append(f"./perf_test -I -e cpu -m times -r 5 -x {threads} -s {number}-forward.onnx")
    assert adb.ran == expected * 2  # one round after the other
    assert adb.left == set()
    assert {adb.pushed[name] for name in ("executor_runner", "perf_test")} == set(runners)
    assert adb.pushed["7-forward.onnx"] == bundle_path.resolve() / WANTED[3]


def test_rows_hold_what_the_runners_told(adb, runners, bundle_path):
    rows = timed(bundle_path, runners, [1], Effort(repeats=5, rounds=2))
    row = rows["test_byobnet-fp32.pte", 1]
    assert (row.device, row.machine, row.reason) == (PHONE, "here", ACCURACY)
    assert (row.latency_ms.p50, row.medians_ms, row.spread, row.repeats) == (4, [4, 4], 0, 10)
    assert (row.load_ms, row.first_run_ms, row.throughput, row.peak_memory_mb) == (29.49, 41.5, 250, None)
    assert (row.auc, row.cores) == (None, None)
    row = rows["test_byobnet-int8.onnx", 1]
    assert row.latency_ms.p90 == pytest.approx(10.1019) and row.peak_memory_mb == 26
    assert row.latency_ms.p99 is None  # of 50 runs a call
    row = rows["test_byobnet-fp32.mlpackage", 1]
    assert (row.status, row.reason, row.device) == ("not measured", "Core ML does not run on Android", PHONE)


def test_mean_alone_has_no_percentiles(adb, runners, bundle_path):
    adb.change(prints={"executor_runner": BEFORE_ITERATIONS})
    told = "; p50 is {}, warm-ups included, the only figure that executor_runner told"
    row = timed(bundle_path, runners[:1], [1], Effort(repeats=10, rounds=3))["test_byobnet-fp32.pte", 1]
    assert row.reason.endswith(told.format(f"the median of 3 means of {row.repeats // 3} runs each"))
    rows = timed(bundle_path, runners[:1], [1], Effort(repeats=10, rounds=1))
    row = rows["test_byobnet-fp32.pte", 1]
    assert (row.latency_ms.p90, row.latency_ms.p99, row.spread) == (None, None, None)
    assert row.latency_ms.p50 == pytest.approx(2.904883)
    assert row.reason.endswith(told.format(f"the mean of {row.repeats} runs"))
    row = rows["test_byobnet-fp32.onnx", 1]
    assert (row.status, row.reason) == ("not measured", "no --runner was given for onnxruntime")


def test_clip_in_steps_takes_an_embedding_and_a_share_of_the_score(adb, runners, demo_store, tmp_path_factory):
    path = clip_bundle(demo_store, tmp_path_factory)
    rows = timed(path, runners, [1], Effort(repeats=5, rounds=1))
    assert rows[f"{NAME}.pte", 1].latency_ms.p50 == 4 + 4 / 4  # clips of 4 frames
    assert rows[f"{NAME}.pte", 1].latency_ms.p90 is None
    assert rows["test_tiny-whole-clip-fp32.pte", 1].latency_ms.p50 == 1
    steps = rows[f"{NAME}-onnx", 1]
    assert steps.latency_ms.p50 == pytest.approx(9.95086 * 1.25)
    assert (steps.first_run_ms, steps.load_ms) == (None, pytest.approx(2 * 217.932))
    assert steps.peak_memory_mb == 26
    methods = [option for command in adb.ran for option in command.split() if option.startswith("--method_name")]
    assert methods == ["--method_name=embed", "--method_name=score", "--method_name=clip"]
    for name in ("embed", "score"):
        assert path.resolve() / f"{NAME}-onnx" / f"{name}.onnx" in adb.pushed.values()


def test_bench_on_a_phone_merges_with_a_report_of_this_machine(
    adb, runners, bundle_path, student_run, demo_store, reference_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("benchmarks.rounds.measure_apart", measure)
    monkeypatch.setattr("benchmarks.rounds.usable_cores", lambda: 1)
    monkeypatch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
    here, there = tmp_path / "here", tmp_path / "phone"
    bench([bundle_path], demo_store, reference_file, here, repeats=10, rounds=1)
    monkeypatch.setattr("benchmarks.bench.measure_all", None)
    options = {"device": "adb", "runner": runners, "repeats": 5, "threads": "1,4"}
    made = bench([bundle_path, student_run], demo_store, reference_file, there, **options)
    assert read_report(there / "report.json") == made
    assert {row.device for row in made.rows} == {PHONE}
    runs = [row for row in made.rows if row.kind == "run"]
    assert {(row.status, row.reason) for row in runs} == {("not measured", "a run in torch does not run on a phone")}
    assert made.sessions[0].peaks == [] and made.sessions[0].environment["phone"]["chip"] == "Tensor G3"
    assert any(note.startswith(f"On {PHONE} runners time models on inputs that they make up") for note in made.notes)
    assert not any("was not measured: timed" in note for note in made.notes)
    both = merged([here / "report.json", there / "report.json"], tmp_path / "both")
    mine = [row for row in both.rows if row.name == "test_byobnet-int8.onnx"]
    assert [(row.device, row.threads, row.auc is None) for row in mine] == [
        ("cpu", 1, False),
        (PHONE, 1, True),
        (PHONE, 4, True),
    ]
    assert len({row.machine for row in mine}) == 2
    pages = markdown(both)
    assert "Pixel 8" in pages and "Tensor G3" in pages
    assert Bundle(bundle_path).artifact("test_byobnet-int8.onnx").bytes == mine[1].bytes


def test_options_of_this_machine_and_of_a_phone_do_not_mix(runners, bundle_path, demo_store, reference_file, tmp_path):
    arguments = [bundle_path], demo_store, reference_file, tmp_path / "out"
    with pytest.raises(StageError, match=r"--sustain, --profile: measured on this machine alone, leave it out with"):
        bench(*arguments, device="adb", runner=runners, sustain=10, profile=True)
    with pytest.raises(StageError, match=r"--runner is for --device adb: leave it out, or give --device adb"):
        bench(*arguments, runner=runners)
    assert not (tmp_path / "out").exists()
