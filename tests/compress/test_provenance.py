"""Whom a run has seen: by hand on stores of known persons."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.reference import reference
from benchmarks.worker import measure
from compress.distill import distill
from compress.evaluation import Evaluated, evaluations
from compress.provenance import data_source, hashed, seen_note
from compress.quantize import quantize
from compress.teach import teach
from data.store import ClipStore
from models.run import Run


def test_persons_are_told_by_their_names_alone(opened_store: ClipStore) -> None:
    clips = opened_store.clips("test")
    names = {name for clip in clips for name in clip.identities}
    assert len(hashed(clips)) == len(names) and not hashed(clips) & names
    assert hashed([replace(clips[0], identities=("a",))]) == {"ca978112ca1b"}  # of SHA-256("a")


def test_a_run_names_those_of_training_and_validation_and_of_the_runs_before_it(
    opened_store: ClipStore, teacher_run: Path, student_run: Path, int8_run: Path
) -> None:
    seen = hashed([clip for split in ("train", "val") for clip in opened_store.clips(split)])
    for run in (teacher_run, student_run, int8_run):
        assert set(Run(run).info.data.persons) == seen
    before = Run(teacher_run)
    before.info = before.info.model_copy(
        update={"data": before.info.data.model_copy(update={"persons": ["of another store"]})}
    )
    found = data_source(opened_store, ["rgb"], before)
    assert set(found.persons) == seen | {"of another store"}
    assert found.training_persons == hashed(opened_store.clips("train")) | {"of another store"}


def test_a_store_without_training_clips_has_no_persons_to_see(demo_control_store: Path, teacher_run: Path) -> None:
    known = Run(teacher_run)
    assert data_source(ClipStore(demo_control_store), ["rgb"], known).persons == known.info.data.persons


def test_a_run_that_goes_on_from_another_has_seen_what_that_has(
    demo_store: Path, drawn_run: Callable[..., Path], tmp_path: Path
) -> None:
    data = {"fingerprint": "x", "persons": ["of another store"]}
    start = drawn_run(tmp_path / "start", {"data": data})
    teach("dino", demo_store, tmp_path / "run", backbone="test_vit", weights=start, epochs=1)
    assert "of another store" in Run(tmp_path / "run").info.data.persons


def test_a_run_that_begins_with_persons_of_the_test_split_says_so(
    demo_store: Path,
    opened_store: ClipStore,
    drawn_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = sorted(hashed(opened_store.clips("test")))
    for persons, expected in ((known[:1], [f"1 of {len(known)} persons of the test split have names"]), (["x"], [])):
        start = drawn_run(tmp_path / f"start {persons[0]}", {"data": {"fingerprint": "x", "persons": persons}})
        out = tmp_path / f"run {persons[0]}"
        teach("dino", demo_store, out, backbone="test_vit", weights=start, epochs=1)
        notes = json.loads((out / "metrics.json").read_text())["notes"]
        assert [note.partition(" of persons in")[0] for note in notes] == expected
        assert [line for line in capsys.readouterr().err.splitlines() if "persons of the test split" in line] == [
            f"note: {note}" for note in notes
        ]


def test_a_run_whose_parents_trained_on_persons_of_the_validation_split_says_so(
    demo_store: Path,
    opened_store: ClipStore,
    drawn_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And so does what is made from it on the same store, where the persons of both are one list."""
    known = sorted(hashed(opened_store.clips("val")))
    data = {"fingerprint": "x", "persons": known[:2], "validation_persons": []}
    trained = drawn_run(tmp_path / "trained", {"data": data})
    data = {"fingerprint": "x", "persons": known, "validation_persons": known}
    validated = drawn_run(tmp_path / "validated", {"data": data})
    distill(demo_store, tmp_path / "run", trained, "test_vit", weights=str(validated), epochs=1, loss="kl")
    note = (
        f"2 of {len(known)} persons of the val split have names of persons in the training of trained: weights or "
        f"thresholds that were chosen on it, in {opened_store.name}, and their figures may be too good."
    )
    assert Run(tmp_path / "run").info.data.notes == [*opened_store.info.notes, note]
    assert capsys.readouterr().err.count(f"note: {note}\n") == 1
    quantize(tmp_path / "run", demo_store, tmp_path / "fp16", scheme="fp16")
    teach("dino", demo_store, tmp_path / "next", backbone="test_vit", weights=tmp_path / "run", epochs=1)
    for made in ("fp16", "next"):
        assert Run(tmp_path / made).info.data.notes == [*opened_store.info.notes, note]
    assert capsys.readouterr().err.count(f"note: {note}\n") == 2


def test_figures_of_persons_that_were_trained_on_say_so(
    demo_store: Path, opened_store: ClipStore, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.reference.measure_apart", measure)
    monkeypatch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
    clips = opened_store.clips("test")
    known = sorted(hashed(clips))
    assert seen_note(["a", "b"], known[1:], clips, "test") == [
        f"{len(known) - 1} of {len(known)} persons of the test split have names of persons in the training or "
        "validation of a, b: its figures here may be too good."
    ]
    run = shutil.copytree(teacher_run, tmp_path / "run")
    model = (run / "model.json").read_text()
    evaluated = Evaluated.of_run(run, opened_store)
    (found,) = evaluations(evaluated, opened_store)
    assert not any("may be too good" in note for note in found.notes)
    persons_of = {split: len(hashed(opened_store.clips(split))) for split in ("train", "val")}
    for split, number in persons_of.items():
        (found,) = evaluations(evaluated, opened_store, split)
        assert not any("may be too good" in note for note in found.notes)
        trained_elsewhere = replace(evaluated, data=evaluated.data.model_copy(update={"fingerprint": "x"}))
        (found,) = evaluations(trained_elsewhere, opened_store, split)
        assert [note for note in found.notes if note.startswith(f"{number} of {number} persons of the {split} split")]
    mine = Run(run).info.data.persons[0]
    (run / "model.json").write_text(model.replace(mine, known[0]))
    (found,) = evaluations(Evaluated.of_run(run, opened_store), opened_store)
    expected = f"1 of {len(known)} persons of the test split have names"
    assert [note for note in found.notes if note.startswith(expected)]
    measured = reference(run, demo_store, tmp_path / "reference.json", device="cpu", repeats=10)
    assert [note for note in measured.notes if note.startswith(expected)]


@pytest.mark.parametrize("known", [[], ["another"]])
def test_unknown_persons_need_no_note(opened_store: ClipStore, known: list[str]) -> None:
    assert seen_note(["a"], known, opened_store.clips("test"), "test") == []


def test_what_is_made_from_a_run_that_does_not_tell_its_persons_apart_does_not_either(
    demo_store: Path, opened_store: ClipStore, student_run: Path, tmp_path: Path
) -> None:
    older = shutil.copytree(student_run, tmp_path / "older")
    told = json.loads((older / "model.json").read_text())
    told["data"]["validation_persons"] = None
    (older / "model.json").write_text(json.dumps(told))
    quantize(older, demo_store, tmp_path / "fp16", scheme="fp16")
    made = Run(tmp_path / "fp16").info.data
    assert made.validation_persons is None and set(made.persons) >= hashed(opened_store.clips("val"))
    (found,) = evaluations(Evaluated.of_run(tmp_path / "fp16", opened_store), opened_store, "val")
    assert not [note for note in found.notes if "persons of the val split" in note]
