"""The gate against an earlier report."""

import pytest

from benchmarks.baseline import Baseline, BaselineOptions, parse_max_slower
from benchmarks.figures import Latency
from stage import StageError, WrongArgument
from tests.benchmarks.reports import measured, plain_report


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.1", 0.1), (" 2.5% ", 0.025), ("0", 0.0)])
def test_shares(text, share):
    assert parse_max_slower(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["-1%", "ten", "10", "", "10 percent", "nan"])
def test_what_is_no_share_is_said(text):
    with pytest.raises(StageError, match=r"--max-slower .*: give a share, as 10% or 0.1"):
        parse_max_slower(text)


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(plain_report().model_dump_json())
    return Baseline.read(path, "10%", 0.005)


def rows_of(gate):
    return [row.model_copy(deep=True) for row in gate.report.rows]


def test_an_equal_report_passes(gate):
    gate.check_comparable("a processor, 2 cores", "0123abcd")
    assert gate.regressions(rows_of(gate)) == []


def test_slower_rows_are_named_beyond_what_is_allowed(gate):
    rows = rows_of(gate)
    rows[1].latency_ms, rows[2].latency_ms = (Latency(p50=p50, p90=99, p99=99) for p50 in (13.1, 4.45))
    assert gate.regressions(rows) == [
        "student-int8.pte (executorch int8, cpu, 1 thread) is 11.3% slower: 4 to 4.45 ms, and 10.0% is allowed"
    ]
    rows[2].spread = 0.2
    assert gate.regressions(rows)[0].endswith(", though it is unstable")


def test_a_row_that_never_had_a_figure_may_go(gate):
    rows = rows_of(gate)
    bare = gate.report.rows[0]
    bare.status, bare.reason, bare.latency_ms, bare.auc = "not measured", "a run in torch", None, None
    assert gate.regressions(rows[1:]) == []


def test_lost_accuracy_lost_figures_and_lost_rows_are_named(gate):
    rows = rows_of(gate)
    rows[2].auc -= 0.0051
    rows[3].auc -= 0.0049
    rows[4].auc, rows[4].reason = None, "no clips"
    rows[1].latency_ms, rows[1].status, rows[1].reason = None, "failed", "killed by signal 9"
    del rows[0]
    assert gate.regressions(rows) == [
        "runs/dino (torch fp32, cpu, 1 thread) is not measured any more",
        "student-fp32.pte (executorch fp32, cpu, 1 thread) has no latency any more (killed by signal 9)",
        "student-int8.pte (executorch int8, cpu, 1 thread) loses 0.0051 AUC: 0.9712 to 0.9661",
        "student-int8.onnx (onnxruntime int8, cpu, 1 thread) has no AUC any more (no clips)",
    ]


def test_new_rows_and_what_was_never_measured_pass(gate):
    assert gate.regressions([*rows_of(gate), measured("new.pte", 900.0, 1)]) == []


def test_other_machines_and_stores_cannot_be_compared(gate):
    with pytest.raises(StageError, match=r"was measured on a processor, 2 cores, and this is a phone"):
        gate.check_comparable("a phone", "0123abcd")
    with pytest.raises(StageError, match=r"was measured on another store"):
        gate.check_comparable("a processor, 2 cores", "ffff")


def _on_a_phone(rows, name="Pixel 7, Android 14", machine="another machine, 4 cores"):
    return [row.model_copy(update={"device": name, "machine": machine}) for row in rows]


def test_rows_of_a_phone_are_compared_whatever_machine_it_hung_on(gate):
    mine = rows_of(gate)
    gate.report.rows = [*gate.report.rows, *_on_a_phone(gate.report.rows)]
    gate.check_comparable("Pixel 7, Android 14", "0123abcd")
    slower = _on_a_phone(mine, machine="a third machine, 8 cores")
    assert gate.regressions(slower) == []
    slower[1].latency_ms = Latency(p50=120, p90=None, p99=None)
    (said,) = gate.regressions(slower)
    assert said.startswith("student-fp32.pte (executorch fp32, Pixel 7, Android 14, 1 thread) is 900.0% slower")
    with pytest.raises(StageError, match=r"measured on Pixel 7, Android 14, a processor, 2 cores, and this is Pixel 8"):
        gate.check_comparable("Pixel 8, Android 14", "0123abcd")


def test_a_second_session_on_the_machine_is_compared(gate):
    mine = rows_of(gate)
    for row in gate.report.rows:
        row.machine = "a processor, 2 cores (2)"
    gate.check_comparable("a processor, 2 cores", "0123abcd")
    assert gate.regressions(mine) == []
    mine[1].latency_ms = Latency(p50=120, p90=None, p99=None)
    assert len(gate.regressions(mine)) == 1


def test_a_baseline_without_rows_guards_nothing(gate, tmp_path):
    gate.report.rows = []
    (tmp_path / "empty.json").write_text(gate.report.model_dump_json())
    with pytest.raises(StageError, match=r"empty.json has no rows: there is nothing to hold"):
        Baseline.read(tmp_path / "empty.json", "10%", 0.005)


def test_limits_without_a_baseline_are_refused():
    for options in (BaselineOptions(max_slower="5%"), BaselineOptions(max_auc_drop=0.001)):
        with pytest.raises(WrongArgument, match="--max-slower and --max-auc-drop are limits against --baseline"):
            options.read("here", "x")
    assert BaselineOptions().read("here", "x") is None


def test_a_file_that_is_named_with_its_bundle_is_found_by_its_hash(gate):
    rows = rows_of(gate)
    gate.report.rows[1].sha256 = rows[1].sha256 = "ab" * 32
    rows[1].name = f"bundle/{rows[1].name}"
    assert gate.regressions(rows) == []
    rows[1].sha256 = "cd" * 32
    assert any(said.endswith("is not measured any more") for said in gate.regressions(rows))
