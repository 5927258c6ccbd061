"""What a reader must know before believing a report's figures."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from benchmarks.notes import not_exported, notes_of
from benchmarks.rows import Subject
from models.origin import Parent
from tests.benchmarks.reports import measured

REFERENCE = SimpleNamespace(notes=[], run=Parent(name="teacher", sha256="ab" * 32))


def test_notes_name_rows_of_models_whose_crops_were_made_otherwise(opened_store):
    made = opened_store.info.settings.made(["rgb"])
    subjects = [
        Subject(measured(name, 4.0, 10), Path(name), False, None, None, None, crops=crops)
        for name, crops in (
            ("a.onnx", made), ("b.onnx", None), ("c.onnx", "margin 2"), ("d.pte", "margin 2"),
        )
    ]  # fmt: skip
    notes = notes_of(subjects, opened_store, "test", REFERENCE, None)
    found = [note for note in notes if "made otherwise" in note]
    assert found == [f"c.onnx, d.pte: trained on crops made otherwise (margin 2) than those of demo ({made})."]


def test_what_a_bundle_lacks_is_noted(bundle_path, tmp_path):
    assert not_exported([bundle_path, tmp_path]) == []
    bundle = shutil.copytree(bundle_path, tmp_path / "bundle")
    told = json.loads((bundle / "manifest.json").read_text())
    told["absent"] = [{"file": "a.pte", "runtime": "executorch", "scheme": "int8", "reason": "a.pte failed the gate"}]
    (bundle / "manifest.json").write_text(json.dumps(told))
    assert not_exported([bundle]) == ["Not in bundle: a.pte: a.pte failed the gate."]


def test_notes_tell_why_there_are_no_verdict_flips(opened_store):
    def row(name, kind, student, threshold_store, scores="some"):
        own = Subject(measured(name, 4.0, 10), Path(name), False, None, None, student, threshold_store=threshold_store)
        own.row.kind, own.scores = kind, scores
        return own

    subjects = [
        row("run", "run", "a", "one"),
        row("a.pte", "artifact", "a", "two"),
        row("b.pte", "artifact", "b", "two"),
        row("unscored", "run", "c", "two", scores=None),
        row("c.pte", "artifact", "c", "two"),
    ]
    subjects[0].row.verdict_flips = 0.0
    notes = notes_of(subjects, opened_store, "test", REFERENCE, None)
    assert [note for note in notes if "flips" in note] == [
        "No verdict flips, as the fp32 run is not among the rows, or was not scored: b.pte, c.pte.",
        "No verdict flips, as the threshold and that of the fp32 run are of two stores: a.pte.",
    ]


def test_notes_name_models_that_were_trained_from_random_weights(opened_store):
    subjects = [
        Subject(measured(name, 4.0, 10), Path(name), False, None, meaningless, None, random_start=from_random)
        for name, meaningless, from_random in (
            ("a.onnx", None, True), ("a.onnx", None, True), ("b", None, False), ("c", "never trained", True),
        )
    ]  # fmt: skip
    notes = notes_of(subjects, opened_store, "test", REFERENCE, None)
    assert [note for note in notes if "random" in note] == ["Trained from random weights: a.onnx."]


def test_a_reference_of_an_earlier_run_of_that_name_is_noted(opened_store):
    def notes(*hashes, kind="run"):
        subjects = [
            Subject(measured(name, 4.0, 10, kind=kind, sha256=sha256), Path(name), True, None, None, None)
            for name, sha256 in zip(("a/teacher", "b/teacher"), hashes, strict=False)
        ]
        return [note for note in notes_of(subjects, opened_store, "test", REFERENCE, None) if "another run" in note]

    assert notes("cd" * 32) == [
        "The reference was measured on another run of the name teacher than the one in the rows: Delta AUC is against "
        "that one."
    ]
    assert notes("cd" * 32, "ef" * 32) == notes("cd" * 32)
    for others in (["ab" * 32], ["cd" * 32, "ab" * 32], [None]):
        assert notes(*others) == []
    assert notes("cd" * 32, kind="artifact") == []
