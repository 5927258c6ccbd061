"""JSON that is nested deeper than Python follows, in files that a user hands in: one line each, no traceback."""

from pathlib import Path

import pytest

from benchmarks.reference import read_reference
from benchmarks.report import read_report
from compress.runs import own_threshold
from data.layouts.corpus import corpus_note
from export.bundle import Bundle
from models.run import Run
from stage import StageError

NESTED = '{"schema_version":' * 50_000


@pytest.fixture(params=[NESTED, "[" * 200_000], ids=["objects", "lists"])
def nested(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name in ("report.json", "manifest.json", "model.json", "corpus.json"):
        (tmp_path / name).write_text(request.param, encoding="utf-8")
    return tmp_path


def test_reports_and_references(nested):
    with pytest.raises(StageError, match=r"report.json is not a report of schema version"):
        read_report(nested / "report.json")
    with pytest.raises(StageError, match=r"report.json is not a reference of schema version"):
        read_reference(nested / "report.json")


def test_bundles_and_runs(nested):
    with pytest.raises(StageError, match=r"manifest.json is not valid at : Invalid JSON"):
        Bundle(nested)
    with pytest.raises(StageError, match=r"model.json"):
        _ = Run(nested).info


def test_corpora(nested):
    with pytest.raises(StageError, match=r"corpus.json is not of the form"):
        corpus_note(nested)


def test_figures_of_a_run(nested, student_run):
    run = Run(student_run)
    run.read = lambda name: (nested / "report.json").read_bytes()
    with pytest.raises(StageError, match=r"metrics.json holds no threshold"):
        own_threshold(run)
