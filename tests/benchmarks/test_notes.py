"""What a reader must know before believing a report's figures."""

from pathlib import Path
from types import SimpleNamespace

from benchmarks.notes import notes_of
from benchmarks.rows import Subject
from tests.benchmarks.reports import measured


def test_notes_name_rows_of_models_whose_crops_were_cut_otherwise(opened_store):
    subjects = [
        Subject(measured(name, 4.0, 10), Path(name), False, None, None, None, crops=crops)
        for name, crops in (
            ("a.onnx", opened_store.crops), ("b.onnx", None), ("c.onnx", "margin 2"), ("d.pte", "margin 2"),
        )
    ]  # fmt: skip
    notes = notes_of(subjects, opened_store, "test", SimpleNamespace(notes=[]), None)
    cut = [note for note in notes if "cut otherwise" in note]
    assert cut == [
        f"c.onnx, d.pte: trained on crops cut otherwise (margin 2) than those of demo ({opened_store.crops})."
    ]


def test_notes_name_models_that_were_trained_from_random_weights(opened_store):
    subjects = [
        Subject(measured(name, 4.0, 10), Path(name), False, None, meaningless, None, random_start=from_random)
        for name, meaningless, from_random in (
            ("a.onnx", None, True), ("a.onnx", None, True), ("b", None, False), ("c", "never trained", True),
        )
    ]  # fmt: skip
    notes = notes_of(subjects, opened_store, "test", SimpleNamespace(notes=[]), None)
    assert [note for note in notes if "random" in note] == ["Trained from random weights: a.onnx."]
