"""The headline repeats the row that it names, and leaves out what was not measured."""

import pytest

from benchmarks.pages.headline import NO_INT8, headline
from benchmarks.schema import Report
from tests.benchmarks.reports import MACHINE, full_report, measured, plain_report


@pytest.fixture
def report() -> Report:
    return plain_report()


def test_headline_repeats_the_row_that_is_fastest_on_the_fewest_threads(report: Report) -> None:
    assert headline(report) == (
        "student-int8.pte (ExecuTorch, int8, cpu, 1 thread) takes 4.00 ms per frame and 5.30 MB (5,300,000 bytes): "
        "150× as fast as the fp32 teacher runs/dino (vit_base_patch14_dinov2, torch fp32) and 65.3× smaller. "
        "The AUC of student-int8.pte is 0.9712; the reference's (runs/dino, vit_base_patch14_dinov2) is 0.9812 and the "
        "fp32 run's 0.9745; 1.2% of its verdicts differ from the fp32 run's."
    )


def test_headline_of_a_student_that_is_larger_than_its_teacher_says_so(report: Report) -> None:
    report.rows = [measured("a.onnx", 4.0, 5_000_000, scheme="int8", size_ratio=0.2)]
    assert " and 5.00× larger. " in headline(report)


def test_headline_of_core_ml_names_no_threads_but_the_teacher_s(report: Report) -> None:
    of_mac = {"runtime": "coreml", "scheme": "int8", "device": "all", "speedup": 2000.0, "speedup_over": "t (torch)"}
    report.rows = [measured("a.mlpackage", 0.3, 5_000_000, **of_mac)]
    assert headline(report).startswith("a.mlpackage (Core ML, int8, all) takes ")
    assert "2000× as fast as the fp32 teacher t (torch) on 1 thread and " in headline(report)


def test_headline_leaves_out_what_was_not_measured(report: Report) -> None:
    report.reference.auc = None
    nothing = dict.fromkeys(("speedup_over", "speedup", "size_ratio"))
    report.rows = [measured("a.onnx", 4.0, 5_000_000, scheme="int8", **nothing)]
    assert headline(report) == (
        "a.onnx (ExecuTorch, int8, cpu, 1 thread) takes 4.00 ms per frame and 5.00 MB (5,000,000 bytes). "
        "The AUC of a.onnx is 0.9745; the reference's (runs/dino, vit_base_patch14_dinov2) is –."
    )


def test_headline_believes_no_failed_row_and_takes_the_students_auc_from_its_fp32_row(report: Report) -> None:
    report.rows[2].status = "failed"
    report.rows.insert(0, measured("student-fp32.pte", 12.0, 19_300_000, scheme="autocast", auc=0.5))
    found = headline(report)
    assert found.startswith("student-int8.onnx (ONNX Runtime, int8, cpu, 1 thread) takes 6.00 ms")
    assert "and the fp32 run's 0.9745" in found


def test_headline_of_several_sessions_takes_the_student_of_its_own(report: Report) -> None:
    for machine in ("another", "a third"):
        report.sessions.append(report.sessions[0].model_copy(update={"machine": machine}))
        own = [row.model_copy(update={"machine": machine}) for row in plain_report().rows]
        for row in own:
            row.auc = row.auc and row.auc - 0.1
        report.rows = [*own, *report.rows] if machine == "another" else [*report.rows, *own]
    report.rows[0].latency_ms = None
    for row in report.rows:
        if row.machine != MACHINE and row.latency_ms:
            row.latency_ms = row.latency_ms.model_copy(update={"p50": 2 * row.latency_ms.p50})
    assert "and the fp32 run's 0.9745; 1.2%" in headline(report)


def test_headline_names_the_fastest_of_any_scheme_where_there_is_no_int8_artifact(report: Report) -> None:
    report.rows = [row for row in report.rows if not row.scheme.startswith("int8")]
    report.rows.append(measured("student-fp16.onnx", 9.0, 9_800_000, scheme="fp16"))
    assert headline(report).startswith(
        f"{NO_INT8} The fastest of the others: student-fp16.onnx (ExecuTorch, fp16, cpu, 1 thread) takes 9.00 ms"
    )
    report.rows = [row for row in report.rows if row.kind == "run"]
    assert headline(report) == f"{NO_INT8} Neither was one of another scheme."


def test_headline_of_a_clip_student_takes_its_file_in_steps(report: Report) -> None:
    # Where clips overlap, the other runs each frame twice.
    report.rows.insert(0, measured("student-whole-clip-int8.pte", 3.0, 5_000_000, scheme="int8", whole_clip=True))
    assert headline(report).startswith("student-int8.pte (")
    report.rows = report.rows[:1]
    assert headline(report).startswith("student-whole-clip-int8.pte (")


def test_headline_of_files_that_take_several_samples_at_once_says_so(report: Report) -> None:
    report.rows.insert(0, measured("student-int8.onnx", 3.0, 5_000_000, scheme="int8", batch=8))
    assert headline(report).startswith("student-int8.pte (")
    report.rows = report.rows[:1]
    assert " takes 3.00 ms per frame, 8 samples at once, and 5.00 MB" in headline(report)


@pytest.mark.parametrize("order", [1, -1])
def test_headline_of_two_reports_of_one_machine_takes_the_row_with_a_speedup(report: Report, order: int) -> None:
    nothing = dict.fromkeys(("speedup_over", "speedup", "size_ratio"))
    again = measured("student-int8.pte", 3.99, 5_300_000, scheme="int8", machine=f"{MACHINE} (2)", **nothing)
    report.rows = [*report.rows, again][::order]
    assert headline(report).startswith("student-int8.pte (ExecuTorch, int8, cpu, 1 thread) takes 4.00 ms")
    again.name = "faster.pte"
    assert headline(report).startswith("faster.pte (")


def test_headline_says_that_its_row_is_unstable_and_on_which_machine(report: Report) -> None:
    report.rows[2].spread = 0.0725
    said = " The latency of student-int8.pte is unstable: medians at different times lie 7.2% apart."
    assert headline(report).endswith(said)
    assert f"(ExecuTorch, int8, cpu of {MACHINE}, 1 thread)" in headline(full_report())


def test_headline_says_that_the_teacher_is_unstable_or_untrained(report: Report) -> None:
    report.rows[0].spread, report.rows[0].auc, report.rows[0].reason = 0.164, None, "random weights, never trained"
    found = headline(report)
    assert "The latency of the teacher is unstable: medians at different times lie 16.4% apart." in found
    assert found.endswith(" runs/dino has no AUC to compare with: random weights, never trained.")
