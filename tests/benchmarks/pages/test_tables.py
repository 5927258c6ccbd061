"""The tables tell what the report says, row by row."""

import pytest

from benchmarks.figures import MethodFigures
from benchmarks.pages.sections import sections
from benchmarks.pages.tables import (
    accuracy_table,
    budget_tables,
    cost_table,
    methods_table,
    not_profiled,
    profile_tables,
    stability_table,
    sustained_table,
    worst_layers,
)
from benchmarks.schema import Report
from tests.benchmarks.reports import BREAKOUT, CLOSING, DIAGNOSIS, HOSTILE, MACHINE, full_report


@pytest.fixture
def report() -> Report:
    return full_report()


def test_accuracy_is_told_once_of_rows_that_differ_in_threads_alone(report: Report) -> None:
    table = accuracy_table(report.rows)
    names = [line[0] for line in table.rows]
    assert names == ["runs/dino", "student-fp32.pte", "student-int8.pte", "student-int8.onnx", HOSTILE, CLOSING]
    cells = dict(zip(table.columns, table.rows[2], strict=True))
    assert (cells["AUC"], cells["AUC, 95%"], cells["Video AUC"]) == ("0.9712", "0.951–0.984", "0.9876")
    assert (cells["EER"], cells["AP"], cells["Accuracy"]) == ("8.3%", "0.9723", "91.1%")
    assert (cells["TPR at 1% FPR"], cells["TPR at 5% FPR"]) == ("–", "87.5%")
    report.rows[3].video_auc = 0.5
    assert "student-int8.pte, 2 threads" in [line[0] for line in accuracy_table(report.rows).rows]


def test_methods_have_a_column_each_with_their_interval(report: Report) -> None:
    table = methods_table(report.rows)
    assert table.columns == ("Row", "Deepfakes (20 fake)", f"{HOSTILE} (19 fake)")
    assert table.rows[0] == ("runs/dino", "0.9815 (0.960–0.995)", "0.9512")
    report.rows[0].methods = {"Deepfakes": MethodFigures(fake=20, auc=None, auc_interval=None)}
    assert methods_table(report.rows).rows[0] == ("runs/dino", "–", "–")


def test_one_method_is_a_sentence(report: Report) -> None:
    for row in report.rows:
        row.methods = {name: figures for name, figures in row.methods.items() if name == "Deepfakes"}
    section = next(own for own in sections(report) if own.title == "By method of forgery")
    assert section.sentences == ("All fake clips are of one method, Deepfakes: its AUC is that of all clips.",)
    assert not section.tables


def test_stability_has_the_word(report: Report) -> None:
    lines = {line[0]: line[1:] for line in stability_table(report.rows).rows}
    assert lines[f"student-int8.pte, {MACHINE}, 1 thread"] == ("stable", "2.5%", "4.00, 4.10, 4.04", "200", "1")
    assert lines[f"student-int8.onnx, {MACHINE}"][:2] == ("unstable", "11.7%")
    assert lines[f"{HOSTILE}, {MACHINE}"][0] == "not known"
    assert "broken.pte" not in lines


def test_budgets_have_shares_totals_and_the_teacher_s_ratio_or_a_reason(report: Report) -> None:
    table, memory = budget_tables(report.budgets)
    dino, int8, missing = (dict(zip(table.columns, line, strict=True)) for line in table.rows)
    assert dino["Embed, ms"] == "11900 (77%)"
    assert (dino["Total, ms"], dino["Peak, MB"], dino["Against teacher"]) == ("15400", "350", "1.00×")
    assert (int8["Faces, ms"], int8["Depth, ms"], int8["Total, ms"]) == ("300 (60%)", "–", "500")
    assert int8["Against teacher"] == "30.8×"
    assert (missing["Row"], missing["Total, ms"]) == (BREAKOUT, "–")
    assert missing["Notes"] == "not measured: no face is seen in 20 frames"
    assert memory.rows[0] == ("runs/dino", "300", "310", "320", "330", "340", "350")
    report.budgets[0].machine = "another"
    there, here, _ = budget_tables(report.budgets)[0].rows
    assert here[-2] == "–", "a teacher of another machine is no measure"
    assert there[0] == "runs/dino, 1 thread of another" and here[0].endswith(f", 1 thread of {MACHINE}")


def test_budgets_of_several_clips_and_threads_say_theirs(report: Report) -> None:
    dino, int8, missing = report.budgets
    small = dino.model_copy(update={"video": "small.mp4", "picture": (640, 360)})
    report.budgets = [dino, int8, small, int8.model_copy(update={"threads": 4}), missing]
    clip, place = f"20 frames of {HOSTILE} (1280 by 720 pixels)", f"of {MACHINE}"
    small_clip = "20 frames of small.mp4 (640 by 360 pixels)"
    assert [line[0] for line in budget_tables(report.budgets)[0].rows] == [
        f"runs/dino, 1 thread {place}, {clip}",
        f"student-int8.pte, 1 thread {place}, {clip}",
        f"runs/dino, 1 thread {place}, {small_clip}",
        f"student-int8.pte, 4 threads {place}, {clip}",
        f"{BREAKOUT}, 1 thread {place}",
    ]
    section = next(section for section in sections(report) if section.title == "Clip budget")
    assert section.sentences == (
        f"From the video file to P(fake), on 1 thread {place}; 4 threads {place}. A clip here: {clip}; {small_clip}.",
    )
    assert [chart.caption.partition(" A bar ")[0] for chart in section.charts] == [
        f"On 1 thread {place}: {clip}.",
        f"On 1 thread {place}: {small_clip}.",
        f"On 4 threads {place}: {clip}.",
    ]


def test_sustained_speed_says_what_is_lost_and_why_energy_is_not_known(report: Report) -> None:
    dino, int8 = sustained_table(report.rows).rows
    assert dino == (
        f"runs/dino, {MACHINE}",
        "4.50",
        "1.70",
        "1.20",
        "1.20",
        "29.4%",
        "12.5",
        "intel-rapl:0, all that the processor did",
    )
    assert int8[-2:] == ("–", "not known: <u>no counters</u>")


def test_profiles_list_operations_and_what_is_left_or_a_reason(report: Report) -> None:
    (table,) = profile_tables(report.rows)
    assert table.title == f"student-int8.pte, {MACHINE}, 1 thread: ExecuTorch's tracer, 20 runs"
    assert table.folded
    assert table.rows[0] == (BREAKOUT, "Conv", "2.50", "62.5%")
    assert table.rows[-1] == ("all others", "–", "1.00", "25.0%")
    assert not_profiled(report.rows) == {
        f"runs/dino, {MACHINE}; student-fp32.pte, {MACHINE}": f"no tracer for {CLOSING}"
    }


def test_costs_leave_nothing_out_that_the_first_table_lacks(report: Report) -> None:
    table = cost_table(report.rows)
    cells = dict(zip(table.columns, table.rows[2], strict=True))
    assert (cells["MACs, G"], cells["Of peak"], cells["Runtime, MB"]) == ("0.830", "31%", "12.5")
    assert (cells["Over idle, MB"], cells["Delegated"], cells["First run, ms"]) == ("61.5", "97%", "9.25")


def test_layers_that_were_kept_in_fp32_do_not_hurt():
    assert [line[0] for line in worst_layers(DIAGNOSIS).rows] == ["<b>odd</b>"]


def test_times_of_several_places_name_theirs_and_charts_are_of_one_each(report: Report) -> None:
    """A phone's rows name the phone, and not the machine that it hung on."""
    processor = "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz, 4 cores"
    int8 = next(row for row in report.rows if row.sustained and row.latency_ms)
    phone = int8.model_copy(update={"name": "phone.pte", "device": "Pixel 8, CPU"})
    elsewhere = int8.model_copy(update={"name": "elsewhere.pte", "machine": processor})
    report.rows += [phone, elsewhere]
    report.budgets[0] = report.budgets[0].model_copy(update={"machine": processor})
    names = {line[0] for table in (stability_table, sustained_table) for line in table(report.rows).rows}
    assert {"phone.pte, Pixel 8, CPU", f"elsewhere.pte, {processor}"} <= names
    charts = {section.title: section.charts for section in sections(report)}
    for title, places in (
        ("Sustained speed", [MACHINE, "Pixel 8, CPU", processor]),
        ("Clip budget", [processor, MACHINE]),
    ):
        for place, chart in zip(places, charts[title], strict=True):
            assert chart.caption.startswith((f"On {place}. ", f"On 1 thread of {place}: 20 frames of "))
    assert ">elsewhere.pte<" in charts["Sustained speed"][2].svg


def test_times_of_one_place_name_it_beside_rows_of_another(report: Report) -> None:
    for row in report.rows:
        row.sustained = row.sustained if row.machine == MACHINE else None
    found = {section.title: section for section in sections(report)}
    assert f" on 1 thread of {MACHINE}. " in found["Clip budget"].sentences[0]
    for title in ("Clip budget", "Sustained speed"):
        (chart,) = found[title].charts
        assert chart.caption.startswith((f"On {MACHINE}. ", f"On 1 thread of {MACHINE}: 20 frames of "))
