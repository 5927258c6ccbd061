"""Measurements of an unfinished report: used again when the same is asked, and gone with the report."""

import contextlib

import pytest
from pydantic import BaseModel

from benchmarks.kept import KeptMeasurements
from files import CannotWrite
from stage import StageError


class Figure(BaseModel):
    """A measurement."""

    value: float


def test_an_interrupted_command_goes_on_with_what_was_measured(tmp_path):
    out, calls = tmp_path / "report", []

    def measure(value):
        calls.append(value)
        return Figure(value=value)

    with pytest.raises(KeyboardInterrupt), KeptMeasurements(out, "here") as kept:
        assert kept.once("row a", lambda: measure(1.5), Figure) == Figure(value=1.5)
        raise KeyboardInterrupt
    with KeptMeasurements(out, "here") as kept:
        assert kept.once("row a", lambda: measure(99), Figure) == Figure(value=1.5)
        assert kept.once("row a, other weights", lambda: measure(2.5), Figure) == Figure(value=2.5)
    assert calls == [1.5, 2.5]
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_off_or_failed_is_measured_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), KeptMeasurements(tmp_path / "report", "here") as kept:
        with pytest.raises(StageError, match="no such row"):
            kept.once("row", lambda: (_ for _ in ()).throw(StageError("no such row")), Figure)
        kept.once("row", lambda: Figure(value=1), Figure)
        raise KeyboardInterrupt
    (file,) = (tmp_path / ".report.unfinished").glob("*.json")
    file.write_text("")
    with KeptMeasurements(tmp_path / "report", "here") as kept:
        assert kept.once("row", lambda: Figure(value=2), Figure) == Figure(value=2)


def test_a_command_that_measured_nothing_leaves_nothing(tmp_path):
    with pytest.raises(StageError, match="wrong"), KeptMeasurements(tmp_path / "report", "here"):
        raise StageError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_two_commands_do_not_make_one_report(tmp_path):
    with (
        KeptMeasurements(tmp_path / "report", "here"),
        pytest.raises(StageError, match=r"report is being made by another process"),
    ):
        KeptMeasurements(tmp_path / "report", "here")


def test_a_measurement_that_cannot_be_kept_ends_the_command(tmp_path, monkeypatch):
    """As one on a full disk: the measurements that would follow it are not made in vain."""

    @contextlib.contextmanager
    def full(target, **_options):
        raise CannotWrite(f"cannot write {target}: No space left on device")
        yield

    monkeypatch.setattr("benchmarks.kept.written_whole", full)
    with (
        KeptMeasurements(tmp_path / "report", "here") as kept,
        pytest.raises(CannotWrite, match="No space left on device"),
    ):
        kept.once("a", lambda: Figure(value=1), Figure)


def test_unfinished_work_of_another_command_is_left_alone(tmp_path):
    """As of a training that was begun for the same ``--out``: a report there must not end it."""
    checkpoint = tmp_path / ".report.unfinished" / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("hours")
    with pytest.raises(StageError, match=r"\.report\.unfinished is unfinished work of another command: give another"):
        KeptMeasurements(tmp_path / "report", "here")
    assert checkpoint.read_text() == "hours"
