"""Where a run comes from: its parents, the persons that it has seen, and how its pictures were made.

Splits are drawn for each store: a person of one store's test split may be in another one's training split, and figures
on the other store must not count that person as unseen.
"""

import hashlib
from collections.abc import Iterable

from data.store import Clip, ClipStore
from models.origin import DataSource
from models.run import Run
from stage import Modality, StageError, say


def hashed(clips: Iterable[Clip]) -> set[str]:
    """Return the persons of clips, each as the first 12 hexadecimal digits of the SHA-256 of the name."""
    names = {name for clip in clips for name in clip.identities}
    return {hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12] for name in names}


def seen_persons(store: ClipStore, *runs: Run) -> tuple[list[str], list[str] | None]:
    """Return ``persons`` and ``validation_persons`` of a ``DataSource``: of a store and of the parent runs, sorted.

    ``validation_persons`` is None if an older run among them does not tell them apart.
    """
    of_store = {
        split: hashed(store.clips(split, both=False))
        for split in ("train", "val")
        if sum(store.info.clips[split].values())
    }
    trained_on = of_store.get("train", set()).union(*(run.info.data.training_persons for run in runs))
    everyone = trained_on.union(of_store.get("val", ()), *(run.info.data.persons for run in runs))
    older = any(run.info.data.persons and run.info.data.validation_persons is None for run in runs)
    return sorted(everyone), None if older else sorted(everyone - trained_on)


def seen_note(
    names: Iterable[str],
    persons: Iterable[str],
    clips: Iterable[Clip],
    split: str,
    figures: str = "its figures here",
    seen_in: str = "training or validation",
) -> list[str]:
    """Return a note on how many persons of a split were seen by the runs or artifacts of these names; [] if none.

    ``persons``: the hashed persons that they have seen, and ``seen_in`` which data; ``clips``: of the split;
    ``figures``: what is too good then.
    """
    split_persons = hashed(clips)
    if not (seen := split_persons.intersection(persons)):
        return []
    return [
        f"{len(seen)} of {len(split_persons)} persons of the {split} split have names of persons in the {seen_in} of "
        f"{', '.join(names)}: {figures} may be too good."
    ]


def data_source(store: ClipStore, modalities: Iterable[Modality], *runs: Run) -> DataSource:
    """Return a run's record of its store, of the persons in its data and in that of its parents, and of notes on both.

    ``modalities``: those that it looks at; ``runs``: its parents, the notes on whom are printed.
    """
    of_store = [run for run in runs if run.info.data.fingerprint == store.info.fingerprint]
    inherited = [note for run in of_store for note in run.info.data.notes if note not in store.info.notes]
    say_notes(notes := list(dict.fromkeys([*_validation_notes(store, *runs), *inherited])))
    persons, validation_persons = seen_persons(store, *runs)
    return DataSource(
        fingerprint=store.info.fingerprint,
        notes=[*store.info.notes, *notes],
        frames=store.frames,
        crops=store.info.settings.made(modalities),
        persons=persons,
        validation_persons=validation_persons,
    )


def with_notes_of(runs: Iterable[Run], data: DataSource) -> DataSource:
    """Return the record of what is made from runs as it is, with the notes on their data before its own."""
    notes = [note for run in runs for note in run.info.data.notes]
    return data.model_copy(update={"notes": list(dict.fromkeys([*notes, *data.notes]))})


def _validation_notes(store: ClipStore, *runs: Run) -> list[str]:
    """Return notes on persons of a store's validation split, which sets thresholds, on whom runs of another trained.

    After that the persons of both stores are one list, in which nobody can tell them apart.
    """
    figures = f"weights or thresholds that were chosen on it, in {store.name}, and their figures"
    others = [run for run in runs if run.info.data.fingerprint != store.info.fingerprint]
    if not others or not sum(store.info.clips["val"].values()):
        return []
    clips = store.clips("val", both=False)
    notes = []
    for run in others:
        data = run.info.data
        seen_in = "training or validation" if data.validation_persons is None else "training"
        notes += seen_note([run.name], data.training_persons, clips, "val", figures, seen_in)
    return list(dict.fromkeys(notes))


def say_notes(lines: Iterable[str]) -> None:
    """Print notes."""
    for line in lines:
        say(f"note: {line}")


def student_of(run: Run) -> str | None:
    """Return the SHA-256 of the fp32 run that a run is or was quantized from; None if it names no parent."""
    if run.info.scheme == "fp32":
        return run.sha256
    return run.info.parents[0].sha256 if run.info.parents else None


def _made_otherwise(crops: str | None, modalities: Iterable[Modality], store: ClipStore) -> str:
    """Return how pictures, of which a run notes ``crops``, were made otherwise than a store's; "" if they were not.

    Older runs do not say what made their depth or flow, or nothing at all.
    """
    of_store = store.info.settings.made(modalities)
    if crops is None or of_store.startswith(crops):
        return ""
    return f"trained on crops made otherwise ({crops}) than those of {store.name} ({of_store})"


def check_crops(run: Run, store: ClipStore) -> None:
    """Raise StageError unless a store's crops, depth and flow were made as those that a run was trained on."""
    if otherwise := _made_otherwise(run.info.data.crops, run.info.architecture.modalities, store):
        raise StageError(f"{run.path} was {otherwise}: give a store whose crops are made alike")


def crops_notes(names: Iterable[str], crops: str | None, modalities: Iterable[Modality], store: ClipStore) -> list[str]:
    """Return a note if a store's pictures were made otherwise than ``crops``, on which named models were trained."""
    otherwise = _made_otherwise(crops, modalities, store)
    return [f"{', '.join(names)}: {otherwise}."] if otherwise else []
