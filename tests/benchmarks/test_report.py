"""Reports of several machines in one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pages.sections import sections
from benchmarks.report import merge
from benchmarks.report import report as merge_files
from benchmarks.schema import read_report
from stage import StageError
from tests.benchmarks.reports import DIAGNOSIS, MACHINE, full_report, plain_report


@pytest.fixture
def report():
    return plain_report()


def on_another_machine(own, machine="a phone"):
    own = own.model_copy(deep=True)
    for session in own.sessions:
        session.machine = machine
    for row in own.rows:
        row.machine = machine
    return own


def later(own, calls=1):
    """Return what a later call measures: never quite the same figures."""
    own = own.model_copy(deep=True)
    for row in own.rows:
        row.load_ms = (row.load_ms or 0.0) + calls / 1000
    return own


def test_merging_does_not_wait_for_torch():
    code = "import sys, benchmarks.report; sys.exit(bool({'torch', 'timm', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_rows_of_all_machines_stand_side_by_side(report, tmp_path):
    other = on_another_machine(report)
    other.notes.append("Only there.")
    paths = [tmp_path / "a.json", tmp_path / "phone" / "report.json"]
    for path, own in zip(paths, (report, other), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text(own.model_dump_json())
    merged = merge_files([paths[0], paths[1].parent], tmp_path / "merged")
    assert [row.name for row in merged.rows] == [row.name for row in report.rows] * 2
    assert [session.machine for session in merged.sessions] == ["a processor, 2 cores", "a phone"]
    assert {row.machine for row in merged.rows} == {"a processor, 2 cores", "a phone"}
    assert merged.notes == [*report.notes, "a phone: Only there."]
    assert read_report(tmp_path / "merged" / "report.json") == merged
    page = (tmp_path / "merged" / "report.html").read_text()
    assert "a phone" in page and "a processor, 2 cores" in page


def test_a_second_call_on_one_machine_gets_a_number_and_its_rows_too(report):
    merged = merge([report, later(report), later(report, 2)])
    names = ["a processor, 2 cores", "a processor, 2 cores (2)", "a processor, 2 cores (3)"]
    assert [session.machine for session in merged.sessions] == names
    count = len(report.rows)
    assert [merged.rows[place].machine for place in (0, count, 2 * count)] == names
    assert report.rows[0].machine == names[0]
    again = merge([report, merge([later(report), later(report, 2)])])
    assert [session.machine for session in again.sessions] == names
    assert [again.rows[place].machine for place in (0, count, 2 * count)] == names


def test_a_measurement_that_is_there_twice_is_refused(report):
    merged = merge([report, later(report)])
    doubled = report.model_copy(update={"rows": [*report.rows, *report.rows]})
    for reports in ([report, merged], [merged, report], [report, report.model_copy(deep=True)], [doubled]):
        with pytest.raises(StageError, match=r"runs/dino of a processor, 2 cores is there twice with the same figures"):
            merge(reports)


def test_what_was_measured_on_other_clips_or_against_another_reference_is_refused(report):
    with pytest.raises(StageError, match=r"the reports are of different stores or splits"):
        merge([report, report.model_copy(update={"fingerprint": "ffff"})])
    other = report.model_copy(deep=True)
    other.reference.sha256, other.reference.run = "cd" * 32, "runs/other"
    with pytest.raises(StageError, match=r"different references, runs/dino \(fp32 on cuda:0\) and runs/other \("):
        merge([report, other])
    other = report.model_copy(deep=True)
    other.reference.precision = "autocast"
    with pytest.raises(StageError, match=r"and runs/dino \(autocast on cuda:0\): measure one again"):
        merge([report, other])


def test_other_runs_of_one_name_keep_their_diagnoses(report):
    other = on_another_machine(report)
    other.diagnoses["student-int8"] = DIAGNOSIS.model_copy(update={"logit_snr_db": 3.0})
    merged = merge([report, other])
    assert {name: found.logit_snr_db for name, found in merged.diagnoses.items()} == {
        "student-int8": 24.25,
        "a phone: student-int8": 3.0,
    }
    assert list(merge([report, on_another_machine(report)]).diagnoses) == ["student-int8"]


def test_notes_and_diagnoses_follow_their_session_when_it_gets_another_name(report):
    first, second = later(report), on_another_machine(report)
    first.notes, second.notes = ["Of the first."], ["Of the second."]
    second.diagnoses["student-int8"] = DIAGNOSIS.model_copy(update={"logit_snr_db": 3.0})
    merged = merge([report, merge([first, second])])
    assert [session.machine for session in merged.sessions] == [MACHINE, f"{MACHINE} (2)", "a phone"]
    assert merged.notes[1:] == [f"{MACHINE} (2): Of the first.", "a phone: Of the second."]
    again = merge([on_another_machine(later(report)), merge([first, second])])
    assert list(again.diagnoses) == ["student-int8", "a phone (2): student-int8"]


def test_a_note_names_the_same_sessions_whether_reports_are_merged_at_once_or_one_after_another(report):
    second, other = later(report), on_another_machine(report)
    for own in (report, second):
        own.notes.append("This processor is slow.")
    at_once = merge([report, second, other])
    named = [f"{MACHINE}: This processor is slow.", f"{MACHINE} (2): This processor is slow."]
    assert [note for note in at_once.notes if "slow" in note] == named
    assert merge([merge([report, second]), other]).notes == at_once.notes


def test_reports_that_do_not_tell_their_control_merge_with_those_that_do(report):
    told = on_another_machine(report).model_copy(update={"control_fingerprint": "c1"})
    assert merge([report, told]).control_fingerprint == "c1"


def test_one_control_is_kept_and_two_are_refused(report):
    report.control_fingerprint = "c1"
    without = on_another_machine(report).model_copy(update={"control_clips": None, "control_fingerprint": None})
    for order in ([report, without], [without, report]):
        merged = merge(order)
        assert (merged.control_clips, merged.control_fingerprint) == (38, "c1")
    with pytest.raises(StageError, match=r"different controls: measure one again with --control of the other"):
        merge([report, on_another_machine(report).model_copy(update={"control_fingerprint": "c2"})])


def test_size_picture_tells_files_of_one_name_apart(report):
    other = on_another_machine(report)
    for rows, mark in ((report.rows, "a"), (other.rows, "b")):
        for row in rows:
            row.sha256 = f"{mark} {row.name}"
            row.bytes *= 1 + (mark == "b")

    def marks(reports):
        sizes = next(section for section in sections(merge(reports)) if section.title == "Size and accuracy")
        return sizes.charts[0].svg.count("student-int8.pte")

    assert marks([report, other]) == 2 * marks([report])
    assert marks([report, on_another_machine(report)]) == marks([report])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(sessions=[]), "no session is named 'a processor, 2 cores'"),
        (lambda told: told["rows"][0].update(machine="x"), "no session is named 'x'"),
        (lambda told: told["sessions"].append(told["sessions"][0]), "two sessions have one name"),
    ],
)
def test_rows_of_no_session_and_sessions_of_one_name_are_refused(report, tmp_path, change, message):
    told = json.loads(report.model_dump_json())
    change(told)
    (tmp_path / "report.json").write_text(json.dumps(told))
    with pytest.raises(StageError, match=rf"report.json is not valid: .*{message}: measure it again"):
        merge_files([tmp_path / "report.json"], tmp_path / "out")


def test_a_file_that_is_no_report_is_one_line(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(StageError, match=r"x.json is not valid: [a-z_]+: Field required: measure it again"):
        merge_files([tmp_path / "x.json"], tmp_path / "out")
    with pytest.raises(StageError, match=r"none.json cannot be read"):
        merge_files([tmp_path / "none.json"], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda told: told["rows"][2].update(size_ratio=0), "rows.2.size_ratio"),
        (lambda told: told["budgets"][0]["stages"][0].update(ms=0), "budgets.0.stages.0.ms"),
    ],
)
def test_figures_that_cannot_be_are_one_line_and_not_divided_by(tmp_path, change, field):
    told = json.loads(full_report().model_dump_json())
    change(told)
    (tmp_path / "report.json").write_text(json.dumps(told))
    with pytest.raises(StageError, match=rf"report.json is not valid: {field}: Input should be greater than 0"):
        merge_files([tmp_path / "report.json"], tmp_path / "out")


def test_another_file_of_the_same_name_is_noted(report):
    other = on_another_machine(report)
    for row in (*report.rows, *other.rows):
        row.sha256 = "ab" * 32
    assert not any("is not the same" in note for note in merge([report, other]).notes)
    artifact = next(row for row in other.rows if row.kind == "artifact")
    artifact.sha256 = None  # of before it was noted
    assert not any("is not the same" in note for note in merge([report, other]).notes)
    artifact.sha256 = "cd" * 32
    (note,) = [note for note in merge([report, other]).notes if "is not the same" in note]
    assert note == (
        f"{artifact.name} ({artifact.scheme}) is not the same artifact on {MACHINE} and a phone: figures of one do not "
        "hold for another."
    )
    third = on_another_machine(report, "a third machine")
    assert [note for note in merge([merge([report, other]), third]).notes if "is not the same" in note] == [
        note.replace(f"{MACHINE} and", f"{MACHINE}, a third machine and")
    ]
